"""`ilora sweep`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from ilora.cli.assignments import parse_assignments
from ilora.cli.options import OutOption, example
from ilora.errors import InputError

T = TypeVar("T")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=example(
            "ilora sweep --data data/movielens --llm models/small --encoder models/sasrec "
            "--learning-rates 3e-4,1e-3,3e-3 --seeds 0,1,2 --out runs/sweep",
            "ilora sweep --config runs/ilora/settings.yaml --learning-rates 1e-3 --seeds 0,1,2,3,4 "
            "--methods ilora --decode free --out runs/seeds",
            "ilora sweep --config runs/ilora/settings.yaml --learning-rates 1e-3 --seeds 0,1,2 "
            "--experts 1,2,4,8 --out runs/experts",
            "ilora sweep --config runs/ilora/settings.yaml --learning-rates 1e-3 --seeds 0,1,2 "
            "--gates linear,random-init,token-collapsed,uniform --out runs/gates",
        )
    )(sweep)


def sweep(
    out: OutOption,
    learning_rates: Annotated[
        str, typer.Option(help="Highest learning rates, with commas between.")
    ],
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between.")] = "0,1,2",
    methods: Annotated[
        str, typer.Option(help="lora, ilora; each gets every rate and seed.")
    ] = "lora,ilora",
    experts: Annotated[
        str | None,
        typer.Option(help="Numbers of experts of iLoRA, with commas between; 1 is LoRA."),
    ] = None,
    gates: Annotated[
        str | None, typer.Option(help="Gates of iLoRA by name, with commas between.")
    ] = None,
    decode: Annotated[
        str, typer.Option(help="How to measure: free, constrained or rank.")
    ] = "rank",
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings that all runs share.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data folder.")] = None,
    llm: Annotated[
        str | None, typer.Option(help="Base language model: a hub id or the path of a folder.")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="Folder that `ilora encoder train` wrote.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; repeatable."),
    ] = None,
) -> None:
    """Give LoRA and iLoRA the same learning rates and seeds; choose on validation, then test.

    Run it again to go on after a stop, or with further rates, seeds, experts or gates to add runs.
    """
    from ilora.config import read_settings

    rates = _numbers("learning_rates", learning_rates, float)
    numbers = _numbers("seeds", seeds, int)
    changes: dict[str, Any] = {
        "data": None if data is None else str(data),
        "llm": llm,
        "encoder": None if encoder is None else str(encoder),
    } | parse_assignments(setting or [])
    settings = read_settings(config, changes)
    from ilora.cli.libraries import quiet_libraries

    try:
        with quiet_libraries():
            from ilora.sweep import run_sweep

            table = run_sweep(
                settings,
                out,
                learning_rates=rates,
                seeds=numbers,
                methods=_names(methods),
                experts=[] if experts is None else _numbers("experts", experts, int),
                gates=[] if gates is None else _names(gates),
                decode=cast(Any, decode),  # checked by the callee
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on from there") from None
    _print(table)
    typer.echo(f"wrote {out / 'sweep.json'}; next: ilora report {out / 'trials'}", err=True)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _numbers(name: str, text: str, kind: Callable[[str], T]) -> list[T]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{name} is {text!r}; give numbers with commas between, such as "
            f"{'1e-4,1e-3' if kind is float else '0,1,2'}"
        ) from None


def _print(table: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ilora.tables import TABLE_STYLE, counted, figure, fit_names, print_pairs

    trials = Table(title="Trials", title_justify="left", **TABLE_STYLE)
    heads = ("variant", "rate", "seed", "validation\nHitRatio@1", "validation\nloss", "seconds")
    for number, head in enumerate(heads):
        trials.add_column(
            head, justify="right" if number else "left", overflow="fold", no_wrap=number > 0
        )
    rows = []
    for trial in table["trials"]:
        val = trial.get("val", {})
        rows.append(
            (
                trial["variant"],
                f"{trial['learning_rate']:g}",
                str(trial["seed"]),
                figure(val.get("hit_ratio_at_1")) if val else trial["status"],
                figure(val.get("loss")),
                f"{trial['seconds']:,.0f}",
            )
        )
    console = Console()
    for cells in fit_names(heads, rows, console.width):
        trials.add_row(*(Text(cell) for cell in cells))
    console.print(trials)
    pairs = []
    for row in table["test"]:
        name = f"{row['variant']} at {row['learning_rate']:g}, {counted(len(row['seeds']), 'seed')}"
        for split in ("val", "test"):
            told = row[split]
            sd = "" if told["sd"] is None else f" ± {told['sd']:.3f}"
            pairs.append((f"{name}, {split}", f"{told['mean']:.3f}{sd} {_interval(told['ci95'])}"))
    for one in table["comparisons"]:
        text = f"{one['difference']:+.3f} {_interval(one['ci95'])}, p {one['permutation_p']:.4f}"
        pairs.append((f"{one['first']} minus {one['second']}, test", text))
    print_pairs(pairs, title="HitRatio@1: mean ± sd over seeds [95 %]")


def _interval(ci95: Any) -> str:
    return "" if ci95 is None else f"[{ci95[0]:.3f}, {ci95[1]:.3f}]"
