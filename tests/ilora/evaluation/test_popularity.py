"""Popularity as a method that ranks."""

from __future__ import annotations

import pytest

from ilora.data.popularity import item_counts
from ilora.errors import InputError
from ilora.evaluation.popularity import popularity_metrics
from tests.ilora.tiny_world import World


def test_popularity_is_right_where_the_target_is_the_most_frequent_candidate(world: World) -> None:
    counts = item_counts(world.folder)
    ranked = world.folder.ranked_rows("test", 3)
    alone = [
        sum(counts[item] >= counts[row.target] for item in candidates) == 1
        for row, candidates in ranked
    ]
    metrics = popularity_metrics(world.folder, "test")
    assert metrics["n"] == len(ranked)
    assert metrics["hr@1"] >= sum(alone) / len(ranked)  # ties count too, in part
    assert popularity_metrics(world.folder, "test") == metrics


def test_a_minimum_history_that_leaves_no_row_is_refused(world: World) -> None:
    with pytest.raises(InputError, match=r"min_history is 99.*no val row"):
        popularity_metrics(world.folder, "val", min_history=99)
