"""A study's main figures in one picture: HitRatio@1 of every method on every data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ilora.errors import InputError
from ilora.plots import Bar, draw_bars
from ilora.studies.plan import METHODS
from ilora.sweep import MEASURE


def draw_study(table: dict[str, Any], file: Path) -> None:
    """Bars with their intervals, by the likelihood of the candidates; what guesses has none.

    Raises:
        InputError: the study has no figures yet.
    """
    bars = [
        Bar(
            f"{told['name']}: {row['name']}",
            row["rank"][MEASURE],
            tuple(row["rank"]["ci95"]),
            row["name"] if row["name"] in METHODS else None,
        )
        for told in table["data"].values()
        for row in told["rows"]
        if "ci95" in row["rank"]
    ]
    if not bars:
        raise InputError("file: the study holds no figures yet; let it go on, and collect again")
    chance = {row["rank"][MEASURE] for t in table["data"].values() for row in t["rows"][:1]}
    draw_bars(bars, METHODS, file, chance=chance.pop() if len(chance) == 1 else None)
