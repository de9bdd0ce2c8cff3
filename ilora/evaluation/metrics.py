"""Hit ratio, NDCG and MRR of rankings; hit ratio and valid ratio of generated answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ilora.errors import InputError
from ilora.evaluation.statistics import (
    FloatArray,
    bootstrap_intervals,
    bootstrap_ratio_interval,
)
from ilora.evaluation.titles import (
    Judgement,
    judge_answer,
    judge_as_reference,
    longest_match,
)

CUTOFFS = (1, 3, 5, 10)


def ranks_of_target(scores: ArrayLike, target_index: ArrayLike) -> FloatArray:
    """Rank of each row's target among its candidates: ``[n, C]``, ``[n]`` -> ``[n]``, 0 is best.

        rank = #{candidates scored higher} + ½ · #{others scored the same}

    A tie is the mean rank over all ways of breaking it: no reward for scoring everything alike,
    no dependence on the order of the candidates, and nothing random.

    Raises:
        InputError: shapes that do not fit, an index outside the list, or a NaN (against which every
            comparison is false, so that it would rank first).
    """
    table = np.asarray(scores, dtype=np.float64)
    index: NDArray[np.int64] = np.asarray(target_index, dtype=np.int64)
    if table.ndim != 2 or index.shape != table.shape[:1]:
        raise InputError(
            f"scores has shape {list(table.shape)} and target_index {list(index.shape)}; "
            "they must be [n, C] and [n]"
        )
    if np.isnan(table).any():
        row = int(np.isnan(table).any(axis=1).argmax())
        raise InputError(f"scores[{row}] holds NaN; every candidate needs a score")
    if index.size and (index.min() < 0 or index.max() >= table.shape[1]):
        raise InputError(
            f"target_index holds {index.min()} to {index.max()} for {table.shape[1]} candidates; "
            "it counts from 0"
        )
    own = np.take_along_axis(table, index[:, None], axis=1)
    higher = (table > own).sum(axis=1)
    same = (table == own).sum(axis=1) - 1  # the target itself
    return higher + same / 2


def ranking_values(ranks: ArrayLike) -> dict[str, FloatArray]:
    """Every row's share in each measure: ranks ``[n]`` (0 is best) -> measure -> ``[n]``.

        hr@k = [rank ≤ k - 1]    ndcg@k = [rank ≤ k - 1] / log2(rank + 2)    mrr = 1 / (rank + 1)

    with one relevant item a row. ``ndcg`` has no cut-off. A half rank (a tie, see
    `ranks_of_target`) is a hit only where it is within ``k - 1``: two candidates tied for the first
    place make no hit@1.

    Raises:
        InputError: no row, or a rank that is negative or not finite.
    """
    rank: FloatArray = np.asarray(ranks, dtype=np.float64)
    if rank.ndim != 1 or len(rank) == 0:
        raise InputError(f"ranks has shape {list(rank.shape)}; give one rank for each row")
    if not np.isfinite(rank).all() or rank.min() < 0:
        raise InputError("ranks holds a number that is no rank; they count from 0, the best")
    gain = 1 / np.log2(rank + 2)
    within = {k: (rank <= k - 1).astype(np.float64) for k in CUTOFFS}
    return {
        **{f"hr@{k}": within[k] for k in CUTOFFS},
        **{f"ndcg@{k}": within[k] * gain for k in CUTOFFS if k > 1},  # ndcg@1 is hr@1
        "ndcg": gain,
        "mrr": 1 / (rank + 1),
    }


def ranking_metrics(ranks: ArrayLike, *, seed: int = 0, resamples: int = 10_000) -> dict[str, Any]:
    """Means of `ranking_values`, ``n``, and ``ci95``: measure -> 95 % bootstrap interval.

    ``{"hr@1": …, "hr@3", "hr@5", "hr@10", "ndcg@3", "ndcg@5", "ndcg@10", "ndcg", "mrr",
    "n": …, "ci95": {"hr@1": [low, high], …}}``. The intervals of all measures come from the
    same draws.

    Raises:
        InputError: see `ranking_values`.
    """
    values = ranking_values(ranks)
    return {
        **{name: float(column.mean()) for name, column in values.items()},
        "n": len(values["mrr"]),
        "ci95": bootstrap_intervals(values, seed=seed, resamples=resamples),
    }


def generation_metrics(
    answers: Sequence[str],
    candidate_titles: Sequence[Sequence[str]],
    target_titles: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Hit and valid ratios of generated answers, judged by titles.

        hit_ratio_at_1       = right answers / all answers
        hit_ratio_at_1_valid = right answers / valid answers      (None without a valid answer)
        valid_ratio          = valid answers / all answers

    An answer is valid when it names one candidate title, right when that is the target's title.
    The strict reading of "names" is `ilora.evaluation.titles.match_answer`. ``longest_match`` holds
    the same figures under the loose reading, a title found inside the answer; ``as_reference`` those
    of the paper's released code, which wants one candidate to be a substring of the answer
    (`ilora.evaluation.titles.judge_as_reference`) and whose published hit ratio is the one over
    valid answers.

    The literature reports both hit ratios under one name. They order methods differently: one that
    answers rarely and well gains by the second.

    Returns:
        The three ratios, ``n``, ``ci95`` (measure -> ``[low, high]``; None where there is no
        ratio), and ``longest_match`` and ``as_reference``: the same keys once more.

    Raises:
        InputError: no answer, or lengths that differ.
    """
    counts = {len(answers), len(candidate_titles), len(target_titles)}
    if counts == {0} or len(counts) > 1:
        raise InputError(
            f"{len(answers)} answers, {len(candidate_titles)} candidate lists and "
            f"{len(target_titles)} targets were given; give one of each a row"
        )

    def measure(judge: Callable[[str, Sequence[str], str], Judgement]) -> dict[str, Any]:
        rows = zip(answers, candidate_titles, target_titles, strict=True)
        judged = [judge(answer, titles, target) for answer, titles, target in rows]
        hit = np.array([judgement.hit for judgement in judged], dtype=np.float64)
        valid = np.array([judgement.valid for judgement in judged], dtype=np.float64)
        return hit_and_valid_ratios(hit, valid, seed=seed, resamples=resamples)

    return {
        **measure(judge_answer),
        "longest_match": measure(partial(judge_answer, match=longest_match)),
        "as_reference": measure(judge_as_reference),
    }


def hit_and_valid_ratios(
    hit: FloatArray, valid: FloatArray, *, seed: int = 0, resamples: int = 10_000
) -> dict[str, Any]:
    """The three ratios of `generation_metrics` and their intervals from 0/1 rows ``[n]``."""
    right, sound = float(hit.sum()), float(valid.sum())
    over_all = {"hit_ratio_at_1": hit, "valid_ratio": valid}
    intervals = bootstrap_intervals(over_all, seed=seed, resamples=resamples)
    over_valid = bootstrap_ratio_interval(hit, valid, seed=seed, resamples=resamples)
    return {
        "hit_ratio_at_1": right / len(hit),
        "hit_ratio_at_1_valid": right / sound if sound else None,
        "valid_ratio": sound / len(hit),
        "n": len(hit),
        "ci95": {
            **intervals,
            "hit_ratio_at_1_valid": None if over_valid is None else list(over_valid),
        },
    }
