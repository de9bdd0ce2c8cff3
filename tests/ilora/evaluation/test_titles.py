from __future__ import annotations

import pytest

from ilora.evaluation.titles import (
    fold_title,
    judge_answer,
    judge_as_reference,
    longest_match,
    match_answer,
    normalise_title,
)

GAMES = ["Portal", "Portal 2", "Half-Life", "Up"]


@pytest.mark.parametrize(
    ("title", "normalised"),
    [
        ("  The   Wall\n", "the wall"),
        ("Ｐｏｒｔａｌ\u00a02", "portal 2"),  # full-width letters, a no-break space
        ("Cafe\u0301", "caf\u00e9"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("Tom &amp; Jerry", "tom & jerry"),
        ("“Portal”.", "portal"),
        ("'Portal.'", "portal"),
        ("Portal 2!", "portal 2"),
        ("...And Justice for All", "...and justice for all"),
        ("Godfather, The", "godfather, the"),
        ("Depths of Fear :: Knossos", "depths of fear :: knossos"),
        ("!!!", "!!!"),
        ('"', '"'),
        (" \t", ""),
    ],
)
def test_a_title_is_normalised(title: str, normalised: str) -> None:
    assert normalise_title(title) == normalised


def test_normalising_twice_is_normalising_once() -> None:
    for title in ["ΐ", "“Help!” ...", "ﬁn.", "İstanbul"]:
        assert normalise_title(normalise_title(title)) == normalise_title(title)


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("Portal", 0),
        ("Portal 2", 1),
        (' "portal 2." ', 1),
        ("HALF-LIFE", 2),
        ("Portal 3", None),
        ("I recommend Portal 2", None),
        ("Portal, Portal 2", None),
        ("Porta", None),
        ("", None),
        (".", None),
    ],
)
def test_the_answer_has_to_be_a_title(answer: str, index: int | None) -> None:
    assert match_answer(answer, GAMES) == index


def test_punctuation_counts_where_it_tells_titles_apart() -> None:
    assert match_answer("Help!", ["Help", "Help!"]) == 1
    assert match_answer('"Help!"', ["Help", "Help!"]) == 1
    assert match_answer("help", ["Help!", "Help"]) == 1
    assert match_answer("Help.", ["Help", "Help!"]) is None
    assert match_answer("Help.", ["Alien", "Help!"]) == 1


@pytest.mark.parametrize("match", [match_answer, longest_match])
def test_empty_titles_never_match(match: object) -> None:
    assert callable(match)
    for answer in ("", " ", '""', "anything"):
        assert match(answer, ["", "  ", "Alien"]) is None


@pytest.mark.parametrize("match", [match_answer, longest_match])
def test_candidates_of_one_title_are_named_together_and_stand_for_the_first(match: object) -> None:
    assert callable(match)
    assert match("Hamlet", ["Alien", "Hamlet", "HAMLET"]) == 1


def test_a_hit_is_decided_by_the_title_so_the_order_of_namesakes_is_no_matter() -> None:
    for titles in (["Hamlet", "Alien", "hamlet"], ["hamlet", "Alien", "Hamlet"]):
        judgement = judge_answer("Hamlet", titles, "Hamlet")
        assert judgement.valid
        assert judgement.hit


def test_a_valid_answer_other_than_the_target_is_no_hit() -> None:
    judgement = judge_answer("Portal", GAMES, "Portal 2")
    assert (judgement.candidate, judgement.valid, judgement.hit) == (0, True, False)


def test_titles_that_differ_in_punctuation_are_not_the_same_target() -> None:
    assert not judge_answer("Help", ["Help", "Help!"], "Help!").hit


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("I recommend Portal 2.", 1),
        ("I recommend Portal.", 0),
        ("Portal, Portal 2", None),
        ("Portal 2, then Portal 2 again", 1),
        ("in support of nobody", None),
        ("Portal2", None),
        ("Portals", None),
        ("go up", 3),
        ("", None),
    ],
)
def test_the_longest_match_finds_one_title_within_the_answer(
    answer: str, index: int | None
) -> None:
    assert longest_match(answer, GAMES) == index


def test_titles_that_only_punctuation_tells_apart_are_ambiguous_within_an_answer() -> None:
    assert longest_match("I choose Help!", ["Help", "Help!", "Alien"]) is None
    assert longest_match("I choose Help!", ["Alien", "Help!"]) == 1


def test_regular_expression_signs_in_titles_are_letters_like_any() -> None:
    titles = ["S.T.A.L.K.E.R.", "What? (Part 1)", "C++", "!!!"]
    assert longest_match("take What? (Part 1) today", titles) == 1
    assert longest_match("take SxTxAxLxKxExR today", titles) is None
    assert longest_match("learn C++ now", titles) == 2
    assert longest_match("hear !!! live", titles) == 3


def test_folding_keeps_what_belongs_to_the_title() -> None:
    assert fold_title(' "Help!" ') == '"help!"'


@pytest.mark.parametrize(
    ("answer", "valid", "hit"),
    [
        ("Half-Life", True, True),
        ("  i choose HALF-LIFE!", True, True),
        ("Portal", True, False),
        ("Portal 2", False, False),  # holds "Portal" too
        ("support", True, False),  # "Up" is in it, whole word or not
        ("Half-Life support", False, False),
        ("Half Life", False, False),
        ("", False, False),
    ],
)
def test_the_reference_wants_one_candidate_to_be_a_substring(
    answer: str, valid: bool, hit: bool
) -> None:
    judged = judge_as_reference(answer, GAMES, "Half-Life")
    assert (judged.valid, judged.hit) == (valid, hit)


def test_the_reference_takes_no_answer_that_two_entries_share() -> None:
    assert not judge_as_reference("Portal", ["Portal", "portal ", "Up"], "Portal").valid
    assert judge_answer("Portal", ["Portal", "portal ", "Up"], "Portal").hit
