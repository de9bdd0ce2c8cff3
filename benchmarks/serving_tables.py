"""The tables of serving: a token a row through linear layers, and whole answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.cases import EAGERLY, PEERS
from benchmarks.markdown import (
    block,
    group_by_backend,
    group_by_place,
    markdown_table,
    number_cell,
    of_suite,
    place_cells,
    ratio_cell,
)
from benchmarks.results import Line, geometric_mean
from benchmarks.serving import NEW_TOKENS, PROMPT_TOKENS

OUR_LOOP = "static tensors"


def decode(lines: Sequence[Line]) -> str | None:
    """Ratios to cuBLAS in the same kind of graph, their means, and shares of the copy's bandwidth."""
    chosen = of_suite(lines, "decode")
    if not chosen:
        return None
    backends = list(group_by_backend(chosen))
    heads = ["over frozen layers", "T", *backends, "frozen µs, a layer"]
    heads += ["share of the copy's bandwidth, frozen", f"the same, {backends[0]}"]
    rows = []
    for place, mine in group_by_place(chosen).items():
        found = group_by_backend(mine)
        first = found.get(backends[0], [None])[0]
        any_line = mine[0]
        rows.append(
            [
                *place_cells(place),
                *(
                    ratio_cell(found[name][0]["ratio"] if name in found else None)
                    for name in backends
                ),
                number_cell(any_line["frozen_us"] / any_line["layers"], ".1f"),
                number_cell(any_line.get("frozen_copy_share"), ".2f"),
                number_cell(None if first is None else first.get("copy_share"), ".2f"),
            ]
        )
    for name, summary in (("geometric mean", geometric_mean), ("largest", max)):
        ratios = [
            summary([line["ratio"] for line in group_by_backend(chosen)[b]]) for b in backends
        ]
        rows.append([f"**{name}**", "", *map(ratio_cell, ratios), "", "", ""])
    line = chosen[0]
    note = (
        f"{line['layers']} layers with a weight each, one after another ({line['launch']}); "
        f"{line['dtype']}, R = {line['R']}, K = {line['K']}, every row with a gate of its own."
    )
    return block([markdown_table(heads, rows, text=1), note], chosen)


def generate(lines: Sequence[Line]) -> str | None:
    """Tokens a second, and over the frozen model's under this project's loop."""
    chosen = of_suite(lines, "generate")
    if not chosen:
        return None
    heads = [
        "answers of",
        "loop",
        "B",
        "tokens/s",
        "over the frozen model's",
        "peak above inputs, GiB",
    ]
    rows = []
    for (*_, batch), mine in group_by_place(chosen).items():
        mine.sort(key=lambda line: (line["launch"] == EAGERLY, line["backend"] in PEERS))
        one = mine[0]
        frozen = ["frozen model", OUR_LOOP, str(batch)]
        frozen += [f"{one['frozen_tokens_per_s']:,.0f}", ratio_cell(1.0)]
        rows.append([*frozen, _gib(one["frozen_peak_mib"])])
        rows += [
            [
                line["backend"],
                "transformers' generate" if line["launch"] == EAGERLY else OUR_LOOP,
                str(batch),
                f"{line['tokens_per_s']:,.0f}",
                ratio_cell(line["tokens_per_s"] / line["frozen_tokens_per_s"]),
                _gib(line["peak_mib"]),
            ]
            for line in mine
        ]
    line = chosen[0]
    note = (
        f"{line['layers']} layers, {line['dtype']}, R = {line['R']}, K = {line['K']}, all seven "
        f"projections adapted: {NEW_TOKENS} new tokens a row after a prompt of {PROMPT_TOKENS}, whose "
        "pass is included; every row with a gate of its own, but for PEFT's LoRA, which has none. A "
        "ratio is to the frozen model in the same run; where there were several runs, the frozen "
        "model's line is of the first contender's. "
        f"The loop over {OUR_LOOP} replays a CUDA graph a token where there is a GPU."
    )
    return block([markdown_table(heads, rows, text=2), note], chosen)


def _gib(mib: float | None) -> str:
    return number_cell(None if mib is None else mib / 1024, ".2f")


SERVING_BLOCKS: dict[str, Callable[[Sequence[Line]], str | None]] = {
    "decode": decode,
    "generate": generate,
}
