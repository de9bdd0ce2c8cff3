"""`ilora train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ilora.cli.assignments import parse_assignments
from ilora.cli.options import OutOption, example


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=example(
            "ilora train --data data/movielens --llm models/small --encoder models/sasrec "
            "--method ilora --out runs/ilora",
            "ilora train --config runs/ilora/settings.yaml --method lora --out runs/lora",
            "ilora train --config runs/ilora/settings.yaml --gate top-k --set adapter.gate.k=1 "
            "--out runs/top-1",
            "ilora train --out runs/ilora --resume",
        )
    )(train)


def train(
    out: OutOption,
    data: Annotated[Path | None, typer.Option(help="Data folder.")] = None,
    llm: Annotated[
        str | None, typer.Option(help="Base language model: a hub id or the path of a folder.")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="Folder that `ilora encoder train` wrote.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="ilora; lora: one expert, no gate; none: the language model as it is. "
            "Default: ilora."
        ),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(
            help="linear, mlp, top-k, noisy, dropout, per-layer, uniform, random-init, "
            "token-collapsed or residual. Default: linear."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; options given here go before it.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its settings.")
    ] = False,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the training rows. Default: 5.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Optimiser steps, instead of --epochs.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Prompts in an optimiser step. Default: 128.")
    ] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Prompts in memory at once. Default: all of the step.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest learning rate. Default: 1e-4.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Total rank over all experts. Default: 8.")
    ] = None,
    experts: Annotated[int | None, typer.Option(help="Number of experts. Default: 4.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other setting, such as training.curriculum=hybrid; repeatable.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random. Default: 0.")] = None,
) -> None:
    """Personalise a frozen language model with instance-wise LoRA.

    Settings, log, checkpoints, TensorBoard curves and the model go to --out.
    """
    changes: dict[str, Any] = {
        "data": None if data is None else str(data),
        "llm": llm,
        "encoder": None if encoder is None else str(encoder),
        "seed": seed,
        "adapter.method": method,
        "adapter.gate": gate,
        "adapter.rank": rank,
        "adapter.num_experts": experts,
        "training.epochs": epochs,
        "training.max_steps": max_steps,
        "training.batch_size": batch_size,
        "training.micro_batch_size": micro_batch_size,
        "training.learning_rate": learning_rate,
    } | parse_assignments(setting or [])
    _run(out, _settings_file(config, out, resume), changes, resume)


def _settings_file(config: Path | None, out: Path, resume: bool) -> Path | None:
    """A resumed run knows its own settings; only others would have to be told."""
    recorded = out / "settings.yaml"
    return recorded if resume and config is None and recorded.is_file() else config


def _run(out: Path, file: Path | None, changes: dict[str, Any], resume: bool) -> None:
    from ilora.config import read_settings

    settings = read_settings(file, changes)  # before the seconds that the imports below take
    from ilora.cli.libraries import quiet_libraries

    try:
        with quiet_libraries():
            from ilora.training import train as train_recommender

            result = train_recommender(settings, out, resume=resume)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; `ilora train --out {out} --resume` goes on from the last checkpoint"
        ) from None
    if int(os.environ.get("RANK", "0")) != 0:  # under torchrun the first process speaks for all
        return
    if result.was_finished:
        typer.echo(f"note: the run in {out} had finished, and nothing was trained", err=True)
    _print_record(out, settings.data, result.record)


def _print_record(out: Path, data: Path, record: dict[str, Any]) -> None:
    from ilora.tables import print_pairs

    pairs = [
        ("method", record["method"]),
        ("training rows", f"{record['train_rows']:,}"),
        ("steps", f"{record['steps']:,}"),
        ("seconds", f"{record['seconds']:,.1f} on {record['device']}"),
        ("trainable parameters", f"{record['trainable_parameters']:,}"),
    ]
    for name, key in (("training loss", "loss"), ("validation loss", "eval_loss")):
        values = [entry[key] for entry in record["log"] if key in entry]
        if values:
            pairs.append((name, f"{values[-1]:.4f} nats an answer token, the last measured"))
    print_pairs(pairs, title=f"Run {out}")
    typer.echo(f"next: ilora evaluate --model {out} --data {data}", err=True)
