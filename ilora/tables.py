"""Tables on the terminal, all in one style."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

TABLE_STYLE: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "show_edge": False,
    "pad_edge": False,
    "collapse_padding": True,
}


def print_pairs(pairs: Iterable[tuple[str, str]], *, title: str | None = None) -> None:
    """Print names and values to stdout in two columns; square brackets are text, not markup."""
    heading = None if title is None else Text(title)
    table = Table(title=heading, title_justify="left", show_header=False, **TABLE_STYLE)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(value))
    Console().print(table)


def figure(value: float | None, interval: Any = None) -> str:
    """``0.412 [0.370, 0.455]``; a dash where there is no value."""
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
