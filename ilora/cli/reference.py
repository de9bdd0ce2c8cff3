"""`ilora import reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ilora.cli.options import DataOption, OutOption, example

app = typer.Typer(no_args_is_help=True, help="Import weights of other code.")


@app.callback()
def group() -> None:
    """Import weights of other code."""


@app.command(
    epilog=example(
        "ilora import reference --checkpoint rec_model/SASRec_steam.pt --data data/steam "
        "--out models/llara-sasrec",
        "ilora import reference --checkpoint last.ckpt --data data/steam --llm models/llama-2-7b "
        "--encoder models/llara-sasrec --out models/ilora-steam",
    )
)
def reference(
    checkpoint: Annotated[
        Path, typer.Option(help="File of LLaRA or iLoRA: rec_model/*.pt or a Lightning .ckpt.")
    ],
    data: DataOption,
    out: OutOption,
    llm: Annotated[
        str | None, typer.Option(help="For an adapter: the language model it was trained on.")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="For an adapter: its recommender, imported before.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="For an adapter: alpha, if the file does not tell it.")
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(help="For a SASRec of tensors alone: its heads. Default: 1.")
    ] = None,
) -> None:
    """Import a recommender, or adapter, gate and projector, of the released code.

    The file is a pickle. It is read as data, by a reader that runs nothing and knows nothing but
    tensors, settings and the modules of that code; a file that wants anything else is refused. The
    report of what was mapped, renamed and skipped is printed and stands in import.json.
    """
    from ilora.cli.libraries import quiet_libraries
    from ilora.tables import figure, print_pairs

    with quiet_libraries():
        from ilora.reference_import import import_reference

        imported = import_reference(
            checkpoint,
            out,
            data=data,
            llm=llm,
            encoder=encoder,
            alpha=alpha,
            num_heads=num_heads,
        )
    pairs = imported.table()
    if ranking := imported.record.get("test"):
        pairs.append(("test hr@1", figure(ranking["hr@1"], ranking["ci95"]["hr@1"])))
    print_pairs(pairs, title=f"Imported as {imported.kind} into {out}")
