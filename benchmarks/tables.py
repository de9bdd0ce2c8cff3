"""The tables, in Markdown. A block is one subject: its tables, and under them where they come from.

Nothing is judged here: whoever lost stands in the same row as whoever won.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.cases import (
    ANSWER_TOKENS,
    DELTA,
    DELTA_ALONE,
    DROPOUT,
    EAGER,
    FORWARD,
    LAYER,
    LINEAR,
    MODEL,
    ONTO,
    PEERS,
    TRAINING,
    is_narrow,
)
from benchmarks.markdown import (
    Place,
    block,
    group_by_backend,
    group_by_place,
    grouped,
    markdown_table,
    number_cell,
    of_suite,
    place_cells,
    ratio_cell,
)
from benchmarks.results import Line, geometric_mean

LARGE_T = 2048  # from here on launching no longer decides


@dataclass(frozen=True)
class Column:
    """A way of calling the layer that gets a column of its own."""

    title: str
    mode: str
    dropped: bool = False

    def has(self, line: Line) -> bool:
        """Whether the line is one of this column."""
        return bool(line["mode"] == self.mode and bool(line["dropout"]) == self.dropped)


WAYS = (
    Column("forward", FORWARD),
    Column("forward + backward", TRAINING),
    Column(f"the same, dropout {DROPOUT}", TRAINING, dropped=True),
)
PEER_WAYS = (
    Column("forward", FORWARD),
    Column("forward + backward", TRAINING),
    Column(f"forward, dropout {DROPOUT}", FORWARD, dropped=True),
    Column(f"forward + backward, dropout {DROPOUT}", TRAINING, dropped=True),
)


def linear(lines: Sequence[Line]) -> str | None:
    """Ratios to the frozen layer at every shape and T, and their geometric means."""
    chosen = of_suite(lines, "linear")
    tables = [_linear_table(backend, mine) for backend, mine in group_by_backend(chosen).items()]
    return block(tables, chosen)


def variants(lines: Sequence[Line]) -> str | None:
    """Ranks, experts and gate forms: ratios, and differences to the ordinary form, same rounds."""
    chosen = [line for line in of_suite(lines, "variants") if line["op"] == LINEAR]
    tables = []
    for backend, mine in group_by_backend(chosen).items():
        tables += [_variants_summary(backend, mine)]
        tables += [_variants_at_places(mine, way) for way in WAYS[:2]]
    return block(tables, chosen)


def onto(lines: Sequence[Line]) -> str | None:
    """The update onto a given base, against the bandwidth of a copy in the same rounds."""
    chosen = [line for line in of_suite(lines, "variants") if line["op"] in (ONTO, DELTA_ALONE)]
    heads = ["d_out×d_in", "T", "what", "mode", "µs", "GB/s", "copy GB/s", "share of the copy"]
    rows = [
        [
            *place_cells(line.place),
            "onto a base" if line["op"] == ONTO else "alone",
            line["mode"].replace("+", " + "),
            _us(line["device_us"]),
            f"{line['gb_per_s']:,.0f}",
            number_cell(line.get("copy_gb_per_s"), ",.0f"),
            number_cell(line.get("copy_share"), ".2f"),
        ]
        for line in sorted(chosen, key=lambda line: (line["op"] != ONTO, line["mode"]))
    ]
    return block([markdown_table(heads, rows, text=4)], chosen) if rows else None


def peers(lines: Sequence[Line]) -> str | None:
    """What else could be run, side by side, a table a run: geometric means over the same shapes and T."""
    runs = peer_runs(lines)
    tables = [part for mine in runs for part in _peer_table(mine)]
    return block(tables, [line for mine in runs for line in mine])


def _peer_table(chosen: Sequence[Line]) -> tuple[str, str]:
    heads = ["over the frozen layer", *(way.title for way in PEER_WAYS)]
    heads += ["peak memory, forward + backward", "with dropout"]
    rows = [
        [backend, *(ratio_cell(value) for value in values)]
        for backend, values in peer_means(chosen).items()
    ]
    places = sorted({line.place for line in chosen})
    shapes = sorted({f"{d_out}×{d_in}" for d_out, d_in, _ in places})
    tokens = ", ".join(map(str, sorted({t for *_, t in places})))
    over = (
        f"Geometric means over {', '.join(shapes)} and T = {tokens}, commit {chosen[0].run.commit}."
    )
    return markdown_table(heads, rows, text=1), over


def peer_runs(lines: Sequence[Line]) -> list[list[Line]]:
    """Of each run with several contenders the lines at those shapes and T at which it had all of them."""
    runs = grouped(of_suite(lines, "peers"), lambda line: str(line.run))
    common = [_common_places(mine) for _, mine in runs]
    return [mine for mine in common if len(group_by_backend(mine)) > 1]


def peer_means(lines: Sequence[Line]) -> dict[str, list[float | None]]:
    """Backend -> mean ratios: the time of each of ``PEER_WAYS``, the peak memory of its two trainings."""
    return {
        backend: [
            *(_mean(line["ratio"] for line in mine if way.has(line)) for way in PEER_WAYS),
            *(
                _mean(line["peak_ratio"] for line in mine if way.has(line) and line["peak_ratio"])
                for way in (PEER_WAYS[1], PEER_WAYS[3])
            ),
        ]
        for backend, mine in group_by_backend(lines).items()
    }


def floor(lines: Sequence[Line]) -> str | None:
    """The fused layer's time over that of the two that it may never be slower than."""
    chosen = of_suite(lines, "peers")
    by_backend = group_by_backend(chosen)
    tables, used = [], []
    for backend, peer in product(by_backend, (DELTA, EAGER)):
        if backend in PEERS or peer not in by_backend:
            continue
        theirs = {_key(line): line for line in by_backend[peer]}
        rows = []
        its = grouped(by_backend[backend], lambda line: (line.place, str(line.run)))
        for (place, _), at_place in its:
            pairs = [_pair(at_place, way, theirs) for way in PEER_WAYS]
            ratios = [_over(*pair) for pair in pairs]
            if any(ratios):
                rows.append([*place_cells(place), *map(ratio_cell, ratios)])
                used += [line for pair in pairs for line in pair if line is not None]
        heads = [f"{backend} / {peer}", "T", *(way.title for way in PEER_WAYS)]
        tables += [markdown_table(heads, rows, text=1)] if rows else []
    return block(tables, used) if used else None


