"""The hybrid prompt: titles in words, each followed by a placeholder for its item embedding.

    A viewer watched these movies, oldest first: Quiet Harbor<|item|> Amber Fox<|item|>
    Which movie is watched next? Reply with one title from: Iron Tide<|item|> Red Mill<|item|> …
    Answer: Iron Tide<eos>

The idea of a text token stream with one behaviour token after each title is LLaRA's (Liao et
al., arXiv 2312.02445).

**The separator is the placeholder itself.** Commas, semicolons, ``::`` and quotation marks all
occur in real titles, and titles contain one another; the placeholder is a special token that no
title can spell, because a title that contains its text is taken apart first (:func:`shown_title`).
So every title ends where its placeholder stands, without a further token for each of the thirty.
One space before each title keeps the title's tokens the same in the lists and in the answer,
which is what a model that answers by copying needs.

A language model that was never trained with the placeholder does not know it: for its prompts of
titles alone (``placeholders=False``) each title ends in a semicolon.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ilora.data.catalog import Catalog
from ilora.data.sequences import Row
from ilora.data.wordings import WORDINGS, WORDINGS_PER_DOMAIN
from ilora.errors import InputError
from ilora.tokens import PLACEHOLDER, placeholder_id, special_texts

ENDING = "\nAnswer:"
IGNORED_LABEL = -100
NO_ITEM = -1
SEPARATOR = ";"  # where there are no placeholders; fewer titles hold one than a comma


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded prompt; the three lists have the same length.

    Attributes:
        input_ids: the prompt's tokens, followed by the answer's where there is one.
        item_ids: the item at each placeholder, ``-1`` elsewhere.
        labels: the answer's tokens at their own places (the model shifts), ``-100`` elsewhere.
        history: the items of the prompt's history, oldest first, for the encoder and the gate.
    """

    input_ids: list[int]
    item_ids: list[int]
    labels: list[int]
    history: tuple[int, ...]


