"""Progress bars: on stderr, on a terminal only, gone when done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import rich.progress
from rich.console import Console

T = TypeVar("T")
FEW = 5_000  # rows written or drawn well within two seconds: no bar


def with_bar(values: Sequence[T], description: str) -> Iterable[T]:
    """Iterate over rows, showing how far it got where there are many."""
    return values if len(values) <= FEW else with_slow_bar(values, description, len(values))


@contextmanager
def open_with_bar(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, showing how much of it has been read."""
    console = Console(stderr=True)
    with rich.progress.open(
        path,
        "rb",
        description=f"reading {path.name}",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as file:
        yield file


def with_slow_bar(values: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Iterate over ``total`` values that take long, showing how far it got."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return values
    return rich.progress.track(values, description, total, console=console, transient=True)
