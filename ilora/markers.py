"""Blocks of Markdown between the lines ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` of a page."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ilora.errors import InputError


def filled(text: str, blocks: Mapping[str, str]) -> tuple[str, list[str]]:
    """Put each block between its markers; also return the names that have none.

    Raises:
        InputError: a marker without its partner, or one that is there twice.
    """
    homeless = []
    for name, block in blocks.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        counts = text.count(begin), text.count(end)
        if counts == (0, 0):
            homeless.append(name)
            continue
        if counts != (1, 1) or text.index(end) < text.index(begin):
            raise InputError(
                f"the markers of {name!r} are there {counts[0]} and {counts[1]} times, or in the "
                f"wrong order; {how_to_place(name)}"
            )
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{block}\n{end}{rest.partition(end)[2]}"
    return text, homeless


def unfilled(text: str, blocks: Mapping[str, str]) -> list[str]:
    """The names of the markers in a page that there is no block for."""
    return [name for name in re.findall(r"<!-- begin (.+?) -->", text) if name not in blocks]


def how_to_place(name: str) -> str:
    """What to write where a page has no place for a block."""
    return f"write `<!-- begin {name} -->` and, on a later line, `<!-- end {name} -->` once"
