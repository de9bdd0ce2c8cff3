"""A study's figures as Markdown: the tables between the markers of a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilora.errors import InputError
from ilora.evaluation.paired import holm
from ilora.evaluation.statistics import seeds_apart
from ilora.files import atomic_file, read_json
from ilora.markers import filled, how_to_place
from ilora.studies.plan import METHODS
from ilora.tables import p_value

HIT = "hit_ratio_at_1"
KEYS = ("settings", "base", "versions", "devices", "date", "data", "parts", "comparisons")


def read_table(file: Path) -> dict[str, Any]:
    """Read a ``study.json``.

    Raises:
        InputError: the file is not one.
    """
    try:
        table = read_json(file)
    except ValueError as error:  # no JSON, or no text
        raise InputError(f"file: {file} is not JSON ({error}); give a study's study.json") from None
    if not isinstance(table, dict) or not set(KEYS) <= table.keys():
        raise InputError(f"file: {file} holds no study; give the study.json that one wrote")
    return table


def blocks(table: dict[str, Any]) -> dict[str, str]:
    """Name -> Markdown: ``setup main tuning experts gates tests seeds rows``."""
    told = {"setup": _setup(table), "main": _main(table), "tuning": _tuning(table)}
    for part, content in table["parts"].items():
        told[part] = _methods(content["data"], content["rows"])
    return told | {"tests": _tests(table), "seeds": _seeds(table), "rows": _rows(table)}


def write_into(page: Path, table: dict[str, Any]) -> None:
    """Put each block between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` of a page.

    Raises:
        InputError: the page cannot be read, or has no place for any block.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"into: {page} cannot be read ({error.strerror}); give a page") from None
    told = blocks(table)
    text, homeless = filled(text, told)
    if len(homeless) == len(told):
        raise InputError(f"into: {page} has no place for a table; {how_to_place('main')}")
    with atomic_file(page) as partial:
        partial.write_text(text, encoding="utf-8")


def _setup(table: dict[str, Any]) -> str:
    base, settings = table["base"], table["settings"]
    training = base["pretraining"] or {"steps": 0, "tokens": 0, "seconds": 0.0}
    disguised = settings["base"]["disguised"]
    lines = [
        (
            "language model",
            f"{base['num_parameters']:,} parameters, vocabulary {base['vocab_size']:,}, "
            f"{training['steps']:,} steps, {training['tokens']:,} tokens, {training['seconds']:.0f} s, "
            f"read the training rows of {', '.join(folder['name'] for folder in base['folders'])}"
            + (
                f", {disguised:.0%} of the prompts with titles of random tokens"
                if disguised
                else ""
            ),
        ),
        (
            "adapters",
            f"rank {settings['adapter']['rank']}, alpha {settings['adapter']['alpha']:g}, "
            f"dropout {settings['adapter']['dropout']:g}, {settings['training']['max_steps']} steps of "
            f"{settings['training']['batch_size']} prompts",
        ),
        ("device", ", ".join(table["devices"])),
        ("date", table["date"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in table["versions"].items())),
    ]
    return _table(["", ""], [list(line) for line in lines])


def _main(table: dict[str, Any]) -> str:
    parts = []
    for data, told in table["data"].items():
        n = told["rows"][1]["rank"]["n"]
        read = "has read its training rows" if told["read_by_llm"] else "has read no row of it"
        heading = f"**{data}**, n = {n:,}; the language model {read}"
        parts.append(f"{heading}\n\n{_methods(data, told['rows'], heading=False)}")
    return "\n\n".join(parts)


def _methods(data: str, rows: Sequence[dict[str, Any]], *, heading: bool = True) -> str:
    head = [
        "",
        "rate",
        "rank: HR@1",
        "sd",
        "NDCG@5",
        "free: HR@1",
        "sd",
        "ValidRatio",
        "by seed (rank)",
    ]
    lines = []
    for row in rows:
        rank, free = row["rank"], row.get("free", {})
        lines.append(
            [
                row["name"],
                f"{row['learning_rate']:g}"
                if "learning_rate" in row and row["name"] != "un-adapted LLM"
                else "",
                _interval(rank),
                _figure(rank.get("sd")),
                _figure(rank.get("ndcg@5")),
                _interval(free),
                _figure(free.get("sd")),
                _figure(free.get("valid_ratio")),
                ", ".join(_figure(value) for value in rank.get("seeds", {}).values()),
            ]
        )
    body = _table(head, lines)
    return f"On {data}:\n\n{body}" if heading else body


def _tuning(table: dict[str, Any]) -> str:
    rates = [f"{rate:g}" for rate in table["settings"]["learning_rates"]]
    lines = []
    for data, told in table["data"].items():
        for method, figures in told["tuning"].items():
            chosen = told["chosen"].get(method)
            cells = [
                f"**{_figure(figures.get(rate))}**"
                if chosen is not None and f"{chosen:g}" == rate
                else _figure(figures.get(rate))
                for rate in rates
            ]
            lines.append([data, method, *cells])
    return _table(["data", "method", *rates], lines)


def _tests(table: dict[str, Any]) -> str:
    lines = []
    for family, members in table["comparisons"].items():
        for one in members:
            p = one["permutation_p"] if one["mcnemar_p"] is None else one["mcnemar_p"]
            lines.append(
                [
                    family,
                    f"{one['first']} − {one['second']}",
                    f"{one['n']:,}",
                    _difference(one["difference"], one["ci95"]),
                    p_value(p),
                    p_value(one["holm"]),
                ]
            )
    return _table(["family", "difference", "n", "HR@1 [95 %]", "p", "Holm"], lines)


def _seeds(table: dict[str, Any]) -> str:
    """Welch's test over the seeds of iLoRA and LoRA, Holm-corrected over all lines."""
    lines, p_values = [], []
    for data, told in table["data"].items():
        rows = {row["name"]: row for row in told["rows"]}
        for decode in ("rank", "free"):
            figures = [
                list(rows[name][decode]["seeds"].values()) for name in METHODS if name in rows
            ]
            apart = seeds_apart(figures[1], figures[0]) if len(figures) == len(METHODS) else None
            if apart is None:
                continue
            by_seed = " against ".join(", ".join(map(_figure, each)) for each in reversed(figures))
            lines.append([data, decode, by_seed, _difference(apart.difference, apart.ci95)])
            p_values.append(apart.p)
    corrected = holm(p_values)
    for line, p, h in zip(lines, p_values, corrected, strict=True):
        line += [p_value(p), p_value(h)]
    return _table(
        ["data", "", "iLoRA against LoRA, by seed", "difference [95 %]", "p", "Holm"], lines
    )


def _rows(table: dict[str, Any]) -> str:
    lines = [
        [run, f"{seconds:.0f}"]
        for told in (*table["data"].values(), *table["parts"].values())
        for row in told["rows"]
        if "runs" in row
        for run, seconds in zip(row["runs"], row["seconds"], strict=True)
    ]
    unique = {line[0]: line for line in lines}
    return _table(["run", "training seconds"], list(unique.values()))


def _interval(told: dict[str, Any]) -> str:
    if HIT not in told:
        return ""
    if "ci95" not in told:
        return _figure(told[HIT])
    low, high = told["ci95"]
    return f"{_figure(told[HIT])} [{_figure(low)}, {_figure(high)}]"


def _difference(value: float, interval: Sequence[float]) -> str:
    return f"{value:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"


def _figure(value: float | None) -> str:
    return (
        ""
        if value is None
        else f"{value:.3f}".replace("0.", ".", 1)
        if value < 1
        else f"{value:.3f}"
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
