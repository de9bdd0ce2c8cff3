"""The root of the command line and `main`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ilora.cli import (
    base_llm,
    compare,
    data,
    doctor,
    encoder,
    evaluate,
    explain,
    quickstart,
    recommend,
    reference,
    report,
    study,
    sweep,
    train,
)
from ilora.cli.failures import CommandGroup
from ilora.cli.options import example

# As a newcomer needs them, from looking around to comparing results.
ORDER = (
    "doctor",
    "quickstart",
    "data",
    "base-llm",
    "encoder",
    "import",
    "train",
    "sweep",
    "study",
    "evaluate",
    "recommend",
    "compare",
    "report",
    "explain",
)


class Commands(CommandGroup):
    """All commands, listed in that order."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    name="ilora",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a defect's traceback, plain, can be copied into a report
    epilog=example("ilora quickstart --out runs/quickstart"),
)
doctor.add_to(app)
quickstart.add_to(app)
app.add_typer(data.app, name="data")
app.add_typer(base_llm.app, name="base-llm")
app.add_typer(encoder.app, name="encoder")
app.add_typer(reference.app, name="import")
train.add_to(app)
sweep.add_to(app)
app.add_typer(study.app, name="study")
evaluate.add_to(app)
recommend.add_to(app)
compare.add_to(app)
report.add_to(app)
app.add_typer(explain.app, name="explain")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"ilora {version('ilora')}")
        except PackageNotFoundError:
            typer.echo("ilora, run from its source without being installed")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Personalise a language model for sequential recommendation with instance-wise LoRA."""


def main() -> None:
    """The entry point of the program `ilora`."""
    app()
