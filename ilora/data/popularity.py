"""How often each item occurs in training: the popularity baseline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ilora.data.folder import DataFolder


def item_counts(folder: DataFolder) -> NDArray[np.int64]:
    """``[num_items]``: occurrences of each item in the training interactions, each counted once.

    The windows of a user overlap, so counting every history item would count an interaction up
    to eleven times. Each row's target is one interaction; what no target shows are the items
    before a user's first row, and those are the user's shortest history. Where every position
    is a row that history is empty and the counts are those of ``sequences.jsonl.gz``. Of rows
    without a user only the targets count.
    """
    rows = folder.rows("train", min_history=0)
    opening: dict[int, tuple[int, ...]] = {}
    for row in rows:
        if row.user is not None:
            opening[row.user] = min(opening.get(row.user, row.history), row.history, key=len)
    occurrences = [row.target for row in rows]
    occurrences += [item for history in opening.values() for item in history]
    return np.bincount(occurrences, minlength=len(folder.catalog))


def popularity_scores(
    counts: NDArray[np.int64], candidates: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """``[n, C]``: the count of each candidate, from lists of item ids of one length ``C``."""
    return counts[np.asarray(candidates)].astype(np.float64)
