"""Items as a person names them: ids, ids of his own data, or titles that mean exactly one item."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from ilora.data.catalog import Catalog
from ilora.errors import InputError
from ilora.evaluation.titles import fold_title

_IDS = re.compile(r"\s*\d+(\s*,\s*\d+)*\s*,?\s*")
TITLE_PREFIX = "title:"
SOURCE_PREFIX = "source:"
SOURCE_COLUMN = (
    "source_id"  # of items.csv: what the data that the folder was built from call an item
)
MOST_LISTED = 10


def parse_items(argument: str, values: Sequence[str], catalog: Catalog) -> list[int]:
    """``["3,17", "Toy Story", "title:1984"]`` -> item ids, in the given order.

    A value made of digits and commas is ids; any other is one title, compared regardless of case
    and white space. ``title:`` before a value makes it a title whatever it is made of; after
    ``source:`` stand ids of the data that the folder was built from, with commas between.

    Raises:
        InputError: an id outside the catalogue, a title that no item has (naming those that are
            close), one that several items share (naming their ids), or a catalogue that does not know
            what its source called the items.
    """
    items: list[int] = []
    for value in values:
        if value.startswith(SOURCE_PREFIX):
            found = _items_of_source(argument, value.removeprefix(SOURCE_PREFIX), catalog)
        elif _IDS.fullmatch(value):
            found = [int(number) for number in value.split(",") if number.strip()]
        else:
            found = [item_of_title(argument, value.removeprefix(TITLE_PREFIX), catalog)]
        for item in found:
            if item >= len(catalog):
                raise InputError(
                    f"{argument}: item {item} is not in the catalogue; its ids run from 0 to "
                    f"{len(catalog) - 1}"
                )
        items += found
    return items


def _items_of_source(argument: str, text: str, catalog: Catalog) -> list[int]:
    own = catalog.columns.get(SOURCE_COLUMN)
    if own is None:
        raise InputError(
            f"{argument}: the model's items.csv has no column {SOURCE_COLUMN}; give its ids or titles"
        )
    item_of = {name: item for item, name in enumerate(own)}
    # An id of the source can hold a comma itself.
    names = [text.strip()] if text.strip() in item_of else [one.strip() for one in text.split(",")]
    for name in names:
        if name not in item_of:
            raise InputError(
                f"{argument}: no item had the id {name!r} in its source; take one from the column "
                f"{SOURCE_COLUMN} of items.csv"
            )
    return [item_of[name] for name in names]


def item_of_title(argument: str, title: str, catalog: Catalog) -> int:
    """The one item of that title; raises `InputError` as `parse_items` does."""
    wanted = fold_title(title)
    if not wanted:
        raise InputError(f"{argument}: an empty text names no item; give ids or titles")
    folded = [fold_title(one) for one in catalog.titles]
    found = [item for item, one in enumerate(folded) if one == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(str(item) for item in found[:MOST_LISTED])
        more = f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
        raise InputError(
            f"{argument}: {title!r} is the title of items {ids}{more}; give the id of one"
        )
    close = difflib.get_close_matches(wanted, folded, n=3, cutoff=0.6)
    items = [folded.index(one) for one in close]
    hint = ", ".join(f"{catalog.title(item)!r} (id {item})" for item in items)
    remedy = f"did you mean {hint}?" if hint else "take one from the catalogue's items.csv"
    raise InputError(f"{argument}: no item has the title {title!r}; {remedy}")
