"""The twenty titles a method chooses from: drawn once, then frozen, so that all rank the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ilora.data.catalog import Catalog
from ilora.data.progress import with_bar
from ilora.data.sequences import SPLITS, Row, Split, UserSequence
from ilora.errors import InputError

NUM_CANDIDATES = 20  # 19 negatives and the target, as LLaRA and iLoRA evaluate
Exclusion = Literal["sequence", "history"]
EXCLUSIONS: tuple[Exclusion, ...] = ("sequence", "history")


def known_items(sequences: Iterable[UserSequence], rows: Iterable[Row]) -> dict[int, set[int]]:
    """All items of every known user: from sequences, and from rows where there are none."""
    known: dict[int, set[int]] = {}
    for sequence in sequences:
        if sequence.user is not None:
            known.setdefault(sequence.user, set()).update(sequence.items)
    for row in rows:
        if row.user is not None:
            known.setdefault(row.user, set()).update(row.history, (row.target,))
    return known


def candidate_count(rows: Iterable[Row], catalog: Catalog, wanted: int = NUM_CANDIDATES) -> int:
    """The largest list length ``≤ wanted`` that every row can fill: one length for the folder.

    A row can fill ``1 +`` the number of distinct titles outside its history and target. Only a
    catalogue of a few dozen items gives less than ``wanted``.

    Raises:
        InputError: ``wanted`` below 2, or a row that leaves no item to be a negative.
    """
    if wanted < 2:
        raise InputError(f"num_candidates is {wanted}; a choice needs at least 2")
    groups = catalog.title_groups()
    distinct = int(groups.max()) + 1
    count = wanted
    for row in rows:
        if distinct - len(row.history) >= wanted:  # each history item rules out at most one title
            continue
        count = min(count, 1 + len(np.unique(groups[_allowed(row, groups)])))
    if count < 2:
        raise InputError(
            f"the catalogue's {len(catalog)} items ({distinct} distinct titles) leave some rows "
            "no negative outside history and target; bring more items or a shorter window"
        )
    return count


def draw_candidates(
    rows: Sequence[Row],
    catalog: Catalog,
    *,
    split: Split,
    seed: int,
    count: int = NUM_CANDIDATES,
    known: Mapping[int, set[int]] | None = None,
) -> list[tuple[int, ...]]:
    """For each row ``count`` distinct items, the target among them, in random order.

    Negatives are drawn uniformly without replacement from the items that are neither in the
    row's history nor in ``known[row.user]``: a user's own older (or later) item would be a false
    negative. Should a user know nearly the whole catalogue, items of ``known`` outside the
    history fill what is missing. Without ``known`` only the history counts, which is what
    LLaRA's loader does. No two candidates have the same title (case folded): a method that
    reads titles could not tell them apart.

    A row's list depends on ``(seed, split, index of the row)`` and on nothing drawn before it.

    Raises:
        InputError: a row with fewer than ``count - 1`` possible negatives; see `candidate_count`.
    """
    groups = catalog.title_groups()
    lists = []
    for index, row in enumerate(with_bar(rows, f"drawing {split} candidates")):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        own = known.get(row.user, set()) if known and row.user is not None else set()
        negatives = _draw_negatives(row, groups, own, count - 1, rng)
        if len(negatives) < count - 1:
            raise InputError(
                f"{split} row {index + 1} has {len(negatives)} possible negatives for lists of "
                f"{count}; ask for at most {len(negatives) + 1} candidates"
            )
        lists.append(tuple(rng.permutation([*negatives, row.target]).tolist()))
    return lists


def _allowed(row: Row, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """``[num_items]``: True where an item may be a negative of ``row``."""
    allowed = groups != groups[row.target]
    allowed[list(row.history)] = False
    return allowed


def _draw_negatives(
    row: Row, groups: NDArray[np.int64], own: set[int], wanted: int, rng: np.random.Generator
) -> list[int]:
    allowed = _allowed(row, groups)
    fresh = allowed.copy()
    fresh[list(own)] = False
    pools = (fresh, allowed & ~fresh)
    order = (
        int(item)
        for pool in pools  # the second is shuffled only if the first runs out
        for item in rng.permutation(np.flatnonzero(pool))
    )
    chosen: dict[int, int] = {}  # title group -> item
    for item in order:
        if len(chosen) == wanted:
            break
        chosen.setdefault(int(groups[item]), item)
    return list(chosen.values())
