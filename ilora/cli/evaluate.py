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
            "ilora evaluate --model runs/ilora --data data/movielens --decode constrained --beams 4",
        )
    )(evaluate)


def evaluate(
    model: ModelOption,
    data: DataOption,
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    decode: Annotated[
        str,
        typer.Option(
            help="free: greedy answers; constrained: nothing but candidates can be answered; "
            "rank: candidates by likelihood."
        ),
    ] = "free",
    beams: Annotated[int, typer.Option(help="Beams of constrained decoding; 1 is greedy.")] = 1,
    candidate_orders: Annotated[
        int,
        typer.Option(
            help="Ask in so many orders of the candidates, the frozen one first, and tell how much "
            "depends on the order."
        ),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for metrics.json and predictions.jsonl. "
            "Default: evaluation/SPLIT-DECODE in the run folder, with -beams-B and -orders-N "
            "where there are several, and -on-HASH for other data than the model's own."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts at once.")] = 32,
    min_history: Annotated[
        int, typer.Option(help="Leave out rows with a shorter history; the paper uses 3.")
    ] = 3,
    max_rows: Annotated[int | None, typer.Option(help="Only the first so many rows.")] = None,
    llm: LlmOption = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the bootstrap intervals and of shuffled orders.", callback=require_seed
        ),
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
        from ilora.evaluation.records import evaluation_folder
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
        label = _label(split, decode, beams, candidate_orders, max_rows)
        if config.data.sha256 != folder.sha256:
            label += f"-on-{folder.sha256[:8]}"
        place = out or evaluation_folder(run_folder(path), label)
        metrics = measure(
            loaded,
            folder,
            cast(Any, split),
            decode=cast(Any, decode),  # checked by the callee, whose message names the choices
            beams=beams,
            candidate_orders=candidate_orders,
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


def _label(split: str, decode: str, beams: int, orders: int, max_rows: int | None) -> str:
    """What differs in kind never takes another's place: part of a split, say, that of the whole."""
    parts = [split, decode]
    parts += ["beams", str(beams)] if beams != 1 else []
    parts += ["orders", str(orders)] if orders != 1 else []
    parts += ["first", str(max_rows)] if max_rows is not None else []
    return "-".join(parts)


MEASURES = {
    "hit_ratio_at_1": "HitRatio@1 (of all rows)",
    "hit_ratio_at_1_valid": "HitRatio@1 (of valid answers)",
    "valid_ratio": "ValidRatio",
    **{f"hr@{k}": f"HitRatio@{k}" for k in (1, 3, 5, 10)},
    **{f"ndcg@{k}": f"NDCG@{k}" for k in (3, 5, 10)},
    "mrr": "MRR",
}
READINGS = {  # the same rows measured in other ways, and what they are called
    "longest_match": "a title found in the answer",
    "as_reference": "as the paper's code reads answers",
    "by_sum": "ranked by the sum",
    "by_character": "ranked by character",
}


def _print_metrics(metrics: dict[str, Any], title: str) -> None:
    from ilora.tables import print_pairs

    pairs = _figures(metrics, [name for name in MEASURES if name != "hr@1"])
    if "candidate_orders" in metrics:
        pairs += _orders(metrics["candidate_orders"])
    pairs += [
        ("intervals", "95 %, bootstrap over the rows"),
        ("rows", f"{metrics['n']:,}"),
        ("seconds", f"{metrics['seconds']:,.1f}"),
    ]
    print_pairs(pairs, title=title)
    for name, heading in READINGS.items():
        if name in metrics:
            print_pairs(_figures(metrics[name], list(MEASURES)), title=f"the same, {heading}")


def _figures(metrics: dict[str, Any], names: list[str]) -> list[tuple[str, str]]:
    from ilora.tables import figure

    return [
        (MEASURES[name], figure(metrics[name], metrics["ci95"][name]))
        for name in names
        if name in metrics
    ]


def _orders(told: dict[str, Any]) -> list[tuple[str, str]]:
    from ilora.tables import figure

    spread = f"{told['mean']:.3f} ± {told['sd']:.3f} ({told['min']:.3f} to {told['max']:.3f})"
    return [
        (f"HitRatio@1 over {told['orders']} orders, mean ± sd", spread),
        ("rows whose answer depends on it", figure(told["changed"], told["changed_ci95"])),
    ]
