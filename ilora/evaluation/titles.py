"""Which candidate does a generated answer name?

Titles are not unique and can contain one another, so "the title occurs in the answer" is not
enough: an answer "Portal 2" contains "Portal". The strict rule, `match_answer`, wants the answer
to *be* a title. `longest_match` looks for a title inside a longer answer, and `judge_as_reference`
for substrings as the paper's released code does; both are reported beside it for comparison.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

QUOTES = "\"'`´“”„‟‘’‚‛«»‹›「」『』"
TERMINAL = ".,;:!?。、！？"


@dataclass(frozen=True, slots=True)
class Judgement:
    """An answer judged against its candidates.

    Attributes:
        candidate: index of the candidate that the answer names; None for an invalid answer.
        hit: whether that candidate has the target's title.
    """

    candidate: int | None
    hit: bool

    @property
    def valid(self) -> bool:
        """Whether the answer names a candidate."""
        return self.candidate is not None


@lru_cache(maxsize=1 << 16)  # the same catalogue is met in every row
def fold_title(title: str) -> str:
    """Undo what does not change a title: HTML entities, Unicode form (NFKC), case, white space."""
    text = unicodedata.normalize("NFKC", html.unescape(title)).casefold()
    return " ".join(unicodedata.normalize("NFKC", text).split())  # casefold can undo the form


@lru_cache(maxsize=1 << 16)
def normalise_title(title: str) -> str:
    """`fold_title` without surrounding quotes and punctuation at the end.

    A title made of nothing else ("!!!", "?") is left as it is. Only an empty title gives "".
    """
    folded = fold_title(title)
    text, before = folded, ""
    while text != before:  # quotes can stand inside punctuation and the other way round
        before = text
        text = text.strip(QUOTES + " ").rstrip(TERMINAL + " ")
    return text or folded


def _unquote(title: str) -> str:
    folded = fold_title(title)
    return folded.strip(QUOTES + " ") or folded


# From the finest to the coarsest: "Help!" must not be taken for "Help" where both are candidates,
# and "Help." must be taken for "Help" where it is the only one.
_FORMS: tuple[Callable[[str], str], ...] = (fold_title, _unquote, normalise_title)


def match_answer(answer: str, candidate_titles: Sequence[str]) -> int | None:
    """Index of the candidate whose title the answer is; None where it is none of them.

    The answer is compared with the titles as `fold_title` leaves them, then without surrounding
    quotes, then as `normalise_title` leaves them; the first comparison that finds something
    decides. If it finds two titles that differ (after `fold_title`), the answer is ambiguous: None.

    Candidates that share one title cannot be told apart by naming it. Such an answer is a sound
    answer, so it counts as valid and stands for the first of them; whether it is *right* must then
    be asked of titles, not of indices, as `judge_answer` does.

    Empty titles and empty answers never match.
    """
    for form in _FORMS:
        wanted = form(answer)
        found = [k for k, title in enumerate(candidate_titles) if wanted and form(title) == wanted]
        if found:
            return _only_title(found, candidate_titles)
    return None


def longest_match(answer: str, candidate_titles: Sequence[str]) -> int | None:
    """Index of the one candidate whose title occurs in the answer as whole words; else None.

    Longer titles are looked for first and what they cover is taken: "I choose Portal 2" names
    "Portal 2" and not "Portal"; "Portal, Portal 2" names both, which is None. Candidates with one
    title count as in `match_answer`. A title next to a letter or digit ("Up" in "support") is
    not a whole word and does not count; in a script written without blanks that leaves only
    titles set off by punctuation.
    """
    text = fold_title(answer)
    titles = [normalise_title(title) for title in candidate_titles]
    found: list[int] = []
    for k in sorted(range(len(titles)), key=lambda k: (-len(titles[k]), k)):
        title = titles[k]
        if any(titles[other] == title for other in found):  # covered by its namesake
            found.append(k)
            continue
        if not title or title not in text:  # the second test spares compiling the expression
            continue
        # \x00 is no letter, no digit and in no title: covered text can neither match nor border.
        text, count = re.subn(_whole_words(title), "\x00", text)
        if count:
            found.append(k)
    return _only_title(sorted(found), candidate_titles) if found else None


def judge_answer(
    answer: str,
    candidate_titles: Sequence[str],
    target_title: str,
    match: Callable[[str, Sequence[str]], int | None] = match_answer,
) -> Judgement:
    """Judge one answer: valid if it names a candidate, a hit if that has the target's title.

    A language model answers with a title and cannot mean one of two items that share it; a hit is
    therefore equality of (folded) titles. Equality of ids would make the hit depend on the order
    of the candidates.
    """
    index = match(answer, candidate_titles)
    if index is None:
        return Judgement(None, False)
    return Judgement(index, fold_title(candidate_titles[index]) == fold_title(target_title))


def judge_as_reference(
    answer: str, candidate_titles: Sequence[str], target_title: str
) -> Judgement:
    """Judge one answer as the paper's released code does, for comparison with its figures.

    Texts are compared in lower case without surrounding blanks. The answer is valid when exactly one
    entry of the candidate list is a substring of it, whole word or not: "Portal 2" is invalid beside
    the candidates "Portal" and "Portal 2", and so is any answer with a title that two
    candidates share. It is a hit when that entry's title is the target's.
    """
    text = answer.strip().lower()
    titles = [title.strip().lower() for title in candidate_titles]
    found = [k for k, title in enumerate(titles) if title in text]
    if len(found) != 1:
        return Judgement(None, False)
    return Judgement(found[0], titles[found[0]] == target_title.strip().lower())


def _only_title(found: Sequence[int], candidate_titles: Sequence[str]) -> int | None:
    titles = {fold_title(candidate_titles[k]) for k in found}
    return found[0] if len(titles) == 1 else None


def _whole_words(title: str) -> str:
    return rf"(?<!\w){re.escape(title)}(?!\w)"
