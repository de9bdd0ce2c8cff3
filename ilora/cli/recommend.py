"""`ilora recommend`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from ilora.cli.options import JsonOption, LlmOption, ModelOption, example

if TYPE_CHECKING:
    from ilora.data.catalog import Catalog
    from ilora.recommend import Recommendation


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=example(
            "ilora recommend --model runs/ilora --history 3,17,256",
            "ilora recommend --model runs/ilora --history source:B0009VXBAQ,B000099SX2",
            'ilora recommend --model runs/ilora --history "Toy Story" --history "Heat" --top 3',
        )
    )(recommend)


def recommend(
    model: ModelOption,
    history: Annotated[
        list[str],
        typer.Option(
            help="Item ids of items.csv, oldest first, with commas between; ids of your own data after "
            "source:; or one title, repeatedly. A title of digits is written title:1984."
        ),
    ],
    candidates: Annotated[
        list[str] | None,
        typer.Option(help="Items to choose from, as --history. Default: the encoder's best 20."),
    ] = None,
    top: Annotated[int, typer.Option(help="How many to show.")] = 5,
    llm: LlmOption = None,
    out: JsonOption = None,
) -> None:
    """Recommend the next item for a history, and show which experts had a say."""
    from ilora.cli.libraries import quiet_libraries
    from ilora.files import write_json

    with quiet_libraries():
        from ilora.item_names import parse_items
        from ilora.model_folder import load_model
        from ilora.recommend import recommend as find

        loaded, config, catalog = load_model(model, llm=llm)
        items = parse_items("history", history, catalog)
        choices = None if candidates is None else parse_items("candidates", candidates, catalog)
        found = find(loaded, catalog, config, items, choices, top)
    _print_recommendation(found, catalog)
    if out is not None:
        write_json(out, found.to_dict())


def _print_recommendation(found: Recommendation, catalog: Catalog) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ilora.item_names import SOURCE_COLUMN
    from ilora.tables import TABLE_STYLE, print_pairs

    table = Table(**TABLE_STYLE)
    table.add_column("", justify="right")
    table.add_column("id", justify="right")
    own = catalog.columns.get(SOURCE_COLUMN)
    if own is not None:
        table.add_column("source id", justify="right", overflow="fold")
    table.add_column("title", overflow="fold")
    table.add_column("probability\na token", justify="right")
    for place, one in enumerate(found.ranking, start=1):
        likely = f"{math.exp(one.mean_log_likelihood):.3f}"
        source = [] if own is None else [Text(own[one.item])]
        table.add_row(str(place), str(one.item), *source, Text(one.title), likely)
    Console().print(table)
    named = "no candidate" if found.answered is None else f"item {found.answered}"
    print_pairs(
        [
            ("history", " → ".join(catalog.title(item) for item in found.history)),
            ("chosen from", f"{len(found.candidates)} candidates"),
            ("free answer", f"{found.answer!r} ({named})"),
            ("experts", "  ".join(f"{k}: {w:.2f}" for k, w in enumerate(found.gate, start=1))),
        ]
    )
