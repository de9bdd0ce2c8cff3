from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ilora.data.sequences import Row, UserSequence, windows
from ilora.encoders.windows import IGNORED, Chain, TrainingWindows, chain_rows
from ilora.errors import InputError

PADDING = 99


def rows_of_lengths(*lengths: int) -> list[Row]:
    """Sequences of distinct items, so that an item says which row it is the target of."""
    rows, item = [], 0
    for user, length in enumerate(lengths):
        rows += windows(UserSequence(user, tuple(range(item, item + length))), window=4)
        item += length
    return rows


def test_the_rows_of_a_sequence_become_the_sequence() -> None:
    assert chain_rows(rows_of_lengths(7, 3), window=4) == [
        Chain([0, 1, 2, 3, 4, 5, 6], 0),
        Chain([7, 8, 9], 0),
    ]


def test_the_rows_of_users_may_be_mixed() -> None:
    rows = rows_of_lengths(7, 7)
    mixed = [row for pair in zip(rows[:7], rows[7:], strict=True) for row in pair]
    assert chain_rows(mixed, window=4) == chain_rows(rows, window=4)


def test_a_row_that_continues_nothing_keeps_its_history_as_context() -> None:
    rows = [Row(None, (1, 2), 3), Row(None, (5, 6, 7, 8), 9), Row(None, (6, 7, 8, 9), 10)]
    assert chain_rows(rows, window=4) == [Chain([1, 2, 3], 2), Chain([5, 6, 7, 8, 9, 10], 4)]


def test_a_shorter_history_than_the_chain_has_does_not_continue_it() -> None:
    rows = [Row(0, (1, 2), 3), Row(0, (3,), 4)]
    assert chain_rows(rows, window=4) == [Chain([1, 2, 3], 2), Chain([3, 4], 1)]


@pytest.mark.parametrize("run", [1, 3, 4])
def test_every_target_is_predicted_once_an_epoch_from_its_own_history(run: int) -> None:
    rows = [*rows_of_lengths(1, 4, 11), Row(None, (60, 61, 62, 63), 64)]
    history_of = {row.target: row.history for row in rows}
    training = TrainingWindows(rows, window=4, num_items=PADDING, run=run)
    assert len(training) == len(rows)
    rng = np.random.default_rng(0)
    for _ in range(5):
        inputs, labels = training.epoch(rng)
        seen: Counter[int] = Counter()
        for window, targets in zip(inputs.tolist(), labels.tolist(), strict=True):
            assert 1 <= sum(target != IGNORED for target in targets) <= run
            for column, target in enumerate(targets):
                if target == IGNORED:
                    continue
                seen[target] += 1
                context = tuple(item for item in window[: column + 1] if item != PADDING)
                history = history_of[target]
                assert context == history[len(history) - len(context) :]
                assert len(context) >= min(len(history), 4 - run + 1)
        assert seen == Counter(row.target for row in rows)


def test_the_cuts_change_from_epoch_to_epoch_and_not_from_run_to_run() -> None:
    training = TrainingWindows(rows_of_lengths(40), window=4, num_items=PADDING, run=4)
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    epochs = [training.epoch(rng)[1].tolist() for _ in range(6)]
    assert any(epoch != epochs[0] for epoch in epochs)
    assert epochs == [training.epoch(again)[1].tolist() for _ in range(6)]


def test_batches_hold_an_epoch() -> None:
    training = TrainingWindows(rows_of_lengths(23, 5), window=4, num_items=PADDING, run=2)
    batches = list(training.batches(6, np.random.default_rng(0)))
    assert all(len(inputs) <= 3 for inputs, _ in batches)
    targets = [label for _, labels in batches for label in labels.flatten().tolist()]
    assert sorted(target for target in targets if target != IGNORED) == list(range(28))


def test_a_run_longer_than_the_window_is_refused() -> None:
    with pytest.raises(InputError, match=r"targets_per_window is 5.*window of 4"):
        TrainingWindows(rows_of_lengths(3), window=4, num_items=PADDING, run=5)
