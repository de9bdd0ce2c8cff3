"""Rows of a data folder as encoded examples, and examples as the batch that a model takes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ilora.data.catalog import Catalog
from ilora.data.folder import DataFolder
from ilora.data.prompts import IGNORED_LABEL, NO_ITEM, Example, PromptBuilder
from ilora.data.sequences import Row, Split
from ilora.data.wordings import WORDINGS_PER_DOMAIN
from ilora.encoders import pad_histories
from ilora.errors import InputError

Side = Literal["left", "right"]


class Batch(TypedDict):
    """What the recommender's forward takes; all int64.

    ``input_ids``, ``attention_mask``, ``labels`` and ``item_ids`` are ``[B, S]``, ``histories`` is
    ``[B, window]``, left-padded with the number of items. ``item_ids`` is the item whose projected
    embedding stands in for the token's own, -1 where the token keeps it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    histories: Tensor
    item_ids: Tensor


class RecommendationDataset(Dataset[Example]):
    """The rows of one split as encoded prompts, encoded when asked for.

    Validation and test rows get the candidates frozen in the data folder and the first wording.
    A training row gets its target among negatives, in random order, and one of the wordings, all
    drawn from ``(seed, epoch, row)`` alone: the same in every run, whatever the number of
    workers, and after a resume. Negatives are drawn by title, uniformly and without replacement,
    from the titles that neither the target nor the shown history has: as in the frozen lists, no
    two candidates read the same. A catalogue with too few of them gives a shorter list.

    Args:
        folder: the data.
        split: ``train``, ``val`` or ``test``.
        builder: makes the prompts; for the catalogue of ``folder``.
        num_candidates: length of a training row's list, its target included; None takes that of
            the frozen lists, so that training asks what evaluation asks.
        seed: of the training draws.
        min_history: rows with fewer history items are left out; 1 leaves out those with nothing
            to read, the paper's own loaders use 3.
        answer: whether examples end with the answer: for a loss yes, for generation no.

    Raises:
        InputError: fewer than 2 candidates, another catalogue's builder, or no row is left.
    """

    def __init__(
        self,
        folder: DataFolder,
        split: Split,
        builder: PromptBuilder,
        *,
        num_candidates: int | None = None,
        seed: int = 0,
        min_history: int = 1,
        answer: bool = True,
    ) -> None:
        count = folder.num_candidates if num_candidates is None else num_candidates
        if count < 2:
            raise InputError(f"num_candidates: {count} leaves no choice; give 2 or more")
        if builder.catalog != folder.catalog:
            raise InputError(
                f"builder: its catalogue of {len(builder.catalog)} items is not that of "
                f"{folder.path}; make a builder for each data folder"
            )
        self.builder = builder
        self.answer = answer
        self.epoch = 0
        # Draws go by the row's number in the file, so that `min_history` does not change them.
        numbered = enumerate(folder.rows(split, min_history=0))
        kept = [(number, row) for number, row in numbered if len(row.history) >= min_history]
        self.rows: list[Row] = [row for _, row in kept]
        self._numbers = [number for number, _ in kept]
        if not kept:
            raise InputError(
                f"min_history: no {split} row of {folder.path} has {min_history} or more history "
                "items; lower it"
            )
        self._frozen: list[tuple[int, ...]] | None = None
        if split != "train":
            lists = folder.candidates(split)
            self._frozen = [lists[number] for number in self._numbers]
        self._negatives = NegativeSampler(folder.catalog)
        self.num_candidates = count
        self._seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if self._frozen is None:
            return self.short_example(index, self.num_candidates, self.builder.window)
        return self._encode(self.rows[index], self._frozen[index], wording=0)

    def short_example(self, index: int, num_candidates: int, max_history: int) -> Example:
        """A row as in training, with fewer drawn candidates and only its latest history items."""
        candidates, wording = self._draw(index, num_candidates)
        row = self.rows[index]
        shown = row.history[max(0, len(row.history) - max_history) :]
        return self._encode(Row(row.user, shown, row.target), candidates, wording)

    def reordered(self, seed: tuple[int, ...]) -> RecommendationDataset:
        """The same rows with every frozen list shuffled, drawn from ``(*seed, row)`` alone."""
        if self._frozen is None:
            raise InputError("split: training rows draw their candidates anew; reorder val or test")
        other = copy.copy(self)
        other._frozen = [
            tuple(np.random.default_rng((*seed, number)).permutation(candidates).tolist())
            for number, candidates in zip(self._numbers, self._frozen, strict=True)
        ]
        return other

    def set_epoch(self, epoch: int) -> None:
        """Draw training rows anew from ``(seed, epoch, row)``; accelerate's loaders call this."""
        self.epoch = epoch

    def candidates(self, index: int) -> tuple[int, ...]:
        """The candidates that row ``index`` is shown, in the prompt's order."""
        if self._frozen is not None:
            return self._frozen[index]
        return self._draw(index, self.num_candidates)[0]

    def approximate_length(self, index: int) -> int:
        """The tokens of the titles that row ``index`` shows: its prompt's but for the wording's."""
        shown = self.rows[index].history[-self.builder.window :]
        return sum(self.builder.title_length(item) for item in (*shown, *self.candidates(index)))

    def _encode(self, row: Row, candidates: Sequence[int], wording: int) -> Example:
        return self.builder.encode(row, candidates, wording, answer=self.answer)

    def _draw(self, index: int, num_candidates: int) -> tuple[tuple[int, ...], int]:
        row = self.rows[index]
        rng = np.random.default_rng((self._seed, self.epoch, self._numbers[index]))
        shown = row.history[-self.builder.window :]
        candidates = self._negatives.draw((row.target, *shown), num_candidates - 1, rng)
        candidates.insert(int(rng.integers(len(candidates) + 1)), row.target)
        return tuple(candidates), int(rng.integers(WORDINGS_PER_DOMAIN))


