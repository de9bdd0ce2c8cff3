"""`ilora report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ilora.cli.options import OutOption, example


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=example(
            "ilora report runs/lora runs/ilora models/sasrec --out runs/report",
            "ilora report runs --data data/movielens --out runs/report",
            "ilora report runs --title 'MovieLens, three seeds'",
        )
    )(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Training runs and encoders, or folders that hold some."
        ),
    ],
    out: OutOption = Path("report"),
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "Report",
    data: Annotated[
        Path | None,
        typer.Option(help="Data folder of the runs, to have popularity as a row beside them."),
    ] = None,
) -> None:
    """Compare runs in one table with pictures: report.md, report.json, PNG files."""
    from ilora.cli.libraries import quiet_libraries

    with quiet_libraries():
        from ilora.report import print_table, write_report
        from ilora.runs import collect_runs

        found = collect_runs(runs, data)
        path = write_report(
            out,
            title=title,
            rows=found.rows,
            curves=found.curves,
            gates=found.gates,
            notes=found.notes,
            chance=found.chance,
            seeds=found.seeds,
        )
    print_table(found.rows)
    if found.seeds:
        from ilora.tables import print_pairs

        pairs = [
            (row.name, f"{row.mean:.3f} ± {row.sd:.3f} over {len(row.seeds)} seeds")
            for row in found.seeds
        ]
        print_pairs(pairs, title="HitRatio@1, mean ± sd")
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"wrote {path}", err=True)