def overhead(lines: Sequence[Line]) -> str | None:
    """What a call costs the CPU, and what the device takes, on a layer that is tiny."""
    chosen = of_suite(lines, "overhead")
    if not chosen:
        return None
    heads = ["microseconds, CPU", "launched", *(way.title for way in WAYS)]
    heads += [f"device: {way.title}" for way in WAYS]
    rows = [["frozen layer", "eager", *_frozen_cells(chosen)]]
    for (backend, launch), mine in grouped(
        chosen, lambda line: (str(line["backend"]), str(line["launch"]))
    ):
        found = [_only(mine, way) for way in WAYS]
        cells = [number_cell(_value(line, "cpu_us"), ".0f") for line in found]
        cells += [number_cell(_value(line, "device_us"), ".1f") for line in found]
        rows.append([backend, launch, *cells])
    return block([markdown_table(heads, rows, text=2), *_slowest_first_call(chosen)], chosen)


def model(lines: Sequence[Line]) -> str | None:
    """A training step of a decoder layer and of a whole model."""
    chosen = of_suite(lines, "model")
    heads = ["a training step of", "with", "ms", "over frozen", "peak above inputs, GiB"]
    heads += ["over frozen"]
    rows = []
    for op, title in ((LAYER, "one decoder layer"), (MODEL, "the whole model")):
        mine = [line for line in chosen if line["op"] == op]
        for number, line in enumerate(mine):
            layers = f", {line['layers']} layers" if op == MODEL else ""
            if number == 0:
                frozen = [line["frozen_us"], 1.0, line["frozen_peak_mib"], 1.0]
                rows.append([title + layers, "nothing (frozen)", *_step_cells(*frozen)])
            measured = [line["device_us"], line["ratio"], line["peak_mib"], line["peak_ratio"]]
            rows.append([title + layers, line["backend"], *_step_cells(*measured)])
    if not rows:
        return None
    note = _model_note(chosen)
    return block([markdown_table(heads, rows, text=2), note], chosen)


