"""`ilora quickstart`."""

from __future__ import annotations

from pathlib import Path

import typer

from ilora.cli.options import OutOption, SeedOption, example


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=example("ilora quickstart --out runs/quickstart --seed 0"))(quickstart)


def quickstart(out: OutOption = Path("runs/quickstart"), seed: SeedOption = 0) -> None:
    """Do the whole job on made-up data with a tiny language model, on a CPU in minutes.

    Data, base model, encoder, LoRA and iLoRA with the same budget, one table and a report.
    """
    from ilora.cli.libraries import quiet_libraries

    with quiet_libraries():
        from ilora.quickstart import run_quickstart

        run_quickstart(out, seed=seed)
