"""`ilora doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from ilora.cli.options import JsonOption, example


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=example("ilora doctor", "ilora doctor --json > machine.json"))(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: JsonOption = None,
) -> None:
    """Say what this machine has, which backend will run, and why the others will not."""
    import json

    from ilora.doctor import diagnose
    from ilora.files import write_json
    from ilora.tables import print_pairs

    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        print_pairs(diagnosis.table())
    if out is not None:
        write_json(out, diagnosis.to_dict())
