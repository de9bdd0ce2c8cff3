"""Tables on the terminal, all in one style."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

TABLE_STYLE: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "show_edge": False,
    "pad_edge": False,
    "collapse_padding": True,
}
GAP = 2  # columns between two cells of such a table
LEAST_NAME = 12  # columns that a name gets in the narrowest terminal


def counted(number: int, thing: str) -> str:
    """``1 seed``, ``1,234 seeds``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def break_name(name: str, width: int) -> str:
    """A name in lines of up to ``width``, parted after spaces, hyphens, slashes and underscores.

    ``ilora-token-collapsed-0.001`` at 12: ``ilora-token-``, ``collapsed-``, ``0.001``. A part that is
    longer than a line stays whole: the table folds it.
    """
    lines = [""]
    for part in re.findall(r"[^\s/_,-]*[\s/_,-]+|[^\s/_,-]+", name):
        if lines[-1] and cell_len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def fit_names(
    heads: Sequence[str], rows: Iterable[Sequence[str]], width: int
) -> list[tuple[str, ...]]:
    """Rows whose first cell, a name, is broken so that the figures beside it fit into ``width``."""
    rows = list(rows)
    figures = zip(*(cells[1:] for cells in (heads, *rows)), strict=True)
    taken = sum(GAP + max(map(_width, column)) for column in figures)
    room = max(LEAST_NAME, width - taken)
    return [(break_name(cells[0], room), *cells[1:]) for cells in rows]


def _width(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def print_pairs(pairs: Iterable[tuple[str, str]], *, title: str | None = None) -> None:
    """Print names and values to stdout in two columns; square brackets are text, not markup."""
    heading = None if title is None else Text(title)
    table = Table(title=heading, title_justify="left", show_header=False, **TABLE_STYLE)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    console = Console()
    pairs = list(pairs)
    longest = max((_width(value) for _, value in pairs), default=0)
    room = max(console.width // 2, console.width - longest - GAP)
    for name, value in pairs:
        table.add_row(Text(break_name(name, room)), Text(value))
    console.print(table)


def p_value(value: float | None) -> str:
    """``0.0312``, ``< .0001``; a dash where there is none."""
    if value is None:
        return "–"
    return "< .0001" if value < 1e-4 else f"{value:.4f}"


def figure(value: float | None, interval: Any = None) -> str:
    """``0.412 [0.370, 0.455]``; a dash where there is no value."""
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
