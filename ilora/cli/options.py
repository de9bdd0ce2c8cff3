"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ilora.errors import InputError


def require_seed(seed: int) -> int:
    """What a seed option is checked by: random generators take no negative numbers."""
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    return seed


DataOption = Annotated[
    Path, typer.Option("--data", help="Data folder, as `ilora data build` makes it.")
]
ModelOption = Annotated[
    Path, typer.Option("--model", help="Run folder of `ilora train`, or the model folder in it.")
]
LlmOption = Annotated[
    str | None,
    typer.Option(
        "--llm", help="Where the base language model is now, if not where it was in training."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to write.")]
JsonOption = Annotated[
    Path | None, typer.Option("--out", help="JSON file to write the result to as well.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", help="Seed of everything random.", callback=require_seed)
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace a data folder that is already at --out.")
]


def example(*lines: str) -> str:
    """The end of a help text: one example a line."""
    return "\n\n".join(["Example:" if len(lines) == 1 else "Examples:", *lines])
