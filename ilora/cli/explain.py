"""`ilora explain gates`, `usage` and `gradients`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ilora.cli.options import DataOption, LlmOption, ModelOption, SeedOption, example

app = typer.Typer(no_args_is_help=True, help="Show what a model does with its users.")

SplitOption = Annotated[str, typer.Option(help="train, val or test: whose users.")]
OutsideOption = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Folder for the PNG and the CSV. Default: explain in the run folder."
    ),
]
HistoryOption = Annotated[
    int, typer.Option(help="Leave out rows with a shorter history; the paper uses 3.")
]
ByOption = Annotated[
    str,
    typer.Option(
        help="clusters: k-means over the encoder's representations; groups: those that made-up "
        "data know."
    ),
]
ClustersOption = Annotated[int, typer.Option(help="Number of clusters.")]


@app.callback()
def group() -> None:
    """Show what a model does with its users."""


@app.command(
    epilog=example(
        "ilora explain gates --model runs/ilora --data data/movielens",
        "ilora explain gates --model runs/ilora --data data/movielens --clusters 4 --out pictures",
    )
)
def gates(
    model: ModelOption,
    data: DataOption,
    out: OutsideOption = None,
    by: ByOption = "clusters",
    clusters: ClustersOption = 8,
    split: SplitOption = "test",
    min_history: HistoryOption = 3,
    seed: SeedOption = 0,
) -> None:
    """Who gets which experts, by cluster of users: gates.png and gates.csv."""
    from ilora.cli.libraries import quiet_libraries

    with quiet_libraries():
        from ilora.explain.gates import explain_gates, label_users

        encoder, found, folder = _mixtures(model, data, split, min_history)
        kind, labels = label_users(
            encoder, folder, found.rows, by=_checked(by), clusters=clusters, seed=seed
        )
        place = out or _explain_folder(model)
        means = explain_gates(found, kind, labels, place)
    from ilora.tables import print_pairs

    rows = [(name, "  ".join(f"{weight:.3f}" for weight in mean)) for name, mean in means.items()]
    print_pairs(rows, title=f"Mean weight of experts 1 to {len(next(iter(means.values())))}")
    _tell(place, "gates")


@app.command(epilog=example("ilora explain usage --model runs/ilora --data data/movielens"))
def usage(
    model: ModelOption,
    data: DataOption,
    out: OutsideOption = None,
    split: SplitOption = "test",
    min_history: HistoryOption = 3,
) -> None:
    """How much each expert is used: usage.png and usage.csv."""
    from ilora.cli.libraries import quiet_libraries

    with quiet_libraries():
        from ilora.explain.usage import explain_usage

        _, found, _ = _mixtures(model, data, split, min_history)
        place = out or _explain_folder(model)
        told = explain_usage(found, place)
    from ilora.tables import print_pairs

    mean, strongest = told.mean.mean(0), told.strongest.mean(0)
    pairs = [
        (f"expert {k}", f"mean weight {weight:.3f}, strongest for {share:.1%} of users")
        for k, (weight, share) in enumerate(zip(mean, strongest, strict=True), start=1)
    ]
    pairs += [
        ("experts a user has in effect", f"{told.per_user:.2f} of {len(mean)}"),
        ("experts used in effect", f"{told.overall:.2f} of {len(mean)}"),
        ("users", f"{len(found.rows):,}"),
    ]
    print_pairs(pairs, title=f"Expert usage of {model}, {split}")
    _tell(place, "usage")


@app.command(
    epilog=example(
        "ilora explain gradients --model runs/lora --data data/movielens",
        "ilora explain gradients --model runs/lora --data data/movielens --clusters 4 --users 64",
    )
)
def gradients(
    model: ModelOption,
    data: DataOption,
    out: OutsideOption = None,
    by: ByOption = "clusters",
    clusters: ClustersOption = 8,
    users: Annotated[int, typer.Option(help="At most so many users of each cluster.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Prompts at once.")] = 8,
    split: SplitOption = "train",
    min_history: HistoryOption = 3,
    llm: LlmOption = None,
    seed: SeedOption = 0,
) -> None:
    """Whether clusters of users pull a shared LoRA apart: gradients.png and gradients.csv."""
    from ilora.cli.libraries import quiet_libraries

    _require_split(split)
    with quiet_libraries():
        from ilora.data.folder import DataFolder
        from ilora.data.progress import with_slow_bar
        from ilora.explain.gates import label_users
        from ilora.explain.gradients import explain_gradients, gradient_similarity
        from ilora.model_folder import find_model_folder, load_model
        from ilora.runs import require_same_data

        folder = DataFolder.open(data)
        loaded, config, _ = load_model(find_model_folder(model), llm=llm)
        require_same_data(model, config, folder)
        if config.adapter.experts > 1:
            typer.echo(
                f"note: {model} has {config.adapter.experts} experts; the map of one LoRA that all "
                "users share is that of a model of method lora",
                err=True,
            )
        found = gradient_similarity(
            loaded,
            folder,
            lambda rows: label_users(
                loaded.encoder, folder, rows, by=_checked(by), clusters=clusters, seed=seed
            ),
            split=_checked(split),
            min_history=min_history,
            users=users,
            batch_size=batch_size,
            seed=seed,
            bar=lambda halves: with_slow_bar(halves, "gradients", len(halves)),
        )
        place = out or _explain_folder(model)
        explain_gradients(found, place)
    _print_similarity(found)
    _tell(place, "gradients")


def _mixtures(model: Path, data: Path, split: str, min_history: int) -> Any:
    """Encoder, mixtures of the users, data folder."""
    from ilora.data.folder import DataFolder
    from ilora.gate_map import user_mixtures
    from ilora.model_folder import find_model_folder
    from ilora.runs import load_gate

    _require_split(split)
    encoder, gate, folder = load_gate(find_model_folder(model), DataFolder.open(data))
    found = user_mixtures(encoder, gate, folder, _checked(split), min_history=min_history)
    return encoder, found, folder


def _require_split(split: str) -> None:
    from ilora.errors import InputError

    if split not in ("train", "val", "test"):
        raise InputError(f"split is {split!r}; it must be train, val or test")


def _checked(value: str) -> Any:
    """A choice that the callee checks, whose message names the others."""
    return value


def _explain_folder(model: Path) -> Path:
    from ilora.cli.evaluate import run_folder
    from ilora.model_folder import find_model_folder

    return run_folder(find_model_folder(model)) / "explain"


def _print_similarity(found: Any) -> None:
    import numpy as np

    from ilora.tables import print_pairs

    apart = ~np.eye(len(found.cosine), dtype=bool)
    between, halves, own = found.cosine[apart], found.halves[apart], found.halves.diagonal()
    pairs = [
        (f"between {found.kind}s", f"mean {between.mean():.3f}, lowest {between.min():.3f}"),
        (f"between halves of two {found.kind}s", f"mean {halves.mean():.3f}"),
        (f"between the halves of one {found.kind}", f"mean {own.mean():.3f}"),
        (f"{found.kind}s", f"{len(found.users)} of {min(found.users)} to {max(found.users)} users"),
    ]
    print_pairs(pairs, title="Cosine of gradients of the low-rank parameters")


def _tell(place: Path, name: str) -> None:
    typer.echo(f"wrote {place / f'{name}.png'} and {name}.csv", err=True)
