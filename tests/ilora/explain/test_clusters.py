"""Users sorted by what they did."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilora.encoders import load_encoder, pad_histories
from ilora.errors import InputError
from ilora.explain.clusters import cluster, representations
from tests.ilora.tiny_world import World


def blobs(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Points far apart in as many places, in random order, and whose place each is of."""
    rng = np.random.default_rng(0)
    place = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = 100 * np.eye(len(sizes), 5)
    return centres[place] + rng.normal(size=(len(place), 5)), place


def test_points_that_lie_together_get_one_label_and_the_largest_cluster_comes_first() -> None:
    points, place = blobs((7, 20, 12))
    labels = cluster(points, 3, seed=0)
    assert [len(set(labels[place == blob])) for blob in range(3)] == [1, 1, 1]
    assert np.bincount(labels).tolist() == [20, 12, 7]


def test_one_seed_gives_one_answer_and_labels_do_not_depend_on_the_seed() -> None:
    points, _ = blobs((5, 9, 7))
    first = cluster(points, 3, seed=1)
    assert np.array_equal(first, cluster(points, 3, seed=1))
    assert np.array_equal(first, cluster(points, 3, seed=2))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_number_of_clusters_that_the_users_do_not_give_is_refused(count: int) -> None:
    points = np.array([[0.0], [0.0], [1.0], [2.0], [2.0]])
    with pytest.raises(InputError, match=rf"clusters is {count}.*which is 3"):
        cluster(points, count, seed=0)


def test_representations_are_the_encoders(world: World) -> None:
    encoder = load_encoder(world.encoder)
    rows = world.folder.rows("test", 3)
    histories = pad_histories([row.history for row in rows], encoder.window, encoder.num_items)
    expected = encoder.history_representation(histories).double().numpy()
    np.testing.assert_array_equal(representations(encoder, rows), expected)
    assert torch.is_grad_enabled()
