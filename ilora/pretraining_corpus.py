"""What a base model is pre-trained on: text prompts that grow, some of them in disguise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ilora.data.collation import Batch, Collator, RecommendationDataset
from ilora.data.prompts import IGNORED_LABEL, NO_ITEM, Example, PromptBuilder
from ilora.errors import InputError

BATCHES_PER_CHUNK = 8  # enough to sort: 4 % of the positions are padding; few enough to start soon
REPEATED = 0.5  # share of a disguised prompt's items that are spelled like an earlier one
WORDING_TITLES = 8  # the words around the lists cost about as many tokens as this many titles


@dataclass(frozen=True, slots=True)
class PromptLength:
    """How much the prompts of a chunk show, and how many of them make a batch."""

    num_candidates: int
    max_history: int
    batch_size: int


def prompt_length(done: float, full: PromptLength, ramp: float) -> PromptLength:
    """The prompts at a share ``done`` of the training, for full prompts from ``ramp`` on.

    Candidates grow linearly from 3 and histories from 2; the batch shrinks so that its tokens
    stay about the same.
    """
    grown = 1.0 if ramp == 0 else min(1.0, done / ramp)
    candidates = round(min(3, full.num_candidates) * (1 - grown) + full.num_candidates * grown)
    history = round(min(2, full.max_history) * (1 - grown) + full.max_history * grown)
    longest = full.num_candidates + full.max_history + WORDING_TITLES
    ratio = longest / (candidates + history + WORDING_TITLES)
    return PromptLength(candidates, history, round(full.batch_size * ratio))


class PretrainingCorpus(Dataset[list[Batch]]):
    """All batches of a pre-training run; item ``i`` is a chunk of up to 8 of them.

    Rows of all data sets are mixed and visited in a new order every epoch, with new negatives
    and wordings; prompts grow as :func:`prompt_length` says, and a share of them is disguised
    (:func:`disguise`). Item ``i`` depends on the arguments and ``i`` alone, never on what was read
    before it, so that any number of workers gives the same run.
    """

    def __init__(
        self,
        datasets: Sequence[RecommendationDataset],
        collator: Collator,
        *,
        steps: int,
        batch_size: int,
        ramp: float,
        disguised: float,
        seed: int,
    ) -> None:
        self._datasets = list(datasets)
        self._collator = collator
        self._disguised = disguised
        self._seed = seed
        self._ordinary_ids = ordinary_ids(datasets[0].builder)
        self._first_rows = np.cumsum([0, *(len(dataset) for dataset in datasets)])
        self._order: tuple[int, np.ndarray] | None = None
        full = PromptLength(
            max(dataset.num_candidates for dataset in datasets),
            max(dataset.builder.window for dataset in datasets),
            batch_size,
        )
        starts = range(0, steps, BATCHES_PER_CHUNK)
        self._lengths = [prompt_length(s / steps, full, ramp) for s in starts]
        self._batches = [min(BATCHES_PER_CHUNK, steps - start) for start in starts]
        sizes = [n * p.batch_size for n, p in zip(self._batches, self._lengths, strict=True)]
        self._first_examples = np.cumsum([0, *sizes]).tolist()

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> list[Batch]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        length = self._lengths[index]
        numbers = range(self._first_examples[index], self._first_examples[index + 1])
        examples = [self._example(number, length) for number in numbers]
        examples.sort(key=lambda example: len(example.input_ids))
        starts = np.arange(0, len(examples), length.batch_size)
        np.random.default_rng((self._seed, index)).shuffle(starts)
        return [self._collator(examples[at : at + length.batch_size]) for at in starts]

    def _example(self, number: int, length: PromptLength) -> Example:
        epoch, position = divmod(number, int(self._first_rows[-1]))
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng((self._seed, epoch))
            self._order = epoch, rng.permutation(int(self._first_rows[-1]))
        row = int(self._order[1][position])
        which = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        dataset = self._datasets[which]
        dataset.set_epoch(epoch)
        example = dataset.short_example(
            row - int(self._first_rows[which]),
            min(length.num_candidates, dataset.num_candidates),
            length.max_history,
        )
        rng = np.random.default_rng((self._seed, number, 1))
        if rng.random() >= self._disguised:
            return example
        return disguise(example, dataset.builder, self._ordinary_ids, rng)


def disguise(
    example: Example,
    builder: PromptBuilder,
    ordinary_ids: NDArray[np.int64],
    rng: np.random.Generator,
) -> Example:
    """The same prompt and answer with every item's title spelled in random tokens.

    A model that has read a few thousand titles a hundred times each answers with those, and fails
    on a catalogue that it has not seen. A title that never occurred before and never will again
    can only be copied: such prompts teach to look a title up and spell it out, and every token of
    the vocabulary to be copied. Some items share a spelling, so that titles recur within a prompt
    and there is something to copy in its lists too, not in the answer alone. Which candidate is
    right is left to the other prompts.

    Raises:
        InputError: a tokenizer that spells a title differently in a list and in an answer.
    """
    input_ids, labels = list(example.input_ids), list(example.labels)
    spelling: dict[int, list[int]] = {}
    by_length: dict[int, list[list[int]]] = {}
    for place, item in enumerate(example.item_ids):
        if item == NO_ITEM:
            continue
        title = builder.answer_ids(item)[:-1]
        start = place - len(title)
        if example.input_ids[start:place] != title:
            raise InputError(
                f"tokenizer: it spells {builder.titles[item]!r} differently in a list and in an "
                "answer; pre-train with disguised=0"
            )
        if item not in spelling:
            known = by_length.setdefault(len(title), [])
            if not known or rng.random() >= REPEATED:
                known.append(rng.choice(ordinary_ids, len(title)).tolist())
            spelling[item] = known[int(rng.integers(len(known)))]
        input_ids[start:place] = spelling[item]
    return _with_answer_of(example, builder, spelling, input_ids, labels)


def _with_answer_of(
    example: Example,
    builder: PromptBuilder,
    spelling: dict[int, list[int]],
    input_ids: list[int],
    labels: list[int],
) -> Example:
    answer = [label for label in labels if label != IGNORED_LABEL]
    shown = {item for item in example.item_ids if item != NO_ITEM}
    targets = [item for item in shown if builder.answer_ids(item) == answer]
    new = spelling[targets[0]] + answer[-1:]
    start = len(labels) - len(answer)
    input_ids[start:] = new
    labels[start:] = new
    return replace(example, input_ids=input_ids, labels=labels)


def ordinary_ids(builder: PromptBuilder) -> NDArray[np.int64]:
    """All token ids but those of control tokens."""
    tokenizer = builder.tokenizer
    control = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return np.array(sorted(set(tokenizer.get_vocab().values()) - control), dtype=np.int64)
