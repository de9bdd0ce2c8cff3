"""Quirks of real data that are no errors, counted so that nobody is surprised by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from ilora.data.candidates import known_items
from ilora.data.catalog import Catalog
from ilora.data.sequences import SPLITS, Row, Split, UserSequence


@dataclass(frozen=True)
class Note:
    """``kind`` (a stable key), how often it was met (at least once), and a sentence about it."""

    kind: str
    count: int
    text: str


def catalog_notes(catalog: Catalog) -> list[Note]:
    """What titles have in store for a prompt: duplicates, separators, other scripts."""
    groups = Counter(catalog.title_groups().tolist())
    duplicates = sum(count for count in groups.values() if count > 1)
    titles = catalog.titles
    return _met(
        ("duplicate_titles", duplicates, "items share their title with another item"),
        ("titles_with_comma", sum("," in t for t in titles), "titles hold a comma"),
        ("titles_with_double_colon", sum("::" in t for t in titles), "titles hold ::"),
        ("non_ascii_titles", sum(not t.isascii() for t in titles), "titles are not plain ASCII"),
        (
            "further_columns",
            len(catalog.columns),
            f"further columns in items.csv ({', '.join(catalog.columns)})",
        ),
    )


def row_notes(
    catalog: Catalog,
    rows: Mapping[Split, Sequence[Row]],
    sequences: Sequence[UserSequence],
    candidates: Mapping[Split, Sequence[tuple[int, ...]]],
) -> list[Note]:
    """What rows and candidate lists have in store for training and for fair evaluation."""
    notes = [note for split in SPLITS for note in _split_notes(split, rows[split])]
    in_training = {item for row in rows["train"] for item in (*row.history, row.target)}
    ranked = [*rows["val"], *rows["test"]]
    unseen = [row.target not in in_training for row in ranked]
    users = {split: {row.user for row in rows[split]} - {None} for split in SPLITS}
    known = known_items(sequences, chain.from_iterable(rows.values()))
    own, in_history = 0, 0
    for split, lists in candidates.items():
        for row, items in zip(rows[split], lists, strict=True):
            negatives = set(items) - {row.target}
            in_history += not negatives.isdisjoint(row.history)
            own += row.user is not None and not negatives.isdisjoint(known[row.user])
    return notes + _met(
        (
            "items_not_in_training",
            len(catalog) - len(in_training),
            "items occur in no training row",
        ),
        (
            "targets_not_in_training",
            sum(unseen),
            "validation and test targets occur in no training row",
        ),
        (
            "users_in_training_and_elsewhere",
            len(users["train"] & (users["val"] | users["test"])),
            "users of validation or test are in training too",
        ),
        ("candidates_hold_history", in_history, "candidate lists hold an item of the history"),
        (
            "candidates_hold_own_item",
            own,
            "candidate lists hold another item of the user as a negative",
        ),
    )


def _split_notes(split: Split, rows: Sequence[Row]) -> list[Note]:
    # Rows without a history repeat whenever two users start alike: they say nothing.
    told = [(row.history, row.target) for row in rows if row.history]
    return _met(
        (
            f"{split}_empty_histories",
            sum(not row.history for row in rows),
            f"{split} rows have an empty history",
        ),
        (
            f"{split}_null_users",
            sum(row.user is None for row in rows),
            f"{split} rows have no user",
        ),
        (
            f"{split}_target_in_history",
            sum(row.target in row.history for row in rows),
            f"{split} rows have their target in the history",
        ),
        (
            f"{split}_repeats_in_history",
            sum(len(set(row.history)) < len(row.history) for row in rows),
            f"{split} histories hold an item more than once",
        ),
        (
            f"{split}_repeated_rows",
            len(told) - len(set(told)),
            f"{split} rows repeat the history and target of an earlier one",
        ),
    )


def _met(*counted: tuple[str, int, str]) -> list[Note]:
    return [Note(kind, count, f"{text}: {count:,}") for kind, count, text in counted if count]