BLOCKS: dict[str, Callable[[Sequence[Line]], str | None]] = {
    "linear": linear,
    "variants": variants,
    "onto": onto,
    "peers": peers,
    "floor": floor,
    "overhead": overhead,
    "model": model,
}


def _linear_table(backend: str, lines: Sequence[Line]) -> str:
    heads = [f"{backend} / frozen", "T", *(way.title for way in WAYS), "peak memory, training"]
    heads += ["frozen µs, forward", "training", "TFLOP/s, forward", "training"]
    by_place = group_by_place(lines)
    usual = {place: mine for place, mine in by_place.items() if not is_narrow(*place[:2])}
    narrow = {place: mine for place, mine in by_place.items() if place not in usual}
    rows = [_linear_row(place, mine) for place, mine in usual.items()]
    for title, belongs in (
        (f"T ≥ {LARGE_T}", lambda place: place[2] >= LARGE_T),
        (f"T < {LARGE_T}", lambda place: place[2] < LARGE_T),
    ):
        rows += _linear_means(title, [line for p in usual if belongs(p) for line in usual[p]])
    rows += [_linear_row(place, mine) for place, mine in narrow.items()]
    return markdown_table(heads, rows, text=1) + "\n\n" + _spread(lines)


def _linear_row(place: Place, lines: Sequence[Line]) -> list[str]:
    forward, training, dropped = (_only(lines, way) for way in WAYS)
    return [
        *place_cells(place),
        ratio_cell(_value(forward, "ratio")),
        ratio_cell(_value(training, "ratio")),
        ratio_cell(_value(dropped, "ratio")),
        ratio_cell(_value(training, "peak_ratio")),
        _us(_value(forward, "frozen_us")),
        _us(_value(training, "frozen_us")),
        number_cell(_value(forward, "tflops"), ".0f"),
        number_cell(_value(training, "tflops"), ".0f"),
    ]


def _linear_means(title: str, lines: Sequence[Line]) -> list[list[str]]:
    """The mean row and the row of the largest; none where there is no line."""
    if not lines:
        return []
    ratios = [[line["ratio"] for line in lines if way.has(line)] for way in WAYS]
    peaks = [line["peak_ratio"] for line in lines if WAYS[1].has(line) and line["peak_ratio"]]
    rows = []
    for name, summary in (("geometric mean", _mean), ("largest", _largest)):
        cells = [ratio_cell(summary(values)) for values in (*ratios, peaks)]
        rows.append([f"**{name}, {title}**", "", *cells, "", "", "", ""])
    return rows


def _spread(lines: Sequence[Line]) -> str:
    """How far the rounds of one line lie apart, and whether the host was ever late."""
    spread = max((line["p80_us"] - line["p20_us"]) / line["device_us"] for line in lines)
    rounds = sorted({line["rounds"] for line in lines})
    note = (
        f"Medians of {' or '.join(map(str, rounds))} rounds; between the 20th and the 80th percentile "
        f"lie at most {100 * spread:.1f} % of the median."
    )
    late = [line for line in lines if (line["enqueued_ahead"] or 1.0) < 0.5]
    if late:
        note += f" In {len(late)} of {len(lines)} lines the device mostly waited for the host."
    return note


def _variants_summary(backend: str, lines: Sequence[Line]) -> str:
    heads = [f"{backend} / frozen, all shapes and T", "mode", "geometric mean", "largest"]
    heads += ["minus the ordinary form, mean", "largest"]
    usual = [line for line in lines if not is_narrow(*line.place[:2])]
    ordinary = {_key(line): line["ratio"] for line in usual if _variant(line) == "ordinary"}
    rows = []
    for (variant, mode), mine in grouped(usual, lambda line: (_variant(line), str(line["mode"]))):
        ratios = [line["ratio"] for line in mine]
        pairs = [(line["ratio"], ordinary.get(_key(line))) for line in mine]
        differences = [mine - other for mine, other in pairs if other is not None]
        mean = sum(differences) / len(differences) if differences else None
        cells = [ratio_cell(_mean(ratios)), ratio_cell(_largest(ratios))]
        cells += [number_cell(mean, "+.3f"), number_cell(_largest(differences), "+.3f")]
        rows.append([variant, mode.replace("+", " + "), *cells])
    return markdown_table(heads, rows, text=2)


