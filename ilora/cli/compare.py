"""`ilora compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ilora.cli.options import JsonOption, SeedOption, example

if TYPE_CHECKING:
    from ilora.comparison import Answers, Comparison


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=example(
            "ilora compare runs/lora runs/ilora",
            "ilora compare runs/lora runs/ilora runs/uniform --decode rank --measure mrr",
            "ilora compare runs/lora-0,runs/lora-1 runs/ilora-0,runs/ilora-1 --first-only",
        )
    )(compare)


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Training runs that were evaluated, or folders that `ilora evaluate` wrote; several "
            "with commas between, seeds say, count as one by their mean over each row.",
        ),
    ],
    split: Annotated[str, typer.Option(help="Which evaluation of the runs: val or test.")] = "test",
    decode: Annotated[
        str, typer.Option(help="Which evaluation of the runs: free, constrained or rank.")
    ] = "free",
    measure: Annotated[
        str, typer.Option(help="hit; of ranked candidates also mrr, ndcg, hr@3, ndcg@10, …")
    ] = "hit",
    first_only: Annotated[
        bool, typer.Option("--first-only", help="Compare the first with each other one alone.")
    ] = False,
    seed: SeedOption = 0,
    out: JsonOption = None,
) -> None:
    """Test whether runs differ on the same users: McNemar, paired permutation, Holm."""
    from ilora.comparison import compare as test
    from ilora.comparison import cut_encoders
    from ilora.files import write_json
    from ilora.tables import counted

    label = f"{split}-{decode}"
    names = _names(runs)
    folders = [_folders(run, label) for run in runs]
    methods = [_read(own, name, measure) for own, name in zip(folders, names, strict=True)]
    methods = cut_encoders(
        methods, [all(folder.name.endswith("-encoder") for folder in own) for own in folders]
    )
    found = test(methods, seed=seed, first_only=first_only)
    # A run can be the folder of any evaluation, whatever the label says.
    told = ", ".join(sorted({folder.name for own in folders for folder in own}))
    _print(found, f"{told}, {measure}: {counted(found[0].n, 'row')}")
    if out is not None:
        write_json(
            out,
            {
                "evaluation": told,
                "measure": measure,
                "seed": seed,
                "comparisons": [one.to_dict() for one in found],
            },
        )


def _names(runs: list[str]) -> list[str]:
    """The last part of each path, or the whole where that would not tell the runs apart."""
    short = [", ".join(Path(part.strip()).name for part in run.split(",")) for run in runs]
    return short if len(set(short)) == len(runs) else runs


def _folders(run: str, label: str) -> list[Path]:
    from ilora.comparison import find_evaluation

    return [find_evaluation(Path(part.strip()), label) for part in run.split(",")]


def _read(folders: list[Path], name: str, measure: str) -> Answers:
    from ilora.comparison import average, read_answers

    return average([read_answers(folder, name, measure) for folder in folders], name)


def _print(found: list[Comparison], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ilora.tables import TABLE_STYLE, fit_names

    table = Table(title=Text(title), title_justify="left", **TABLE_STYLE)
    heads = (
        "runs",
        "mean",
        "difference\n[95 %]",
        "right\nalone",
        "p\nMcNemar",
        "p\npermuted",
        "p\nHolm",
    )
    for number, head in enumerate(heads):
        table.add_column(
            head, justify="right" if number else "left", overflow="fold", no_wrap=number > 0
        )
    console = Console()
    rows = [row for one in found for row in _rows(one)]
    for number, cells in enumerate(fit_names(heads, rows, console.width)):
        table.add_row(*(Text(cell) for cell in cells), end_section=number % 2 == 1)
    console.print(table)


def _rows(one: Comparison) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A row for each of the two, so that a name of several lines stays beside its own figures."""
    from ilora.tables import figure, p_value

    alone = ["–" if count is None else f"{count:,}" for count in (one.only_first, one.only_second)]
    p_values = [p_value(p) for p in (one.mcnemar_p, one.permutation_p, one.holm)]
    low, high = one.ci95
    return (
        (one.first, figure(one.mean_first), f"{one.difference:+.3f}", alone[0], *p_values),
        (one.second, figure(one.mean_second), f"[{low:+.3f}, {high:+.3f}]", alone[1], "", "", ""),
    )
