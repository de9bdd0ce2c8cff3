"""Ranking candidates by the likelihood that the model answers with their titles.

    sum(c)           = log p(title of c, terminator | prompt)
    mean(c)          = sum(c) / number of its tokens, terminator included
    per_character(c) = sum(c) / number of characters of the title

The mean is the score that ranks: the sum favours short titles. All three are returned.

All candidates of a user are scored in one forward pass (:mod:`ilora.evaluation.one_pass`). A model
that cannot take its mask is found out by comparing a few candidates of the first row with passes
of their own; it is then ranked through a shared key-value cache, and that is said once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.prompts import Example
from ilora.errors import InputError
from ilora.evaluation.cached_passes import score_after_shared_cache, score_separately
from ilora.evaluation.one_pass import score_in_one_pass
from ilora.model import ILoRARecommender

Way = Literal["one pass", "shared cache", "separate passes"]
WAYS: tuple[Way, ...] = ("one pass", "shared cache", "separate passes")  # the fastest first
PROBED = 4  # candidates that the self-check scores by passes of their own
# Nats a token by which two ways may differ. A bfloat16 logit between 16 and 32 moves in steps of
# 1/8, a float16 one in steps of 1/64; a mask that leaks changes a likelihood by more.
TOLERANCES = {torch.bfloat16: 0.25, torch.float16: 0.05}
TOLERANCE = 1e-3
ONE_PASS_ATTENTION = ("sdpa", "eager")  # others take no mask of our own, or crash the device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateScores:
    """Log-likelihoods of one row's candidates, in the prompt's order: float64 ``[C]`` each.

    ``way`` is how they were computed; it makes no difference beyond rounding.
    """

    sum: NDArray
    mean: NDArray
    per_character: NDArray
    way: Way = "one pass"


def score_candidates(
    model: ILoRARecommender,
    rows: RecommendationDataset,
    collator: Collator,
    *,
    batch_size: int,
    way: Way | None = None,
) -> Iterator[CandidateScores]:
    """Yield the scores of one row after another.

    Args:
        rows: a dataset made with ``answer=False``.
        collator: one that pads on the left.
        batch_size: rows in one pass; where candidates have passes of their own, those at once.
        way: how to compute; None takes the first of ``WAYS`` that is right for the model.

    Raises:
        InputError: an unknown way.
    """
    if way is not None and way not in WAYS:
        raise InputError(f"way is {way!r}; it must be one of {', '.join(WAYS)}")
    for start in range(0, len(rows), batch_size):
        indices = range(start, min(start + batch_size, len(rows)))
        prompts = [rows[i] for i in indices]
        answers = [[rows.builder.answer_ids(c) for c in rows.candidates(i)] for i in indices]
        if way is None:
            way = choose_way(model, collator, prompts[0], answers[0])
        if way == "one pass" and (reason := _too_long(model, prompts, answers)):
            logger.warning("candidates are ranked by shared cache from here on: %s", reason)
            way = "shared cache"
        sums = _scorer(way, batch_size)(model, collator, prompts, answers)
        for i, told, ids in zip(indices, sums, answers, strict=True):
            titles = [rows.builder.titles[c] for c in rows.candidates(i)]
            yield _normalise(told.numpy(), ids, titles, way)


def choose_way(
    model: ILoRARecommender, collator: Collator, prompt: Example, answers: Sequence[Sequence[int]]
) -> Way:
    """The fastest way whose scores of this row are those of separate passes, to rounding.

    What falls away is logged as a warning, with the reason.
    """
    by_length = sorted(range(len(answers)), key=lambda c: len(answers[c]))
    probed = sorted({0, len(answers) - 1, by_length[0], by_length[-1]})[:PROBED]
    exact = score_separately(model, collator, [prompt], [[answers[c] for c in probed]])[0]
    lengths = torch.tensor([len(answers[c]) for c in probed])
    for way in WAYS[:-1]:
        reason = _unfit(model) if way == "one pass" else None
        if reason is None:
            try:
                told = _scorer(way, 32)(model, collator, [prompt], [answers])[0][probed]
                reason = _disagreement(model, told, exact, lengths)
            except torch.OutOfMemoryError:
                raise
            # A model may refuse our mask or have no cache to repeat in any of these words.
            except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
                reason = f"the model refuses it ({' '.join(str(error).split())[:200]})"
        if reason is None:
            return way
        logger.warning("candidates are not ranked by %s: %s", way, reason)
    return WAYS[-1]


def _scorer(way: Way, batch_size: int) -> Callable[..., list[Tensor]]:
    if way == "one pass":
        return score_in_one_pass
    score = score_after_shared_cache if way == "shared cache" else score_separately
    return partial(score, batch_size=batch_size)


def _unfit(model: ILoRARecommender) -> str | None:
    """Why the model's attention takes no mask of ours, where it says so itself."""
    attention = getattr(model.llm.config, "_attn_implementation", None)
    if attention in ONE_PASS_ATTENTION:
        return None
    return f"its attention is {attention}, and a block mask needs {' or '.join(ONE_PASS_ATTENTION)}"


def _disagreement(
    model: ILoRARecommender, told: Tensor, exact: Tensor, lengths: Tensor
) -> str | None:
    off = float(((told - exact) / lengths).abs().max())
    if off <= TOLERANCES.get(model.llm.dtype, TOLERANCE):
        return None
    return f"its scores are up to {off:.2g} nats a token away from those of separate passes"


def _too_long(
    model: ILoRARecommender,
    prompts: Sequence[Example],
    answers: Sequence[Sequence[Sequence[int]]],
) -> str | None:
    """Why these rows do not fit into one pass: our mask takes the place of a sliding window's."""
    config = model.llm.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    window = min((limit for limit in limits if limit is not None), default=None)
    length = max(
        len(prompt.input_ids) + max(map(len, own))
        for prompt, own in zip(prompts, answers, strict=True)
    )
    if window is None or length <= window:
        return None
    return f"a prompt of {length} tokens is longer than the attention window of {window}"


def _normalise(
    sums: NDArray, answers: Sequence[Sequence[int]], titles: Sequence[str], way: Way
) -> CandidateScores:
    tokens = np.array([len(ids) for ids in answers], dtype=np.float64)
    characters = np.array([len(title) for title in titles], dtype=np.float64)
    return CandidateScores(sums, sums / tokens, sums / characters, way)