def _variants_at_places(lines: Sequence[Line], way: Column) -> str:
    mine = [line for line in lines if way.has(line)]
    names = list(dict.fromkeys(_variant(line) for line in mine))
    rows = []
    for place, at_place in group_by_place(mine).items():
        found = {_variant(line): line["ratio"] for line in at_place}
        rows.append([*place_cells(place), *(ratio_cell(found.get(name)) for name in names)])
    return markdown_table([way.title, "T", *names], rows, text=1)


def _variant(line: Line) -> str:
    words = [] if line["R"] == 16 else [f"R = {line['R']}"]
    words += [] if line["K"] == 4 else [f"K = {line['K']}"]
    words += [] if line["gate"] == "batched" else [f"{line['gate']} gates"]
    words += ["dropout"] if line["dropout"] else []
    return ", ".join(words) or "ordinary"


def _frozen_cells(lines: Sequence[Line]) -> list[str]:
    found = [_only(lines, way) for way in WAYS]
    cells = [number_cell(_value(line, "frozen_cpu_us"), ".0f") for line in found]
    return cells + [number_cell(_value(line, "frozen_us"), ".1f") for line in found]


def _slowest_first_call(lines: Sequence[Line]) -> list[str]:
    """A sentence on compiling, of the fused layer's lines that were launched eagerly."""
    ours = [line for line in lines if line["backend"] not in PEERS and line["launch"] == "eager"]
    if not ours:
        return []
    slowest = max(ours, key=lambda line: float(line["first_call_s"]))
    d_out, d_in, tokens = slowest.place
    where = f"{d_out}×{d_in}, T = {tokens}, {slowest['mode']}"
    return [f"The slowest of these first calls took {slowest['first_call_s']:.2f} s ({where})."]


def _step_cells(us: float, ratio: float, mib: float | None, peak: float | None) -> list[str]:
    gib = None if mib is None else mib / 1024
    return [f"{us / 1e3:,.2f}", ratio_cell(ratio), number_cell(gib, ".2f"), ratio_cell(peak)]


def _model_note(lines: Sequence[Line]) -> str:
    line = lines[0]
    batch = f"{line['B']}×{line['T'] // line['B']} tokens"
    note = (
        f"Forward and backward, no optimiser: {batch}, {line['dtype']}, R = {line['R']}, "
        f"K = {line['K']}, dropout {line['dropout']:g}, all seven projections of a layer adapted."
    )
    if any(other.get("checkpointing") for other in lines):
        note += (
            f" The whole model's loss is on the last {ANSWER_TOKENS} tokens of each row, and it "
            "recomputes every layer in the backward pass, whoever adapts it."
        )
    return note


def _common_places(lines: Sequence[Line]) -> list[Line]:
    """The lines at those shapes and T at which every backend was measured."""
    places = [{line.place for line in mine} for mine in group_by_backend(lines).values()]
    common = set.intersection(*places) if places else set()
    return [line for line in lines if line.place in common]


def _key(line: Line) -> tuple[object, ...]:
    # Of one run alone: with others a line took no turns.
    return (str(line.run), *line.place, line["mode"], bool(line["dropout"]))


def _pair(
    lines: Sequence[Line], way: Column, others: Mapping[tuple[object, ...], Line]
) -> tuple[Line | None, Line | None]:
    """A line, and the other's that took turns with it."""
    line = _only(lines, way)
    return line, None if line is None else others.get(_key(line))


def _over(line: Line | None, other: Line | None) -> float | None:
    if line is None or other is None:
        return None
    return float(line["device_us"]) / float(other["device_us"])


def _only(lines: Sequence[Line], way: Column) -> Line | None:
    return next((line for line in lines if way.has(line)), None)


def _value(line: Line | None, key: str) -> float | None:
    return None if line is None else line[key]


def _mean(values: Iterable[float]) -> float | None:
    given = list(values)
    return geometric_mean(given) if given else None


def _largest(values: Iterable[float]) -> float | None:
    return max(values, default=None)


def _us(value: float | None) -> str:
    return number_cell(value, ",.0f" if value is not None and value >= 100 else ".1f")
