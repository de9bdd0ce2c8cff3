"""`ilora encoder train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ilora.cli.assignments import parse_assignments
from ilora.cli.options import DataOption, OutOption, SeedOption, example

app = typer.Typer(no_args_is_help=True, help="Train sequence encoders.")


@app.callback()
def group() -> None:
    """Train sequence encoders."""


@app.command(
    epilog=example(
        "ilora encoder train --data data/movielens --encoder sasrec --out models/sasrec",
        "ilora encoder train --data data/movielens --encoder gru4rec --out models/gru4rec",
        "ilora encoder train --data data/movielens --set dropout=0.5 --set num_blocks=1 "
        "--out models/sasrec-1",
    )
)
def train(
    data: DataOption,
    out: OutOption,
    encoder: Annotated[
        str,
        typer.Option("--encoder", "--name", help="Which encoder: sasrec, gru4rec or caser."),
    ] = "sasrec",
    hidden_size: Annotated[int, typer.Option(help="Width of item and history vectors.")] = 64,
    learning_rate: Annotated[
        float | None, typer.Option(help="Adam's, constant. Default: 1e-3.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="About so many targets a step. Default: 256.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Decoupled weight decay. Default: 0.1.")
    ] = None,
    max_epochs: Annotated[
        int | None, typer.Option(help="At most so many epochs. Default: 60.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many epochs without a better validation NDCG. Default: 10."
        ),
    ] = None,
    min_history: Annotated[
        int | None,
        typer.Option(help="Leave out validation and test rows with a shorter history. Default: 3."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the encoder; repeatable."),
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Train an encoder, stop early on validation rows, measure it on the frozen candidates."""
    options = parse_assignments(option or [])
    asked: dict[str, Any] = {
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "max_epochs": max_epochs,
        "patience": patience,
        "min_history": min_history,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    from ilora.cli.libraries import quiet_libraries

    with quiet_libraries():
        from ilora.data.folder import DataFolder
        from ilora.encoders import EncoderTraining, train_encoder

        result = train_encoder(
            DataFolder.open(data),
            out,
            name=encoder,
            seed=seed,
            hidden_size=hidden_size,
            options=options,
            training=EncoderTraining(**given),
        )
    _print_metrics(out, result.metrics)


def _print_metrics(out: Path, metrics: dict[str, Any]) -> None:
    from ilora.tables import figure, print_pairs

    pairs = [
        ("parameters", f"{metrics['num_parameters']:,}"),
        ("best epoch", f"{metrics['best_epoch']} of {metrics['epochs']}"),
        ("seconds", f"{metrics['seconds']:,.1f}"),
    ]
    for split in ("val", "test"):
        ranking = metrics[split]
        pairs.append((f"{split} rows", f"{ranking['n']:,}"))
        pairs += [
            (f"{split} {key}", figure(ranking[key], ranking["ci95"][key]))
            for key in ("hr@1", "hr@5", "ndcg@5", "mrr")
        ]
    pairs.append(("intervals", "95 %, bootstrap over the rows"))
    print_pairs(pairs, title=f"Encoder {out}")
