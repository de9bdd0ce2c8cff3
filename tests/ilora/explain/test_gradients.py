"""Gradients of clusters of users, held to gradients done by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ilora.data.collation import Collator
from ilora.data.sequences import Row
from ilora.errors import InputError
from ilora.explain.gradients import (
    Similarity,
    explain_gradients,
    gradient_similarity,
    summed_gradient,
)
from ilora.gate_map import latest_rows
from ilora.model import ILoRARecommender
from tests.ilora.explain.test_gates import PNG, table
from tests.ilora.tiny_world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(world: World) -> ILoRARecommender:
    """One LoRA that all share."""
    return world.recommender(method="lora", dropout=0.5)  # dropout must not be active


def by_hand(world: World, model: ILoRARecommender, numbers: list[int]) -> Tensor:
    """The sum of the gradients of one prompt after another, by backward()."""
    rows = world.rows(model, "train", answer=True)
    model.eval().zero_grad()
    for number in numbers:
        model(**world.batch(model, [rows[number]]), num_items_in_batch=1).loss.backward()
    grads = [p.grad for name, p in model.named_parameters() if ".lora_" in name]
    total = torch.cat([grad.double().flatten() for grad in grads if grad is not None])
    model.zero_grad()
    return total


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_clusters_gradient_is_the_sum_over_its_rows_however_they_are_batched(
    world: World, model: ILoRARecommender, batch_size: int
) -> None:
    rows = world.rows(model, "train", answer=True)
    collator = Collator(model.tokenizer, len(world.folder.catalog), world.folder.window, "left")
    numbers = [5, 0, 17, 3, 4]
    found = summed_gradient(model, rows, numbers, collator, batch_size)
    expected = by_hand(world, model, numbers)
    assert expected.norm() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_cosines_are_those_of_the_clusters_gradients(world: World, model: ILoRARecommender) -> None:
    latest = latest_rows(world.folder, "train", 3)

    def by_parity(rows: list[Row]) -> tuple[str, tuple[int, ...]]:
        return "cluster", tuple((row.user or 0) % 2 for row in rows)

    found = gradient_similarity(model, world.folder, by_parity, users=1000)
    parts = [[n for n, row in latest if (row.user or 0) % 2 == parity] for parity in (0, 1)]
    first, second = (by_hand(world, model, part) for part in parts)
    cosine = float(torch.nn.functional.cosine_similarity(first, second, dim=0))
    assert found.cosine[0, 1] == pytest.approx(cosine, abs=1e-4)
    np.testing.assert_allclose(found.cosine, found.cosine.T)
    np.testing.assert_allclose(np.diag(found.cosine), 1)
    assert found.users == tuple(len(part) for part in parts)
    np.testing.assert_allclose(found.halves, found.halves.T)
    assert all(-1 <= half < 1 for half in found.halves.diagonal())


def test_halves_of_two_clusters_are_compared_pair_by_pair(
    world: World, model: ILoRARecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [0.0, 1.0]])  # two halves of each cluster
    monkeypatch.setattr(
        "ilora.explain.gradients.summed_gradient",
        lambda *_: torch.tensor(next(told), dtype=torch.float64),
    )

    def halves(rows: list[Row]) -> tuple[str, tuple[int, ...]]:
        return "cluster", tuple(number % 2 for number in range(len(rows)))

    found = gradient_similarity(model, world.folder, halves)
    np.testing.assert_allclose(found.halves, [[0.6, 0.4], [0.4, 1.0]])  # (0 + 0 + .8 + .8) / 4
    np.testing.assert_allclose(found.cosine[0, 1], 4 / 32**0.5)


def test_one_seed_draws_the_same_users_and_halves(world: World, model: ILoRARecommender) -> None:
    def all_one(rows: list[Row]) -> tuple[str, tuple[int, ...]]:
        return "group", (7,) * len(rows)

    one, same, other = (
        gradient_similarity(model, world.folder, all_one, users=6, seed=seed) for seed in (1, 1, 2)
    )
    assert one.users == (6,)
    assert np.array_equal(one.halves, same.halves)
    assert not np.array_equal(one.halves, other.halves)
    assert (one.kind, one.labels) == ("group", (7,))


def test_an_unadapted_model_can_be_asked_and_stays_frozen(world: World) -> None:
    model, _ = world.built({"adapter.method": "none"})

    def halves(rows: list[Row]) -> tuple[str, tuple[int, ...]]:
        return "cluster", tuple(number % 2 for number in range(len(rows)))

    found = gradient_similarity(model, world.folder, halves, users=4)
    assert np.isfinite(found.cosine).all()
    assert model.trainable_parameters() == 0


@pytest.mark.parametrize(
    ("options", "told"), [({"users": 1}, "users is 1"), ({"batch_size": 0}, "batch_size is 0")]
)
def test_an_option_out_of_range_is_named(
    world: World, model: ILoRARecommender, options: dict[str, int], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        gradient_similarity(model, world.folder, lambda rows: ("cluster", ()), **options)


def test_a_cluster_of_one_has_no_halves(world: World, model: ILoRARecommender) -> None:
    def lonely(rows: list[Row]) -> tuple[str, tuple[int, ...]]:
        return "cluster", (0,) * (len(rows) - 1) + (1,)

    with pytest.raises(InputError, match="cluster 1 has 1 user"):
        gradient_similarity(model, world.folder, lonely)


def test_the_table_has_a_line_a_cluster_and_the_picture_is_drawn(tmp_path: Path) -> None:
    cosine, halves = np.array([[1.0, -0.25], [-0.25, 1.0]]), np.array([[0.5, 0.1], [0.1, 0.75]])
    explain_gradients(Similarity(cosine, halves, (3, 4), "cluster", (0, 1)), tmp_path)
    first, second = table(tmp_path / "gradients.csv")
    assert (first["cluster"], first["users"], second["users"]) == ("0", "3", "4")
    assert (first["whole_1"], second["whole_0"]) == ("-0.250000", "-0.250000")
    assert (first["half_0"], first["half_1"], second["half_1"]) == (
        "0.500000",
        "0.100000",
        "0.750000",
    )
    assert (tmp_path / "gradients.png").read_bytes().startswith(PNG)
