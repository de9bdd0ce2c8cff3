"""`ilora study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ilora.cli.options import OutOption, example

app = typer.Typer(no_args_is_help=True, help="Methods compared on several data sets and seeds.")
ConfigOption = Annotated[Path, typer.Option(help="YAML file of the study.")]
RootOption = Annotated[
    Path, typer.Option("--data-root", help="Folder of the data folders that the study names.")
]


@app.callback()
def group() -> None:
    """Methods compared on several data sets and seeds."""


@app.command(
    epilog=example(
        "ilora study run --config configs/studies/evidence.yaml --data-root data --out runs/evidence",
        "ilora study run --config configs/studies/evidence.yaml --data-root data --out runs/again "
        "--only movielens/ilora-0.001-seed0",
    )
)
def run(
    config: ConfigOption,
    data_root: RootOption,
    out: OutOption,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side on each GPU.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each run.")] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A single run by name, with what it needs; repeatable."),
    ] = None,
) -> None:
    """Make the language model and the encoders, train, measure, compare; go on after a stop.

    All GPUs in sight are used. Writes study.json, from which `ilora study tables` makes the tables.
    """
    from ilora.cli.libraries import quiet_libraries

    with quiet_libraries():
        from ilora.studies.plan import Study, read_study
        from ilora.studies.run import run_study
        from ilora.studies.workers import FAILED
        from ilora.tables import figure, print_pairs

        study = Study(read_study(config), data_root, out)
        results = run_study(study, jobs=jobs, threads=threads, only=only or [])
        if only:
            pairs = [
                (f"{name.split()[0]}, {label}", figure(figures["hit_ratio_at_1"]))
                for name, told in results.items()
                if "/" in name and FAILED not in told
                for label, figures in told.items()
            ]
            print_pairs(pairs, title="HitRatio@1")
        elif study.base.is_dir():
            from ilora.studies.results import STUDY_FILE, collect

            collect(study)
            typer.echo(f"wrote {out / STUDY_FILE}", err=True)
    if failed := [name for name, told in results.items() if FAILED in told]:
        from ilora.tables import counted

        typer.echo(f"{counted(len(failed), 'task')} failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@app.command(
    epilog=example(
        "ilora study collect --config configs/studies/evidence.yaml --data-root data --out runs/evidence"
    )
)
def collect(config: ConfigOption, data_root: RootOption, out: OutOption) -> None:
    """Write study.json from what a study has measured so far."""
    from ilora.cli.libraries import quiet_libraries

    with quiet_libraries():
        from ilora.studies.plan import Study, read_study
        from ilora.studies.results import STUDY_FILE
        from ilora.studies.results import collect as collect_study

        collect_study(Study(read_study(config), data_root, out))
    typer.echo(f"wrote {out / STUDY_FILE}", err=True)


@app.command(epilog=example("ilora study tables docs/results/evidence.json --into docs/results.md"))
def tables(
    file: Annotated[Path, typer.Argument(help="study.json of a study.")],
    into: Annotated[
        Path | None, typer.Option(help="Markdown page with the markers; default: print all.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="PNG with HitRatio@1 of all methods; default: none.")
    ] = None,
) -> None:
    """Make the tables of a study, and its picture."""
    from ilora.studies.tables import blocks, read_table, write_into

    table = read_table(file)
    if picture is not None:
        from ilora.studies.picture import draw_study

        draw_study(table, picture)
        typer.echo(f"wrote {picture}", err=True)
    if into is not None:
        write_into(into, table)
        return
    for name, block in blocks(table).items():
        typer.echo(f"## {name}\n\n{block}\n")
