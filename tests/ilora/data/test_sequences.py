"""Sequences, windows and the split by user."""

from __future__ import annotations

import pytest

from ilora.data.sequences import Row, UserSequence, last_window, rows_of, windows
from ilora.data.splits import split_by_user, split_sizes
from ilora.errors import InputError


def test_every_position_of_a_sequence_is_a_row_the_first_without_history() -> None:
    rows = windows(UserSequence(7, (4, 5, 6, 4)), window=2)
    assert rows == [Row(7, (), 4), Row(7, (4,), 5), Row(7, (4, 5), 6), Row(7, (5, 6), 4)]


def test_the_last_window_holds_the_items_just_before_the_last_one() -> None:
    assert last_window(UserSequence(None, (1, 2, 3, 4)), window=2) == Row(None, (2, 3), 4)
    assert last_window(UserSequence(1, (9,)), window=2) == Row(1, (), 9)


def test_a_default_window_keeps_ten_items() -> None:
    row = last_window(UserSequence(0, tuple(range(15))))
    assert row.history == tuple(range(4, 14))


def test_an_empty_sequence_has_no_last_item() -> None:
    with pytest.raises(InputError, match="user 3 is empty"):
        last_window(UserSequence(3, ()))


def test_a_window_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="window is 0"):
        windows(UserSequence(0, (1, 2)), window=0)


def test_training_users_give_all_windows_and_the_others_one_row() -> None:
    sequences = [UserSequence(0, (1, 2, 3), "train"), UserSequence(1, (4, 5, 6), "val")]
    assert len(rows_of(sequences, "train")) == 3
    assert rows_of(sequences, "val") == [Row(1, (4, 5), 6)]
    assert rows_of(sequences, "test") == []


@pytest.mark.parametrize(
    ("users", "sizes"),
    [
        (943, (754, 94, 95)),
        (1220, (976, 122, 122)),
        (10, (8, 1, 1)),
        (3, (1, 1, 1)),
        (9, (7, 1, 1)),
    ],
)
def test_the_split_has_the_sizes_of_eight_one_one(users: int, sizes: tuple[int, ...]) -> None:
    assert tuple(split_sizes(users).values()) == sizes


def test_two_users_cannot_be_split() -> None:
    with pytest.raises(InputError, match=r"2 users .* at least 3"):
        split_sizes(2)


def test_the_split_keeps_order_and_follows_the_seed() -> None:
    sequences = [UserSequence(user, (1, 2)) for user in range(50)]
    drawn = split_by_user(sequences, seed=1)
    assert [one.user for one in drawn] == list(range(50))
    assert drawn == split_by_user(sequences, seed=1)
    assert drawn != split_by_user(sequences, seed=2)


def test_a_user_with_two_sequences_is_refused() -> None:
    sequences = [UserSequence(user, (1, 2)) for user in (5, 6, 5)]
    with pytest.raises(InputError, match="user 5 has more than one"):
        split_by_user(sequences, seed=0)


def test_sequences_without_a_user_count_as_users_of_their_own() -> None:
    drawn = split_by_user([UserSequence(None, (1, 2))] * 10, seed=0)
    assert sorted(str(one.split) for one in drawn) == ["test"] + ["train"] * 8 + ["val"]
