"""Who gets which experts, as a picture and as a table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from ilora.data.folder import DataFolder
from ilora.encoders import load_encoder
from ilora.errors import InputError
from ilora.explain.gates import explain_gates, label_users
from ilora.gate_map import UserMixtures, user_mixtures
from tests.ilora.encoders.chain_data import write_chain_folder
from tests.ilora.tiny_world import World

PNG = b"\x89PNG"


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def found(world: World) -> UserMixtures:
    model = world.recommender(gate="per-layer")
    return user_mixtures(model.encoder, model.gate, world.folder, "train")


def test_the_table_has_a_line_for_every_user_with_the_models_weights(
    world: World, found: UserMixtures, tmp_path: Path
) -> None:
    encoder = load_encoder(world.encoder)
    kind, labels = label_users(encoder, world.folder, found.rows, clusters=3, seed=0)
    means = explain_gates(found, kind, labels, tmp_path)
    lines = table(tmp_path / "gates.csv")
    assert [int(line["user"]) for line in lines] == [row.user for row in found.rows]
    assert [int(line["cluster"]) for line in lines] == list(labels)
    told = np.array([[float(line[f"expert_{k}"]) for k in (1, 2, 3, 4)] for line in lines])
    np.testing.assert_allclose(told, found.weights.mean(1), atol=1e-6)
    np.testing.assert_allclose(told.sum(1), 1, atol=1e-5)
    assert list(means) == ["cluster 0", "cluster 1", "cluster 2"]
    np.testing.assert_allclose(means["cluster 1"], told[np.array(labels) == 1].mean(0), atol=1e-6)
    assert (tmp_path / "gates.png").read_bytes().startswith(PNG)


def test_groups_that_the_data_know_can_sort_the_users(world: World, found: UserMixtures) -> None:
    encoder = load_encoder(world.encoder)
    kind, labels = label_users(encoder, world.folder, found.rows, by="groups")
    groups = world.folder.groups()
    assert groups is not None
    assert kind == "group"
    assert list(labels) == [groups[row.user] for row in found.rows if row.user is not None]


def test_groups_of_data_that_know_none_are_refused(world: World, tmp_path: Path) -> None:
    folder: DataFolder = write_chain_folder(tmp_path / "chain", num_users=30)
    encoder = load_encoder(world.encoder)
    with pytest.raises(InputError, match="knows no behaviour groups"):
        label_users(encoder, folder, folder.rows("test", 3), by="groups")
    with pytest.raises(InputError, match="by is 'age'"):
        label_users(encoder, folder, folder.rows("test", 3), by="age")  # type: ignore[arg-type]


def test_one_expert_leaves_nothing_to_show(world: World, tmp_path: Path) -> None:
    model = world.recommender(method="lora")
    found = user_mixtures(model.encoder, model.gate, world.folder)
    with pytest.raises(InputError, match="one expert"):
        explain_gates(found, "cluster", [0] * len(found.rows), tmp_path)
    assert not list(tmp_path.iterdir())
