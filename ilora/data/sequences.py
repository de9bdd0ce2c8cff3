"""From a user's sequence to rows: what was seen before, and what came next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ilora.errors import InputError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
WINDOW = 10  # history length of the paper's three data sets


@dataclass(frozen=True, slots=True)
class Row:
    """One prediction: ``history`` (item ids, oldest first, unpadded, maybe empty) → ``target``."""

    user: int | None
    history: tuple[int, ...]
    target: int


@dataclass(frozen=True, slots=True)
class UserSequence:
    """All items of one user, oldest first; ``split`` is None where it is not cut by user."""

    user: int | None
    items: tuple[int, ...]
    split: Split | None = None


def windows(sequence: UserSequence, window: int = WINDOW) -> list[Row]:
    """Every position of the sequence as a row: up to ``window`` preceding items → the item.

    ``n`` items give ``n`` rows; the first one has an empty history. This is how a training user
    is used.

    Raises:
        InputError: ``window`` below 1.
    """
    _require_window(window)
    user, items = sequence.user, sequence.items
    return [
        Row(user, items[max(0, position - window) : position], items[position])
        for position in range(len(items))
    ]


def last_window(sequence: UserSequence, window: int = WINDOW) -> Row:
    """The last item as target, the up to ``window`` items before it as history.

    This is how a validation or test user is used: one row each.

    Raises:
        InputError: an empty sequence, or ``window`` below 1.
    """
    _require_window(window)
    if not sequence.items:
        raise InputError(f"the sequence of user {sequence.user} is empty; leave the user out")
    return Row(sequence.user, sequence.items[-window - 1 : -1], sequence.items[-1])


def rows_of(sequences: Sequence[UserSequence], split: Split, window: int = WINDOW) -> list[Row]:
    """The rows of one split: all windows of training users, the last one of the others."""
    mine = [sequence for sequence in sequences if sequence.split == split]
    if split == "train":
        return [row for sequence in mine for row in windows(sequence, window)]
    return [last_window(sequence, window) for sequence in mine]


def _require_window(window: int) -> None:
    if window < 1:
        raise InputError(f"window is {window}; a history holds at least 1 item")