class PromptBuilder:
    """Turn rows and candidate lists into prompts, in words and in tokens.

    Args:
        tokenizer: one that went through :func:`ilora.tokens.prepare_tokenizer`.
        catalog: the titles.
        domain: ``movie``, ``music``, ``game``, ``product`` or ``item``: how the prompt speaks.
        window: the number of latest history items that are shown.
        placeholders: whether a placeholder follows each title; False puts a semicolon there.

    Raises:
        InputError: an unknown domain, a window below 1 or a tokenizer without placeholder.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        catalog: Catalog,
        domain: str,
        window: int = 10,
        *,
        placeholders: bool = True,
    ) -> None:
        if domain not in WORDINGS:
            raise InputError(
                f"domain: {domain!r} is not known; choose one of {', '.join(WORDINGS)}"
            )
        if window < 1:
            raise InputError(f"window: {window} items cannot be shown; give 1 or more")
        self.tokenizer = tokenizer
        self.catalog = catalog
        self.domain = domain
        self.window = window
        self._placeholder_id = placeholder_id(tokenizer)
        specials = special_texts(tokenizer)
        self.titles = tuple(shown_title(title, specials) for title in catalog.titles)
        self.placeholders = placeholders
        mark = PLACEHOLDER if placeholders else SEPARATOR
        self._listed = tuple(f" {title}{mark}" for title in self.titles)
        self._start_ids = _start_ids(tokenizer)
        self._ending_ids = self._tokens(ENDING)
        self._answer_ids: dict[int, tuple[int, ...]] = {}

    def text(self, row: Row, candidates: Sequence[int], wording: int = 0) -> str:
        """The prompt in words, up to and including its ending; ``wording`` is 0, 1 or 2.

        Raises:
            InputError: no such wording, or an item that the catalogue does not have.
        """
        if not 0 <= wording < WORDINGS_PER_DOMAIN:
            raise InputError(f"wording: {wording} does not exist; choose 0 to 2")
        words = WORDINGS[self.domain][wording]
        history = self._shown_history(row)
        opening = words.history + self._list(history) if history else words.no_history
        return f"{opening}\n{words.candidates}{self._list(candidates)}{ENDING}"

    def encode(
        self, row: Row, candidates: Sequence[int], wording: int = 0, *, answer: bool
    ) -> Example:
        """The prompt in tokens, with the target's title and the terminator if ``answer``.

        The text is tokenised as a whole, so each tokenizer's own rule for spaces after special
        tokens applies, and the placeholders are then found by their token id, in order.

        Raises:
            InputError: as :meth:`text`, and for a tokenizer that loses placeholders.
        """
        history = self._shown_history(row)
        input_ids = self._start_ids + self._tokens(self.text(row, candidates, wording))
        shown = (*history, *candidates) if self.placeholders else ()
        item_ids = self._place_items(input_ids, shown)
        labels = [IGNORED_LABEL] * len(input_ids)
        if answer:
            answer_ids = self.answer_ids(row.target)
            input_ids += answer_ids
            item_ids += [NO_ITEM] * len(answer_ids)
            labels += answer_ids
        return Example(input_ids, item_ids, labels, history)

    def answer_ids(self, item: int) -> list[int]:
        """The tokens that name ``item`` after the prompt's ending, with the terminator.

        They are the tokens of ``ending + " " + title`` without those of the ending, so that
        training, likelihood ranking and constrained decoding all follow the path that a model
        takes when it goes on from a prompt.

        Raises:
            InputError: an unknown item, or a tokenizer that merges the title into the ending.
        """
        if item not in self._answer_ids:
            self._answer_ids[item] = self._tokenise_answer(self._title(item))
        return list(self._answer_ids[item])

    def title_length(self, item: int) -> int:
        """The number of tokens of :meth:`answer_ids`."""
        known = self._answer_ids.get(item)
        return len(self.answer_ids(item) if known is None else known)

    def _tokenise_answer(self, title: str) -> tuple[int, ...]:
        ids = self._tokens(f"{ENDING} {title}")
        cut = len(self._ending_ids)
        if ids[:cut] != self._ending_ids:
            raise InputError(
                f"tokenizer: {self.tokenizer.name_or_path!r} merges the title {title!r} with the "
                f"prompt's ending {ENDING!r}, so a generated answer could not be compared with "
                "it; use a tokenizer that splits words at spaces"
            )
        eos = self.tokenizer.eos_token_id
        assert isinstance(eos, int)  # prepare_tokenizer refuses a tokenizer without it
        return (*ids[cut:], eos)

    def _place_items(self, input_ids: list[int], items: Sequence[int]) -> list[int]:
        item_ids = [NO_ITEM] * len(input_ids)
        places = [i for i, token in enumerate(input_ids) if token == self._placeholder_id]
        if len(places) != len(items):
            raise InputError(
                f"tokenizer: {self.tokenizer.name_or_path!r} made {len(places)} placeholders of "
                f"{len(items)}; it must keep {PLACEHOLDER} as one special token"
            )
        for place, item in zip(places, items, strict=True):
            item_ids[place] = item
        return item_ids

    def _shown_history(self, row: Row) -> tuple[int, ...]:
        return tuple(row.history[-self.window :])

    def _list(self, items: Sequence[int]) -> str:
        for item in items:
            self._title(item)
        return "".join([self._listed[item] for item in items])

    def _title(self, item: int) -> str:
        if not 0 <= item < len(self.titles):
            raise InputError(
                f"item: {item} is not in the catalogue, whose ids run from 0 to "
                f"{len(self.titles) - 1}; check the row or the candidate list"
            )
        return self.titles[item]

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def shown_title(title: str, specials: Sequence[str]) -> str:
    """The title as a prompt shows it: single spaces, and no text that is a control token.

    ``<|item|>`` inside a title becomes ``< |item|>``: it reads the same and is not a placeholder;
    a title with the text of the terminator would otherwise end an answer halfway. An answer has
    to be compared with this form of the title (:attr:`PromptBuilder.titles`).
    """
    pattern = "|".join(re.escape(text) for text in (*specials, PLACEHOLDER))
    apart = re.sub(pattern, lambda found: f"{found[0][:1]} {found[0][1:]}", title)
    return " ".join(apart.split())


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin-of-sequence token, if this tokenizer starts texts with one.

    Asked for alone because a tokenizer's full template may also close the text, which would end
    the prompt before its answer.
    """
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []
