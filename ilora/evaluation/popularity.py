"""The popularity baseline: the candidates ordered by how often they occur in training."""

from __future__ import annotations

from typing import Any

from ilora.data.folder import DataFolder
from ilora.data.popularity import item_counts, popularity_scores
from ilora.data.sequences import Split
from ilora.errors import InputError
from ilora.evaluation.metrics import ranking_metrics, ranks_of_target


def popularity_metrics(
    folder: DataFolder, split: Split, *, min_history: int = 3, seed: int = 0
) -> dict[str, Any]:
    """`ilora.evaluation.metrics.ranking_metrics` of popularity over the frozen candidates of a split.

    Args:
        min_history: rows with a shorter history are left out, as for every other method.
        seed: of the bootstrap; nothing else is random.

    Raises:
        InputError: no row has ``min_history`` history items.
    """
    ranked = folder.ranked_rows(split, min_history)
    if not ranked:
        raise InputError(
            f"min_history is {min_history}, which leaves no {split} row of {folder.path}; lower it"
        )
    scores = popularity_scores(item_counts(folder), [candidates for _, candidates in ranked])
    places = [candidates.index(row.target) for row, candidates in ranked]
    return ranking_metrics(ranks_of_target(scores, places), seed=seed)
