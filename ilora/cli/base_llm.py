"""`ilora base-llm build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ilora.cli.options import OutOption, SeedOption, example

app = typer.Typer(
    no_args_is_help=True, help="Make a small language model where no model hub is reachable."
)


@app.callback()
def group() -> None:
    """Make a small language model where no model hub is reachable."""


@app.command(
    epilog=example(
        "ilora base-llm build --data data/synthetic --preset tiny --out models/tiny",
        "ilora base-llm build --data data/lastfm --data data/games --preset small "
        "--pretrain-steps 3000 --out models/small",
    )
)
def build(
    data: Annotated[
        list[Path], typer.Option(help="Data folder to learn titles from; can be given repeatedly.")
    ],
    out: OutOption,
    preset: Annotated[
        str, typer.Option(help="tiny (about 1 M parameters) or small (about 60 M).")
    ] = "tiny",
    pretrain_steps: Annotated[
        int, typer.Option(help="Steps of pre-training on text prompts; 0: none.")
    ] = 0,
    batch_size: Annotated[
        int | None, typer.Option(help="Prompts a step. Default: the preset's.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest learning rate. Default: the preset's.")
    ] = None,
    answer_weight: Annotated[
        float, typer.Option(help="Share of the loss that the answers have, 0 to 1.")
    ] = 0.5,
    ramp: Annotated[
        float, typer.Option(help="Share of the training over which prompts grow, 0 to 1.")
    ] = 0.7,
    disguised: Annotated[
        float,
        typer.Option(help="Share of prompts with titles of random tokens, to learn copying."),
    ] = 0.5,
    seed: SeedOption = 0,
) -> None:
    """Build a byte-pair tokenizer and a small Llama from the titles of data folders.

    Only training rows are read in pre-training. Any --llm option takes the result.
    """
    from ilora.cli.libraries import quiet_libraries
    from ilora.tables import print_pairs

    with quiet_libraries():
        from ilora.base_llm import build_base_llm
        from ilora.data.folder import DataFolder

        result = build_base_llm(
            [DataFolder.open(path) for path in data],
            out,
            preset=cast(Any, preset),  # checked by the callee, whose message names the choices
            seed=seed,
            pretrain_steps=pretrain_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            answer_weight=answer_weight,
            ramp=ramp,
            disguised=disguised,
        )
    pairs = [
        ("parameters", f"{result.num_parameters:,}"),
        ("vocabulary", f"{result.vocab_size:,}"),
    ]
    if result.pretraining is not None:
        pairs += [
            ("steps", f"{result.pretraining.steps:,}"),
            ("tokens", f"{result.pretraining.tokens:,}"),
            ("seconds", f"{result.pretraining.seconds:,.1f}"),
        ]
    pairs += [
        (f"right on {one['folder']}", f"{one['hits']} of {one['rows']} validation rows, greedily")
        for one in result.greedy
    ]
    print_pairs(pairs, title=f"Base language model {out}")