class NegativeSampler:
    """Draws items of distinct titles, each a title that none of some given items has."""

    def __init__(self, catalog: Catalog) -> None:
        self._title_of: list[int] = catalog.title_groups().tolist()
        self._items_of: list[list[int]] = [[] for _ in range(max(self._title_of) + 1)]
        for item, title in enumerate(self._title_of):
            self._items_of[title].append(item)

    def draw(self, excluded: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
        """Up to ``count`` negatives, in random order: fewer where the catalogue has no more.

        Raises:
            InputError: it leaves none at all.
        """
        taken = {self._title_of[item] for item in excluded}
        # As many more as could fall away: one draw is always enough, without a rejection loop.
        drawn = min(len(self._items_of), count + len(taken))
        titles = rng.choice(len(self._items_of), drawn, replace=False).tolist()
        kept = [title for title in titles if title not in taken][:count]
        if not kept:
            raise InputError(
                f"catalog: its {len(self._title_of)} items leave no negative beside the "
                f"{len(excluded)} of a row; bring more items or a shorter window"
            )
        return [self._one_of(self._items_of[title], rng) for title in kept]

    @staticmethod
    def _one_of(items: list[int], rng: np.random.Generator) -> int:
        return items[0] if len(items) == 1 else items[int(rng.integers(len(items)))]


class Collator:
    """Pad examples to one length: ``[B]`` examples -> :class:`Batch`.

    Args:
        tokenizer: gives the padding token.
        num_items: size of the catalogue, which is also the padding id of histories.
        window: length of a history row.
        side: ``right`` in training; ``left`` at inference, where every prompt has to end at the
            last position so that generation goes on from it.
        multiple: pad to a multiple of this many tokens; 8 suits tensor cores.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_items: int,
        window: int = 10,
        side: Side = "right",
        *,
        multiple: int = 1,
    ) -> None:
        if side not in ("left", "right"):
            raise InputError(f"side: {side!r} is not a padding side; choose left or right")
        if multiple < 1:
            raise InputError(f"multiple: {multiple} is not a length; give 1 or more")
        pad = tokenizer.pad_token_id
        if not isinstance(pad, int):
            raise InputError(
                f"tokenizer: {tokenizer.name_or_path!r} has no padding token; pass it through "
                "`ilora.tokens.prepare_tokenizer`"
            )
        self._pad_id = pad
        self._num_items = num_items
        self._window = window
        self._side = side
        self._multiple = multiple

    def __call__(self, examples: Sequence[Example]) -> Batch:
        ids = [example.input_ids for example in examples]
        ones = [[1] * len(row) for row in ids]
        histories = [example.history for example in examples]
        return {
            "input_ids": self._pad(ids, self._pad_id),
            "attention_mask": self._pad(ones, 0),
            "labels": self._pad([example.labels for example in examples], IGNORED_LABEL),
            "histories": pad_histories(histories, self._window, self._num_items),
            "item_ids": self._pad([example.item_ids for example in examples], NO_ITEM),
        }

    def _pad(self, rows: Sequence[list[int]], value: int) -> Tensor:
        longest = max(len(row) for row in rows)
        length = -(-longest // self._multiple) * self._multiple
        padding = [[value] * (length - len(row)) for row in rows]
        if self._side == "left":
            padded = [pad + row for pad, row in zip(padding, rows, strict=True)]
        else:
            padded = [row + pad for pad, row in zip(padding, rows, strict=True)]
        return torch.tensor(padded, dtype=torch.int64)
