"""Stored results -> tables and pictures: `python -m benchmarks.report RESULTS.json --into FILE.md`.

A block of tables goes between the lines ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` of the
file; everything outside them stays as it is. Without ``--into`` all blocks are printed, and
pictures drawn only where ``--pictures`` says.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.plots import draw_peers, draw_ratios
from benchmarks.results import Line, read_results
from benchmarks.serving_tables import SERVING_BLOCKS
from benchmarks.tables import BLOCKS
from ilora.errors import InputError
from ilora.files import atomic_file
from ilora.markers import filled, how_to_place, unfilled

PICTURES = {  # block -> file, caption, and who draws it
    "linear": ("ratios.png", "Time over the frozen layer's, against T", draw_ratios),
    "peers": ("peers.png", "Time over the frozen layer's, geometric means", draw_peers),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON of --benchmark-json; later win")
    parser.add_argument("--into", type=Path, help="the Markdown file with the markers")
    parser.add_argument(
        "--pictures",
        type=Path,
        help="folder of the PNGs; default: performance/ beside it",
    )
    options = parser.parse_args(arguments)
    try:
        write_report(options.results, into=options.into, pictures=options.pictures)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write_report(
    results: Sequence[Path], *, into: Path | None = None, pictures: Path | None = None
) -> None:
    """Draw the pictures, and put the tables into ``into``; without it print them, and draw only
    where ``pictures`` says.

    Raises:
        InputError: the results cannot be read, or the file has no place for any of the blocks.
    """
    lines = read_results(results)
    beside = Path() if into is None else into.parent
    folder = pictures or (None if into is None else beside / "performance")
    blocks = _blocks(lines, folder, beside)
    if not blocks:
        raise InputError("the results hold no case; nothing to report")
    if into is None:
        print("\n\n".join(f"## {name}\n\n{block}" for name, block in blocks.items()))
        return
    try:
        before = into.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{into} cannot be read: {error.strerror}") from error
    after, homeless = filled(before, blocks)
    if len(homeless) == len(blocks):
        raise InputError(f"{into} has no place for a table; {how_to_place(homeless[0])}")
    for name in unfilled(before, blocks):
        print(f"note: the results have nothing for {name!r}; it stays as it was", file=sys.stderr)
    for name in homeless:
        print(f"note: {into} has no place for {name!r}; {how_to_place(name)}", file=sys.stderr)
    with atomic_file(into) as partial:
        partial.write_text(after, encoding="utf-8")


def _blocks(lines: Sequence[Line], folder: Path | None, beside: Path) -> dict[str, str]:
    blocks = {}
    for name, make in (BLOCKS | SERVING_BLOCKS).items():
        block = make(lines)
        if block is None:
            continue
        if folder and name in PICTURES:
            file, caption, draw = PICTURES[name]
            if draw(lines, folder / file):
                link = Path(os.path.relpath(folder / file, beside)).as_posix()
                block = f"![{caption}]({link})\n\n{block}"
        blocks[name] = block
    return blocks


if __name__ == "__main__":
    sys.exit(main())
