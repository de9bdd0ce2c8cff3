"""Three ways to ask a model for one of the candidates, and what its answers are worth.

    free          it says what it likes, greedily
    constrained   it can say nothing but a candidate's title
    rank          it says nothing: the candidates are ordered by likelihood

``predict`` turns rows into the lines of ``predictions.jsonl``; ``measure`` turns these lines into
figures. Each line has ``named``, the candidate that the model chose (None where it chose none, or
one that cannot be told from another), and ``hit``.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Literal

import numpy as np

from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.progress import with_slow_bar
from ilora.evaluation.constrained import decode_candidates
from ilora.evaluation.decoding import decode_answers
from ilora.evaluation.metrics import (
    generation_metrics,
    hit_and_valid_ratios,
    ranking_metrics,
    ranks_of_target,
)
from ilora.evaluation.padding import padding_shows
from ilora.evaluation.ranking import CandidateScores, score_candidates
from ilora.evaluation.records import row_record
from ilora.evaluation.titles import fold_title, judge_answer
from ilora.model import ILoRARecommender

Decode = Literal["free", "constrained", "rank"]
DECODES: tuple[Decode, ...] = ("free", "constrained", "rank")
NORMALISATIONS = {  # of a title's log-likelihood; the first one ranks
    "mean": "mean log-likelihood of the title's tokens, terminator included",
    "sum": "log-likelihood of title and terminator",
    "per_character": "log-likelihood of title and terminator by character of the title",
}

logger = logging.getLogger(__name__)


def predict(
    decode: Decode,
    model: ILoRARecommender,
    rows: RecommendationDataset,
    collator: Collator,
    *,
    batch_size: int,
    beams: int = 1,
) -> list[dict[str, Any]]:
    """One line for each row, in their order; see the module for what they have in common."""
    if decode != "rank" and batch_size > 1 and padding_shows(model, collator, rows[0]):
        logger.warning("prompts are answered one at a time: padding would change the answers")
        batch_size = 1
    count = -(-len(rows) // batch_size)
    if decode == "free":
        answers = decode_answers(model, rows, collator, batch_size=batch_size)
        told = [answer for batch in with_slow_bar(answers, "answering", count) for answer in batch]
        return [_answered(rows, i, answer) for i, answer in enumerate(told)]
    if decode == "constrained":
        choices = decode_candidates(model, rows, collator, batch_size=batch_size, beams=beams)
        chosen = [choice for batch in with_slow_bar(choices, "choosing", count) for choice in batch]
        return [_chosen(rows, i, text, c) for i, (text, c) in enumerate(chosen)]
    scores = score_candidates(model, rows, collator, batch_size=batch_size)
    return [_ranked(rows, i, s) for i, s in enumerate(with_slow_bar(scores, "ranking", len(rows)))]


def measure(
    decode: Decode, rows: RecommendationDataset, predictions: list[dict[str, Any]], *, seed: int
) -> dict[str, Any]:
    """The figures of a split from its lines; ``seed`` is that of the bootstrap."""
    if decode == "free":
        answers = [line["answer"] for line in predictions]
        titles = [[rows.builder.titles[c] for c in rows.candidates(i)] for i in range(len(rows))]
        targets = [rows.builder.titles[row.target] for row in rows.rows]
        return generation_metrics(answers, titles, targets, seed=seed)
    if decode == "constrained":
        hit = np.array([line["hit"] for line in predictions], dtype=np.float64)
        valid = np.array([line["named"] is not None for line in predictions], dtype=np.float64)
        return hit_and_valid_ratios(hit, valid, seed=seed)
    return _ranking_measures(rows, predictions, seed)


def _ranking_measures(
    rows: RecommendationDataset, predictions: list[dict[str, Any]], seed: int
) -> dict[str, Any]:
    places = [rows.candidates(i).index(row.target) for i, row in enumerate(rows.rows)]
    measured = {
        name: ranking_metrics(_ranks(predictions, f"{name}_log_likelihood", places), seed=seed)
        for name in NORMALISATIONS
    }
    by_mean = measured["mean"]
    first, interval = by_mean["hr@1"], by_mean["ci95"]["hr@1"]
    return by_mean | {
        "hit_ratio_at_1": first,
        "hit_ratio_at_1_valid": first,
        "valid_ratio": 1.0,
        "ci95": by_mean["ci95"]
        | {
            "hit_ratio_at_1": interval,
            "hit_ratio_at_1_valid": interval,
            "valid_ratio": [1.0, 1.0],
        },
        "normalisation": NORMALISATIONS["mean"],
        "by_sum": measured["sum"] | {"normalisation": NORMALISATIONS["sum"]},
        "by_character": measured["per_character"]
        | {"normalisation": NORMALISATIONS["per_character"]},
        "computed_by": dict(Counter(line["way"] for line in predictions)),
    }


def _ranks(predictions: list[dict[str, Any]], key: str, places: list[int]) -> np.ndarray:
    ranks = [
        ranks_of_target([line[key]], [place])[0]  # lists may differ in length
        for line, place in zip(predictions, places, strict=True)
    ]
    return np.array(ranks)


def _answered(rows: RecommendationDataset, index: int, answer: str) -> dict[str, Any]:
    row, candidates = rows.rows[index], rows.candidates(index)
    titles = [rows.builder.titles[c] for c in candidates]
    judged = judge_answer(answer, titles, rows.builder.titles[row.target])
    named = None if judged.candidate is None else candidates[judged.candidate]
    told = {"answer": answer, "named": named, "hit": judged.hit}
    return row_record(row, candidates) | told


def _chosen(
    rows: RecommendationDataset, index: int, answer: str, choice: int | None
) -> dict[str, Any]:
    row, candidates = rows.rows[index], rows.candidates(index)
    named = None if choice is None else candidates[choice]
    titles = rows.builder.titles
    # A title can belong to two items and name either: hits are of titles, as in free decoding.
    hit = named is not None and fold_title(titles[named]) == fold_title(titles[row.target])
    return row_record(row, candidates) | {"answer": answer, "named": named, "hit": hit}


def _ranked(rows: RecommendationDataset, index: int, scores: CandidateScores) -> dict[str, Any]:
    row, candidates = rows.rows[index], rows.candidates(index)
    place = candidates.index(row.target)
    rank = float(ranks_of_target(scores.mean[None], [place])[0])
    best = np.flatnonzero(scores.mean == scores.mean.max())
    return row_record(row, candidates) | {
        **{f"{name}_log_likelihood": getattr(scores, name).tolist() for name in NORMALISATIONS},
        "rank": rank,
        "named": candidates[best[0]] if len(best) == 1 else None,
        "hit": rank == 0,
        "way": scores.way,
    }
