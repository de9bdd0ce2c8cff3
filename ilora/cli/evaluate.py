"""`ilora evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ilora.cli.options import DataOption, LlmOption, ModelOption, example, require_seed


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=example(
            "ilora evaluate --model runs/ilora --data data/movielens",
            "ilora evaluate --model runs/ilora --data data/movielens --split val --decode rank",
        )
    )(evaluate)


def evaluate(
    model: ModelOption,
    data: DataOption,
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    decode: Annotated[
        str, typer.Option(help="free: greedy answers; rank: candidates by likelihood.")
    ] = "free",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for metrics.json and predictions.jsonl. "
            "Default: evaluation/SPLIT-DECODE in the run folder."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Prompts (free) or candidates (rank) at once.")
    ] = 32,
    min_history: Annotated[
        int, typer.Option(help="Leave out rows with a shorter history; the paper uses 3.")
    ] = 3,
    max_rows: Annotated[int | None, typer.Option(help="Only the first so many rows.")] = None,
    llm: LlmOption = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the bootstrap intervals.", callback=require_seed)
    ] = 0,
) -> None:
    """Measure a model on the frozen candidates of a split."""
    from ilora.cli.libraries import quiet_libraries
    from ilora.errors import InputError

    if split not in ("val", "test"):
        raise InputError(f"split is {split!r}; only val and test have candidates: give one of them")
    with quiet_libraries():
        from ilora.data.folder import DataFolder
        from ilora.evaluation.evaluate import evaluate as measure
        from ilora.model_folder import find_model_folder, load_model

        path = find_model_folder(model)
        folder = DataFolder.open(data)
        loaded, config, catalog = load_model(path, llm=llm)
        if config.data.sha256 != folder.sha256:
            typer.echo(
                f"note: {data} is not the data that the model was trained on ({config.data.name}); "
                "it may have seen these users",
                err=True,
            )
        place = out or run_folder(path) / "evaluation" / _label(split, decode, max_rows)
        metrics = measure(
            loaded,
            folder,
            cast(Any, split),
            decode=cast(Any, decode),  # checked by the callee, whose message names the choices
            out=place,
            batch_size=batch_size,
            min_history=min_history,
            max_rows=max_rows,
            seed=seed,
            catalog=catalog,
        )
    _print_metrics(metrics, f"{model} on {folder.name}: {split}, {decode}")
    typer.echo(f"wrote {place / 'metrics.json'} and predictions.jsonl", err=True)


def run_folder(model: Path) -> Path:
    """The training run that a model folder lies in; a model moved elsewhere is its own."""
    above = model.resolve().parent
    return model.parent if (above / "settings.yaml").is_file() else model


def _label(split: str, decode: str, max_rows: int | None) -> str:
    """Part of a split never takes the place of the whole."""
    return f"{split}-{decode}" + ("" if max_rows is None else f"-first-{max_rows}")


def _print_metrics(metrics: dict[str, Any], title: str) -> None:
    from ilora.tables import figure, print_pairs

    names = {
        "hit_ratio_at_1": "HitRatio@1 (of all rows)",
        "hit_ratio_at_1_valid": "HitRatio@1 (of valid answers)",
        "valid_ratio": "ValidRatio",
        **{f"hr@{k}": f"HitRatio@{k}" for k in (3, 5, 10)},
        **{f"ndcg@{k}": f"NDCG@{k}" for k in (3, 5, 10)},
        "mrr": "MRR",
    }
    pairs = [
        (label, figure(metrics[key], metrics["ci95"][key]))
        for key, label in names.items()
        if key in metrics
    ]
    pairs += [
        ("intervals", "95 %, bootstrap over the rows"),
        ("rows", f"{metrics['n']:,}"),
        ("seconds", f"{metrics['seconds']:,.1f}"),
    ]
    print_pairs(pairs, title=title)
