"""Progress bars of the data rooms: on stderr, on a terminal only, gone when done."""

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
    """Iterate over ``values``, showing how far it got where there are many."""
    console = Console(stderr=True)
    if len(values) <= FEW or not console.is_terminal:
        return values
    return rich.progress.track(values, description, console=console, transient=True)


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


def files_with_bar(paths: Sequence[T], description: str) -> Iterable[T]:
    """Iterate over a few files, each of which takes seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return paths
    return rich.progress.track(paths, description, console=console, transient=True)
