"""Which users train, which validate, which test: 8:1:1, drawn from a recorded seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ilora.data.sequences import Row, Split, UserSequence
from ilora.errors import InputError

BY_USER_RULE = (
    "by user 8:1:1 from the seed; every position of a training user is a row, "
    "the last item of a validation or test user is its one row"
)
BY_TIME_RULE = (
    "by time 8:1:1: every position of every user from the second on is a row, rows sorted by the "
    "time of their target; users of validation and test occur in training"
)


def split_sizes(num_users: int, what: str = "users") -> dict[Split, int]:
    """Sizes of 8:1:1: ``⌊n/10⌋`` validate, ``⌊8n/10⌋`` train, the rest tests; none is below 1.

    943 users give 754, 94 and 95; 1,220 give 976, 122 and 122 (the paper's MovieLens and LastFM).

    Raises:
        InputError: fewer than 3 users.
    """
    if num_users < 3:
        raise InputError(f"{num_users} {what} cannot be split into three; bring at least 3")
    val = max(1, num_users // 10)
    test = max(1, num_users - 8 * num_users // 10 - val)
    return {"train": num_users - val - test, "val": val, "test": test}


def split_by_user(sequences: Sequence[UserSequence], seed: int) -> list[UserSequence]:
    """The same sequences in the same order, each with the split its user was drawn into.

    No user of validation or test occurs in training: a recommender is asked about people whom
    it has not seen. A sequence without a user counts as a user of its own.

    Raises:
        InputError: fewer than 3 sequences, or a user with two.
    """
    users = [sequence.user for sequence in sequences if sequence.user is not None]
    if len(set(users)) < len(users):
        twice = next(user for user in users if users.count(user) > 1)
        raise InputError(f"user {twice} has more than one sequence; join them into one")
    sizes = split_sizes(len(sequences))
    order = np.random.default_rng(seed).permutation(len(sequences))
    first_test = sizes["train"] + sizes["val"]
    drawn: dict[int, Split] = {}
    for place, index in enumerate(order.tolist()):
        if place < sizes["train"]:
            drawn[index] = "train"
        else:
            drawn[index] = "val" if place < first_test else "test"
    return [replace(sequence, split=drawn[index]) for index, sequence in enumerate(sequences)]


def split_by_time(rows: Sequence[Row], times: Sequence[float]) -> dict[Split, list[Row]]:
    """Rows sorted by the time of their target (ties keep their order), cut 8:1:1.

    Raises:
        InputError: fewer than 3 rows.
    """
    sizes = split_sizes(len(rows), what="rows")
    order = sorted(range(len(rows)), key=times.__getitem__)
    val = sizes["train"] + sizes["val"]
    parts: dict[Split, list[int]] = {
        "train": order[: sizes["train"]],
        "val": order[sizes["train"] : val],
        "test": order[val:],
    }
    return {split: [rows[index] for index in part] for split, part in parts.items()}
