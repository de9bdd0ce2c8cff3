"""Lines of results in groups, and as cells of Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from benchmarks.results import Line

Key = TypeVar("Key")
Place = tuple[int, int, int]  # d_out, d_in, T

NOTHING = "–"


def of_suite(lines: Sequence[Line], suite: str) -> list[Line]:
    return [line for line in lines if line["suite"] == suite]


def group_by_backend(lines: Sequence[Line]) -> dict[str, list[Line]]:
    return dict(grouped(lines, lambda line: str(line["backend"])))


def group_by_place(lines: Sequence[Line]) -> dict[Place, list[Line]]:
    places = list(dict.fromkeys(line.place for line in lines))
    return {place: [line for line in lines if line.place == place] for place in places}


def grouped(lines: Sequence[Line], key: Callable[[Line], Key]) -> list[tuple[Key, list[Line]]]:
    groups: dict[Key, list[Line]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return list(groups.items())


def block(parts: Sequence[str], lines: Sequence[Line]) -> str | None:
    runs = dict.fromkeys(str(line.run) for line in lines)
    return "\n\n".join([*parts, *runs]) if parts and lines else None


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, text: int) -> str:
    """A table whose first ``text`` columns are words and whose others are numbers."""
    rule = ["---"] * text + ["---:"] * (len(heads) - text)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def place_cells(place: Place) -> list[str]:
    d_out, d_in, tokens = place
    return [f"{d_out}×{d_in}", str(tokens)]


def ratio_cell(value: float | None) -> str:
    return number_cell(value, ".3f")


def number_cell(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)
