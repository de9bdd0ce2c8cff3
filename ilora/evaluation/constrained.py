"""Constrained decoding: the model can answer with nothing but a candidate's title.

The token sequences of a row's candidates, each closed by the terminator, form a trie; a token that
leads out of it gets the probability 0. Probabilities inside are the model's own, not scaled up
to sum to one, so that beam search compares whole titles by the likelihood that the model gives
them: with as many beams as candidates its answer is the one that ranking by the mean
log-likelihood puts first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ilora.data.collation import Collator, RecommendationDataset
from ilora.errors import InputError
from ilora.evaluation.decoding import to_device
from ilora.evaluation.titles import fold_title
from ilora.model import ILoRARecommender


class TitleTrie:
    """The candidates of one row by their tokens.

    One title may begin another: after "Portal" both the terminator, which closes it, and the
    next token of "Portal 2" are allowed. Items of one title share a path.

    Args:
        answers: the tokens of each candidate's title, terminator included.
        titles: the titles, to tell namesakes from titles that a poor tokenizer spells alike.
    """

    def __init__(self, answers: Sequence[Sequence[int]], titles: Sequence[str]) -> None:
        self._next: dict[tuple[int, ...], set[int]] = {}
        self._named: dict[tuple[int, ...], list[int]] = {}
        self._titles = titles
        for number, answer in enumerate(answers):
            for length, token in enumerate(answer):
                self._next.setdefault(tuple(answer[:length]), set()).add(token)
            self._named.setdefault(tuple(answer), []).append(number)
        self.depth = max(len(answer) for answer in answers)

    def after(self, tokens: Sequence[int]) -> list[int]:
        """The tokens that may follow; none after a whole answer or outside of the trie."""
        return sorted(self._next.get(tuple(tokens), ()))

    def candidate(self, tokens: Sequence[int]) -> int | None:
        """The candidate that an answer names: the first of its namesakes.

        None for anything but a whole answer, and where two titles that differ have its tokens.
        """
        named = self._named.get(tuple(tokens), [])
        alike = len({fold_title(self._titles[number]) for number in named}) == 1
        return named[0] if alike else None


class OnlyCandidates(LogitsProcessor):
    """Leave the tokens that go on in each row's trie; for prompts given as embeddings."""

    def __init__(self, tries: Sequence[TitleTrie]) -> None:
        self._tries = tries

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        beams = len(scores) // len(self._tries)
        allowed = torch.full_like(scores, -math.inf)
        for row, tokens in enumerate(input_ids.tolist()):  # the new tokens alone
            # Beyond the end of an answer there is nothing to choose: what follows is cut off.
            following = self._tries[row // beams].after(tokens)
            allowed[row, following] = scores[row, following]
        return allowed


def decode_candidates(
    model: ILoRARecommender,
    rows: RecommendationDataset,
    collator: Collator,
    *,
    batch_size: int,
    beams: int = 1,
) -> Iterator[list[tuple[str, int | None]]]:
    """Yield ``(text, candidate)`` of one batch of rows after another, in their order.

    ``candidate`` counts from 0 in the row's list; it is None where the answer is none of them, which
    takes a tokenizer that spells two titles alike.

    Args:
        rows: a dataset made with ``answer=False``.
        collator: one that pads on the left.
        batch_size: prompts at once, each with all its beams.
        beams: 1 is greedy. Beams are compared by the mean log-likelihood of their tokens.

    Raises:
        InputError: fewer than 1 beam.
    """
    if beams < 1:
        raise InputError(f"beams is {beams}; give 1 (greedy) or more")
    device = model.llm.device
    for start in range(0, len(rows), batch_size):
        indices = range(start, min(start + batch_size, len(rows)))
        batch = to_device(collator([rows[i] for i in indices]), device)
        tries = [_trie(rows, i) for i in indices]
        # "never": stop only when no open beam could still become the best one.
        search = {"num_beams": beams, "early_stopping": "never"} if beams > 1 else {}
        tokens = model.generate(
            batch,
            max_new_tokens=max(trie.depth for trie in tries),
            logits_processor=LogitsProcessorList([OnlyCandidates(tries)]),
            **search,
        ).tolist()
        eos = model.tokenizer.eos_token_id
        whole = [row[: row.index(eos) + 1] if eos in row else row for row in tokens]
        texts = model.tokenizer.batch_decode(whole, skip_special_tokens=True)
        yield [
            (text.strip(), trie.candidate(answer))
            for text, trie, answer in zip(texts, tries, whole, strict=True)
        ]


def _trie(rows: RecommendationDataset, index: int) -> TitleTrie:
    candidates = rows.candidates(index)
    return TitleTrie(
        [rows.builder.answer_ids(c) for c in candidates],
        [rows.builder.titles[c] for c in candidates],
    )
