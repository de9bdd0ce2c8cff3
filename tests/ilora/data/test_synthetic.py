"""Synthetic data: the rules hold, conflict, need the history, and are the seed's alone."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilora.data.check import check_folder
from ilora.data.folder import DataFolder
from ilora.data.synthetic import (
    KINDS,
    MOODS,
    best_hit_ratio,
    build_synthetic,
    draw_rules,
    synthetic_catalog,
)
from ilora.errors import InputError

NUM_GROUPS, NUM_ITEMS = 4, 80
NUM_MOODS = NUM_ITEMS // NUM_GROUPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return build_synthetic(tmp_path_factory.mktemp("synthetic") / "data", seed=3)


def groups_of(folder: DataFolder) -> list[int]:
    groups = folder.groups()
    assert groups is not None
    return groups


def histories(folder: DataFolder) -> list[tuple[int, tuple[int, ...]]]:
    """(group, items) of every user."""
    groups, sequences = groups_of(folder), folder.sequences()
    assert sequences is not None
    pairs = []
    for sequence in sequences:
        assert sequence.user is not None
        pairs.append((groups[sequence.user], sequence.items))
    return pairs


def test_the_folder_passes_the_check_and_is_split_by_user_eight_one_one(folder: DataFolder) -> None:
    check_folder(folder.path)
    users = {
        split: {row.user for row in folder.rows(split, min_history=0)}
        for split in ("train", "val", "test")
    }
    assert {split: len(found) for split, found in users.items()} == {
        "train": 1600,
        "val": 200,
        "test": 200,
    }
    assert not users["train"] & (users["val"] | users["test"])
    assert not users["val"] & users["test"]


def test_groups_are_of_equal_size_and_users_order_does_not_tell_them(folder: DataFolder) -> None:
    groups = groups_of(folder)
    assert Counter(groups) == dict.fromkeys(range(NUM_GROUPS), 500)
    assert groups != sorted(groups)
    assert groups[:8] != [user % NUM_GROUPS for user in range(8)]


def test_titles_are_unique_pairs_of_words_with_every_mood_once_in_each_kind() -> None:
    catalog = synthetic_catalog(NUM_ITEMS, NUM_GROUPS)
    assert len(set(catalog.titles)) == len(catalog) == NUM_ITEMS
    kind_of = {thing: kind for kind, things in enumerate(KINDS.values()) for thing in things}
    for item, title in enumerate(catalog.titles):
        mood, thing = title.split(" ")
        assert (MOODS.index(mood), kind_of[thing]) == divmod(item, NUM_GROUPS)


def test_no_word_stands_for_two_things() -> None:
    words = [*MOODS, *itertools.chain.from_iterable(KINDS.values())]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("num_moods", [5, 20, 37])
def test_after_the_same_mood_every_group_goes_on_to_another(num_moods: int) -> None:
    rules = draw_rules(num_moods, NUM_GROUPS, np.random.default_rng(0))
    for mood in range(num_moods):
        assert len(set(rules.next_mood[:, mood].tolist())) == NUM_GROUPS
        assert mood not in rules.next_mood[:, mood]


def test_every_group_comes_by_every_mood_before_it_repeats_one() -> None:
    rules = draw_rules(NUM_MOODS, NUM_GROUPS, np.random.default_rng(1))
    for following in rules.next_mood:
        mood, seen = 0, []
        for _ in range(NUM_MOODS):
            seen.append(mood)
            mood = int(following[mood])
        assert sorted(seen) == list(range(NUM_MOODS))
        assert mood == 0


def test_users_follow_their_own_groups_habit_and_nobody_elses(folder: DataFolder) -> None:
    next_mood = np.asarray(folder.info["synthetic"]["next_mood"])
    agreed = np.zeros((NUM_GROUPS, NUM_GROUPS))  # [the user's group, the rule's group]
    steps = np.zeros(NUM_GROUPS)
    for group, items in histories(folder):
        for before, after in itertools.pairwise(items):
            agreed[group] += next_mood[:, before // NUM_GROUPS] == after // NUM_GROUPS
            steps[group] += 1
    share = agreed / steps[:, None]
    by_rule, by_chance = 1 - 0.08 + 0.08 / NUM_MOODS, 0.08 / NUM_MOODS
    expected = np.full_like(share, by_chance) + np.eye(NUM_GROUPS) * (by_rule - by_chance)
    deviation = np.sqrt(expected * (1 - expected) / steps[:, None])
    assert (np.abs(share - expected) < 5 * deviation).all()


def test_a_group_prefers_one_kind_and_all_groups_meet_every_item(folder: DataFolder) -> None:
    favourite = folder.info["synthetic"]["favourite_kind"]
    assert sorted(favourite) == list(range(NUM_GROUPS))
    met = np.zeros((NUM_GROUPS, NUM_ITEMS))
    for group, items in histories(folder):
        np.add.at(met[group], list(items), 1)
    assert (met > 0).all()
    kinds = met.reshape(NUM_GROUPS, NUM_MOODS, NUM_GROUPS).sum(1) / met.sum(1, keepdims=True)
    for group in range(NUM_GROUPS):
        assert kinds[group, favourite[group]] == pytest.approx(0.7 + 0.3 / NUM_GROUPS, abs=0.03)


def test_knowing_all_rules_hits_as_often_as_the_formula_says(folder: DataFolder) -> None:
    rules = folder.info["synthetic"]
    hits = [
        after
        == rules["next_mood"][group][before // NUM_GROUPS] * NUM_GROUPS
        + rules["favourite_kind"][group]
        for group, items in histories(folder)
        for before, after in itertools.pairwise(items)
    ]
    expected = best_hit_ratio(NUM_MOODS, NUM_GROUPS, noise=0.08, taste=0.7)
    assert np.mean(hits) == pytest.approx(expected, abs=5 * np.sqrt(0.25 / len(hits)))


def test_one_rule_for_all_users_must_compromise(folder: DataFolder) -> None:
    """The commonest next mood after a mood, groups unknown, is right a quarter of the time."""
    seen = np.zeros((NUM_MOODS, NUM_MOODS))
    for _, items in histories(folder):
        for before, after in itertools.pairwise(items):
            seen[before // NUM_GROUPS, after // NUM_GROUPS] += 1
    assert seen.max(1).sum() / seen.sum() < 1.3 / NUM_GROUPS


def test_a_shared_habit_is_one_rule_for_all_whose_tastes_still_differ(tmp_path: Path) -> None:
    folder = build_synthetic(tmp_path / "data", num_users=60, noise=0, shared_habit=True)
    rules = folder.info["synthetic"]
    assert len({tuple(following) for following in rules["next_mood"]}) == 1
    assert sorted(rules["favourite_kind"]) == list(range(NUM_GROUPS))
    after: dict[int, set[int]] = {}
    for _, items in histories(folder):
        for one, following in itertools.pairwise(items):
            after.setdefault(one // NUM_GROUPS, set()).add(following // NUM_GROUPS)
    assert {len(found) for found in after.values()} == {1}


def test_the_target_stands_at_every_place_among_the_candidates(folder: DataFolder) -> None:
    places = Counter(candidates.index(row.target) for row, candidates in folder.ranked_rows("test"))
    assert len(places) == folder.num_candidates == 20
    assert max(places.values()) < 0.2 * sum(places.values())


def test_equal_seeds_give_equal_folders_and_other_seeds_other_rules(tmp_path: Path) -> None:
    first, again, other = (
        build_synthetic(tmp_path / name, num_users=60, seed=seed, name="same")
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert first.sha256 == again.sha256
    assert first.info == again.info
    assert first.info["synthetic"]["next_mood"] != other.info["synthetic"]["next_mood"]
    assert first.catalog == other.catalog


def test_lengths_are_kept(tmp_path: Path) -> None:
    folder = build_synthetic(tmp_path / "data", num_users=100, lengths=(3, 5))
    assert {len(items) for _, items in histories(folder)} == {3, 4, 5}


def test_without_noise_and_with_full_taste_the_next_item_is_certain(tmp_path: Path) -> None:
    folder = build_synthetic(tmp_path / "data", num_users=100, noise=0, taste=1)
    after: dict[tuple[int, int], set[int]] = {}
    for group, items in histories(folder):
        for one, following in itertools.pairwise(items):
            after.setdefault((group, one), set()).add(following)
    assert {len(found) for found in after.values()} == {1}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_groups": 1}, "num_groups: 1"),
        ({"num_groups": len(KINDS) + 1}, f"num_groups: {len(KINDS) + 1}"),
        ({"num_users": 39}, "num_users: 39"),
        ({"num_items": 82}, "num_items: 82.* 80$"),
        ({"num_items": 4}, "num_items: 4 .* 20$"),
        ({"num_items": 4000}, "num_items: 4000"),
        ({"seed": -1}, "seed: -1"),
        ({"noise": 1.0}, "noise: 1.0"),
        ({"noise": -0.1}, "noise: -0.1"),
        ({"taste": 1.5}, "taste: 1.5"),
        ({"lengths": (1, 5)}, r"lengths: \(1, 5\)"),
        ({"lengths": (6, 5)}, r"lengths: \(6, 5\)"),
    ],
)
def test_a_number_out_of_range_is_named_and_nothing_is_written(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        build_synthetic(tmp_path / "data", **options)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    first = build_synthetic(tmp_path / "data", num_users=60, seed=1)
    with pytest.raises(InputError, match="overwrite"):
        build_synthetic(tmp_path / "data", num_users=60, seed=2)
    assert DataFolder.open(first.path).sha256 == first.sha256
    second = build_synthetic(tmp_path / "data", num_users=60, seed=2, overwrite=True)
    assert second.sha256 != first.sha256
