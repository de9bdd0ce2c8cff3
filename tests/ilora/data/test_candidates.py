"""Frozen candidate lists: who may be a negative, and that the draw can be repeated."""

from __future__ import annotations

from collections import Counter

import pytest

from ilora.data.candidates import candidate_count, draw_candidates, known_items
from ilora.data.catalog import Catalog
from ilora.data.sequences import Row, UserSequence
from ilora.errors import InputError


def plain_catalog(num_items: int) -> Catalog:
    return Catalog(tuple(f"Item {item}" for item in range(num_items)))


def test_a_list_has_twenty_distinct_items_the_target_and_nothing_of_the_history() -> None:
    rows = [Row(user, tuple(range(user, user + 10)), 50 + user) for user in range(20)]
    for row, items in zip(
        rows, draw_candidates(rows, plain_catalog(100), split="val", seed=0), strict=True
    ):
        assert len(items) == len(set(items)) == 20
        assert row.target in items
        assert set(items).isdisjoint(row.history)


def test_a_target_within_the_history_is_a_candidate_all_the_same() -> None:
    (items,) = draw_candidates([Row(0, (1, 2, 3), 2)], plain_catalog(30), split="val", seed=0)
    assert 2 in items
    assert {1, 3}.isdisjoint(items)


def test_an_item_the_user_is_known_to_like_is_no_negative() -> None:
    row = Row(4, (1, 2), 3)
    known = known_items([UserSequence(4, (*range(30), 1, 2, 3))], [])
    (items,) = draw_candidates([row], plain_catalog(50), split="test", seed=0, known=known)
    assert set(items) - {3} <= set(range(30, 50))


def test_known_items_fill_the_list_when_nothing_else_is_left() -> None:
    row = Row(4, (1, 2), 3)
    known = {4: set(range(25))}
    (items,) = draw_candidates([row], plain_catalog(30), split="test", seed=0, known=known)
    assert set(range(25, 30)) < set(items)
    assert set(items).isdisjoint(row.history)
    assert len(set(items)) == 20


def test_without_sequences_what_a_user_knows_comes_from_rows() -> None:
    rows = [Row(1, (2, 3), 4), Row(1, (3, 4), 5), Row(None, (8,), 9)]
    assert known_items([], rows) == {1: {2, 3, 4, 5}}


def test_no_two_candidates_have_the_same_title() -> None:
    titles = tuple(f"Title {item % 25}" for item in range(200))
    groups = Catalog(titles).title_groups()
    rows = [Row(None, (), target) for target in range(200)]
    for items in draw_candidates(rows, Catalog(titles), split="val", seed=0):
        assert len({groups[item] for item in items}) == 20


def test_a_row_keeps_its_candidates_whatever_stands_before_or_after_it() -> None:
    rows = [Row(None, (item,), item + 1) for item in range(10)]
    lists = draw_candidates(rows, plain_catalog(60), split="val", seed=5)
    changed = [Row(None, (), 40), *rows[1:7]]
    assert draw_candidates(changed, plain_catalog(60), split="val", seed=5)[1:] == lists[1:7]


def test_seed_and_split_change_the_draw() -> None:
    rows = [Row(None, (1,), 2)]
    draws = {
        (split, seed): draw_candidates(rows, plain_catalog(60), split=split, seed=seed)[0]
        for split in ("val", "test")
        for seed in (0, 1)
    }
    assert len(set(draws.values())) == 4


def test_the_target_stands_at_every_place_equally_often() -> None:
    rows = [Row(None, (), 0)] * 2000
    lists = draw_candidates(rows, plain_catalog(40), split="val", seed=0)
    places = Counter(items.index(0) for items in lists)
    # 2,000 draws, expectation 100, standard deviation 9.7: five of them either way.
    assert all(abs(places[place] - 100) < 49 for place in range(20))


def test_negatives_are_drawn_uniformly() -> None:
    rows = [Row(None, (), 0)] * 2000
    lists = draw_candidates(rows, plain_catalog(40), split="val", seed=0)
    times = Counter(item for items in lists for item in items)
    # Each of 39 items with probability 19/39: expectation 974, standard deviation 22.
    assert all(abs(times[item] - 974) < 112 for item in range(1, 40))


def test_a_small_catalogue_gives_as_many_candidates_as_every_row_allows() -> None:
    rows = [Row(None, (1, 2, 3), 4), Row(None, (), 0)]
    assert candidate_count(rows, plain_catalog(12)) == 9  # 12 less three of the history
    assert candidate_count(rows, plain_catalog(100)) == 20
    lists = draw_candidates(rows, plain_catalog(12), split="val", seed=0, count=9)
    assert [len(items) for items in lists] == [9, 9]


def test_a_catalogue_without_room_for_a_negative_is_refused() -> None:
    with pytest.raises(InputError, match="leave some rows no negative"):
        candidate_count([Row(None, (0, 1), 2)], plain_catalog(3))
    with pytest.raises(InputError, match="1 distinct titles"):
        candidate_count([Row(None, (), 2)], Catalog(("Same",) * 30))


def test_a_list_of_one_is_no_choice() -> None:
    with pytest.raises(InputError, match="num_candidates is 1"):
        candidate_count([Row(None, (), 2)], plain_catalog(30), wanted=1)


def test_asking_for_more_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match=r"val row 1 has 4 .* at most 5"):
        draw_candidates([Row(None, (), 2)], plain_catalog(5), split="val", seed=0)
