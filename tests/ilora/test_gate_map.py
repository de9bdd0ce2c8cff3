"""Gates of many users, sorted so that a shared mixture shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilora.encoders import pad_histories
from ilora.errors import InputError
from ilora.gate_map import GateMap, gate_map
from tests.ilora.tiny_world import World


def test_users_are_sorted_by_group_then_by_their_strongest_expert() -> None:
    weights = np.array([[0.4, 0.6], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    (first, zero), (second, one) = GateMap(weights, (1, 0, 0, 0, 1)).blocks()
    assert (first, second) == ("group 0", "group 1")
    assert zero.tolist() == [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]
    assert one.tolist() == [[0.6, 0.4], [0.4, 0.6]]


def test_means_are_those_of_each_group() -> None:
    found = GateMap(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]), (3, 3, 7)).means()
    assert found == {"group 3": [0.75, 0.25], "group 7": [0.0, 1.0]}


def test_without_groups_all_users_are_one_block() -> None:
    assert GateMap(np.array([[1.0, 0.0], [0.0, 1.0]])).means() == {"all users": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("weights", "groups"),
    [(np.zeros((0, 4)), None), (np.zeros(4), None), (np.ones((2, 1)), (0,))],
    ids=["no user", "one axis", "a group too few"],
)
def test_a_map_that_does_not_fit_is_refused(weights: np.ndarray, groups: tuple[int] | None) -> None:
    with pytest.raises(InputError):
        GateMap(weights, groups)


def test_each_user_is_read_from_the_latest_row_and_gets_the_models_gate(world: World) -> None:
    model = world.recommender()
    found = gate_map(model.encoder, model.gate, world.folder, "train", min_history=1)
    rows = world.folder.rows("train", min_history=1)
    latest = {row.user: row for row in rows}
    assert len(latest) < len(rows)
    histories = pad_histories(
        [row.history for row in latest.values()], world.folder.window, len(world.folder.catalog)
    )
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.from_numpy(found.weights).float(), model.gates(histories), rtol=1e-5, atol=1e-6
        )
    groups = world.folder.groups()
    assert groups is not None
    assert found.groups == tuple(groups[user] for user in latest if user is not None)


def test_a_split_without_long_enough_histories_is_refused(world: World) -> None:
    model = world.recommender()
    with pytest.raises(InputError, match="min_history is 99"):
        gate_map(model.encoder, model.gate, world.folder, min_history=99)
