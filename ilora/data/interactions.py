"""Interactions of users with items by name, however they were read, on their way to sequences."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ilora.data.catalog import Catalog
from ilora.data.sequences import Row, Split, UserSequence, windows
from ilora.data.splits import split_by_time
from ilora.errors import InputError


@dataclass(frozen=True, slots=True)
class Interaction:
    """One event. ``time`` is in seconds since 1970, or whatever number was there."""

    user: str
    item: str
    time: float


def k_core(
    interactions: list[Interaction], min_user_count: int, min_item_count: int
) -> list[Interaction]:
    """Drop users and items with too few interactions until none is left that has too few."""
    while True:
        users = Counter(one.user for one in interactions)
        items = Counter(one.item for one in interactions)
        kept = [
            one
            for one in interactions
            if users[one.user] >= min_user_count and items[one.item] >= min_item_count
        ]
        if len(kept) == len(interactions):
            return kept
        interactions = kept


def require_core(
    interactions: list[Interaction], min_user_count: int, min_item_count: int, source: Path
) -> list[Interaction]:
    """The same, but raises `InputError` if nothing is left of ``source``, or was in it."""
    if not interactions:
        raise InputError(f"{source} holds no interaction that is to be kept; check the file")
    kept = k_core(interactions, min_user_count, min_item_count)
    if not kept:
        raise InputError(
            f"{source}: none of its {len(interactions)} interactions is left with "
            f"min_user_count {min_user_count} and min_item_count {min_item_count}; lower them"
        )
    return kept


def number_ids(
    interactions: list[Interaction],
) -> tuple[list[str], list[str], list[UserSequence]]:
    """Dense ids in order of appearance: the users' names, the items' names, the sequences."""
    item_ids: dict[str, int] = {}
    events: dict[str, list[tuple[float, int]]] = {}
    for one in interactions:
        item = item_ids.setdefault(one.item, len(item_ids))
        events.setdefault(one.user, []).append((one.time, item))
    sequences = [
        # Sorting by time alone is stable: ties keep the file's order.
        UserSequence(user, tuple(item for _, item in sorted(mine, key=lambda event: event[0])))
        for user, mine in enumerate(events.values())
    ]
    return list(events), list(item_ids), sequences


def titled_catalog(
    items: Sequence[str], title_of: Mapping[str, str], *, titles_wanted: bool = True
) -> Catalog:
    """The catalogue of these items; where one has no title its name stands in, with a warning.

    Raises:
        InputError: titles are wanted and no item has one: then they are those of other items.
    """
    untitled = sum(item not in title_of for item in items)
    if titles_wanted and untitled == len(items):
        raise InputError(
            f"none of the {len(items)} items has a title, {items[0]!r} among them; give the titles "
            "that belong to these ids"
        )
    if titles_wanted and untitled:
        warnings.warn(
            f"{untitled} of {len(items)} items have no title; their ids stand in for it",
            stacklevel=3,
        )
    return Catalog(tuple(title_of.get(item, item) for item in items), {"source_id": tuple(items)})


def without_repeats(interactions: Sequence[Interaction]) -> list[Interaction]:
    """The first of several interactions of one user with one item, by time; else the order stays."""
    first: dict[tuple[str, str], Interaction] = {}
    for one in interactions:
        known = first.setdefault((one.user, one.item), one)
        if one.time < known.time:
            first[one.user, one.item] = one
    return list(first.values())


def rows_by_time(
    interactions: Sequence[Interaction], sequences: Sequence[UserSequence], window: int
) -> dict[Split, list[Row]]:
    """Every position from the second on as a row, cut 8:1:1 by the time of its target.

    ``sequences`` are those that `number_ids` made of the same interactions.
    """
    times: dict[str, list[float]] = {}
    for one in interactions:
        times.setdefault(one.user, []).append(one.time)
    rows: list[Row] = []
    when: list[float] = []
    for sequence, mine in zip(sequences, times.values(), strict=True):
        rows += windows(sequence, window)[1:]
        when += sorted(mine)[1:]
    return split_by_time(rows, when)
