from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ilora.errors import InputError
from ilora.evaluation.metrics import (
    generation_metrics,
    ranking_metrics,
    ranking_values,
    ranks_of_target,
)

NAN = float("nan")


def test_a_rank_counts_the_candidates_scored_higher() -> None:
    scores = [[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.1, 0.9, 0.5]]
    assert ranks_of_target(scores, [0, 1, 2]).tolist() == [2, 0, 1]


def test_a_tie_counts_half_wherever_the_target_stands() -> None:
    for target in range(3):
        assert ranks_of_target([[1.0, 1.0, 1.0]], [target]).tolist() == [1.0]
    assert ranks_of_target([[3.0, 2.0, 2.0, 1.0]], [1]).tolist() == [1.5]


def test_the_rank_under_ties_is_the_mean_over_random_tie_breaking() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(4, size=(5, 12)).astype(float)
    target = rng.integers(12, size=5)
    broken = [
        ranks_of_target(scores + 1e-3 * rng.random(scores.shape), target) for _ in range(4000)
    ]
    error = np.std(broken, axis=0) / math.sqrt(len(broken))
    assert (np.abs(np.mean(broken, axis=0) - ranks_of_target(scores, target)) <= 4 * error).all()


def test_minus_infinity_ranks_last() -> None:
    assert ranks_of_target([[0.0, -math.inf, 1.0]], [1]).tolist() == [2]


def test_two_minus_infinities_are_a_tie() -> None:
    assert ranks_of_target([[0.0, -math.inf, -math.inf]], [1]).tolist() == [1.5]


@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        ([[0.0, 1.0], [NAN, 1.0]], [0, 0], r"scores\[1\] holds NaN"),
        ([[0.0, 1.0]], [2], "2 to 2 for 2 candidates"),
        ([[0.0, 1.0]], [-1], "-1 to -1"),
        ([[0.0, 1.0]], [0, 1], r"\[1, 2\] and target_index \[2\]"),
        ([0.0, 1.0], [0], r"\[n, C\]"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(
    scores: list[list[float]], target: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ranks_of_target(scores, target)


def test_ranking_metrics_by_hand() -> None:
    metrics = ranking_metrics([0, 2, 9, 10])
    assert [metrics[f"hr@{k}"] for k in (1, 3, 5, 10)] == [0.25, 0.5, 0.5, 0.75]
    assert metrics["ndcg@3"] == pytest.approx((1 + 1 / 2) / 4)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 4)
    assert metrics["ndcg"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(11) + 1 / math.log2(12)) / 4)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 10 + 1 / 11) / 4)
    assert metrics["n"] == 4


def test_every_ranking_metric_has_an_interval_around_it() -> None:
    metrics = ranking_metrics(np.arange(40) % 20)
    names = set(metrics) - {"n", "ci95"}
    assert set(metrics["ci95"]) == names
    for name in names:
        low, high = metrics["ci95"][name]
        assert low < metrics[name] < high


def test_a_tie_for_the_first_place_is_no_first_place() -> None:
    values = ranking_values([0.5])
    assert values["hr@1"].tolist() == [0]
    assert values["hr@3"].tolist() == [1]


@pytest.mark.parametrize("ranks", [[], [-1], [NAN], [[0]]])
def test_what_is_no_rank_is_refused(ranks: list[float]) -> None:
    with pytest.raises(InputError, match="ranks"):
        ranking_metrics(ranks)


TITLES = ["Portal", "Portal 2", "Alien", "Heat"]


def test_the_two_hit_ratios_differ_by_their_denominator() -> None:
    answers = ["Portal 2", "alien.", "Heat", "no idea"]
    metrics = generation_metrics(answers, [TITLES] * 4, ["Portal 2", "Alien", "Portal", "Heat"])
    assert metrics["hit_ratio_at_1"] == 2 / 4
    assert metrics["hit_ratio_at_1_valid"] == 2 / 3
    assert metrics["valid_ratio"] == 3 / 4
    assert metrics["n"] == 4
    for name, (low, high) in metrics["ci95"].items():
        assert low <= metrics[name] <= high


def test_the_longest_match_is_reported_beside_the_strict_one() -> None:
    answers = ["I say Portal 2", "Alien or Heat", "Heat"]
    metrics = generation_metrics(answers, [TITLES] * 3, ["Portal 2", "Alien", "Heat"])
    assert (metrics["hit_ratio_at_1"], metrics["valid_ratio"]) == (1 / 3, 1 / 3)
    loose = metrics["longest_match"]
    assert (loose["hit_ratio_at_1"], loose["valid_ratio"]) == (2 / 3, 2 / 3)
    assert loose["hit_ratio_at_1_valid"] == 1


def test_the_reading_of_the_reference_code_is_reported_beside_the_strict_one() -> None:
    answers = ["I say Portal 2", "Alien or Heat", "Heat", "Theatre"]
    metrics = generation_metrics(answers, [TITLES] * 4, ["Portal 2", "Alien", "Heat", "Heat"])
    assert (metrics["hit_ratio_at_1"], metrics["valid_ratio"]) == (1 / 4, 1 / 4)
    loose = metrics["as_reference"]
    assert (loose["hit_ratio_at_1"], loose["valid_ratio"]) == (2 / 4, 2 / 4)  # "Theatre" has "heat"
    assert loose["hit_ratio_at_1_valid"] == 1
    assert loose["ci95"]["hit_ratio_at_1"][0] < 1 / 2 < loose["ci95"]["hit_ratio_at_1"][1]


def test_without_a_valid_answer_there_is_no_ratio_over_them_and_the_rest_is_json() -> None:
    metrics = generation_metrics(["?", ""], [TITLES] * 2, ["Heat", "Heat"])
    assert metrics["hit_ratio_at_1_valid"] is None
    assert metrics["ci95"]["hit_ratio_at_1_valid"] is None
    assert (metrics["hit_ratio_at_1"], metrics["valid_ratio"]) == (0, 0)
    json.dumps(metrics, allow_nan=False)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="1 answers, 2 candidate lists and 1 targets"):
        generation_metrics(["Heat"], [TITLES] * 2, ["Heat"])
    with pytest.raises(InputError, match="0 answers"):
        generation_metrics([], [], [])
