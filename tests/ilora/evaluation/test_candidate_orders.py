"""Other orders of the candidates: what changes is counted, what only looks changed is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilora.data.collation import RecommendationDataset
from ilora.errors import InputError
from ilora.evaluation.candidate_orders import measure_orders
from ilora.evaluation.evaluate import evaluate
from tests.ilora.tiny_world import World

pytestmark = pytest.mark.usefixtures("one_thread")


def lines_of(rows: RecommendationDataset, place: int) -> list[dict[str, Any]]:
    """A method that always names the candidate at one place."""
    return [
        {
            "named": rows.candidates(i)[place],
            "hit": rows.candidates(i)[place] == rows.rows[i].target,
        }
        for i in range(len(rows))
    ]


def test_a_method_that_reads_places_changes_its_answers(world: World) -> None:
    rows = world.rows(world.recommender(), "test", answer=False)
    predictions = lines_of(rows, 0)
    told = measure_orders(lambda asked: lines_of(asked, 0), rows, predictions, 4, seed=1)
    hits = [
        np.mean([line["hit"] for line in lines_of(asked, 0)])
        for asked in (rows, *(rows.reordered((1, order)) for order in (1, 2, 3)))
    ]
    assert told["hit_ratio_at_1"] == pytest.approx(hits)
    assert told["mean"] == pytest.approx(np.mean(hits))
    assert told["sd"] == pytest.approx(np.std(hits, ddof=1))
    assert (told["min"], told["max"], told["orders"]) == (min(hits), max(hits), 4)
    differ = [len(set(line["named_by_order"])) > 1 for line in predictions]
    assert told["changed"] == np.mean(differ) > 0.5


def test_a_method_that_reads_items_does_not_change_its_answers(world: World) -> None:
    rows = world.rows(world.recommender(), "test", answer=False)

    def smallest(asked: RecommendationDataset) -> list[dict[str, Any]]:
        named = [min(asked.candidates(i)) for i in range(len(asked))]
        return [
            {"named": n, "hit": n == row.target} for n, row in zip(named, asked.rows, strict=True)
        ]

    told = measure_orders(smallest, rows, smallest(rows), 3, seed=0)
    assert told["changed"] == told["sd"] == 0


def test_reordered_rows_have_the_same_candidates_in_a_repeatable_order(world: World) -> None:
    rows = world.rows(world.recommender(), "test", answer=False)
    one, again, other = (rows.reordered((5, order)) for order in (1, 1, 2))
    indices = range(len(rows))
    assert [one.candidates(i) for i in indices] == [again.candidates(i) for i in indices]
    assert [one.candidates(i) for i in indices] != [other.candidates(i) for i in indices]
    assert [sorted(one.candidates(i)) for i in indices] == [
        sorted(rows.candidates(i)) for i in indices
    ]
    assert one[0].input_ids != rows[0].input_ids
    assert [rows.candidates(i) for i in indices] == [
        candidates for _, candidates in world.folder.ranked_rows("test", 3)
    ]


def test_training_rows_are_not_reordered(world: World) -> None:
    with pytest.raises(InputError, match="reorder val or test"):
        world.rows(world.recommender(), "train", answer=False).reordered((0,))


@pytest.mark.parametrize("decode", ["free", "constrained", "rank"])
def test_the_figures_are_those_of_the_frozen_order(
    world: World, tmp_path: Path, decode: Any
) -> None:
    model = world.recommender()
    plain = evaluate(model, world.folder, "test", decode=decode)
    told = evaluate(
        model, world.folder, "test", decode=decode, candidate_orders=3, out=tmp_path, seed=0
    )
    orders = told.pop("candidate_orders")
    assert orders["hit_ratio_at_1"][0] == told["hit_ratio_at_1"] == plain["hit_ratio_at_1"]
    assert len(orders["hit_ratio_at_1"]) == 3
    lines = [
        json.loads(line)
        for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert all(len(line["named_by_order"]) == 3 for line in lines)
    assert all(line["named_by_order"][0] == line["named"] for line in lines)
