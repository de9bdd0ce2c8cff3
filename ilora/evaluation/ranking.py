"""Ranking candidates by the likelihood that the model answers with their titles.

    sum(c)  = log p(title of c, terminator | prompt)
    mean(c) = sum(c) / number of its tokens

The mean is the score that ranks: the sum favours short titles. Both are returned. Every candidate
is scored by a forward pass of its own, prompt included: simple and plainly right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from numpy.typing import NDArray

from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.prompts import IGNORED_LABEL, NO_ITEM, Example
from ilora.evaluation.decoding import to_device
from ilora.model import ILoRARecommender


@dataclass(frozen=True)
class CandidateScores:
    """Log-likelihoods of one row's candidates, in the prompt's order: float64 ``[C]`` each."""

    sum: NDArray
    mean: NDArray


def score_candidates(
    model: ILoRARecommender,
    rows: RecommendationDataset,
    collator: Collator,
    *,
    batch_size: int,
) -> Iterator[CandidateScores]:
    """Yield the scores of one row after another.

    Args:
        rows: a dataset made with ``answer=False``.
        collator: one that pads on the left.
        batch_size: sequences, that is pairs of a prompt and a candidate, at once.
    """
    device = model.llm.device
    for index in range(len(rows)):
        prompt = rows[index]
        answers = [rows.builder.answer_ids(item) for item in rows.candidates(index)]
        sums, counts = [], []
        for start in range(0, len(answers), batch_size):
            examples = [with_answer(prompt, a) for a in answers[start : start + batch_size]]
            told, tokens = model.answer_log_probs(to_device(collator(examples), device))
            sums.append(told.double().cpu())
            counts.append(tokens.double().cpu())
        total, count = torch.cat(sums).numpy(), torch.cat(counts).numpy()
        yield CandidateScores(sum=total, mean=total / count)


def with_answer(prompt: Example, answer_ids: list[int]) -> Example:
    """The prompt continued by the answer that is to be scored."""
    return Example(
        input_ids=prompt.input_ids + answer_ids,
        item_ids=prompt.item_ids + [NO_ITEM] * len(answer_ids),
        labels=[IGNORED_LABEL] * len(prompt.input_ids) + answer_ids,
        history=prompt.history,
    )
