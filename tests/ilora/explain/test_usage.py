"""How much each expert is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ilora.data.sequences import Row
from ilora.errors import InputError
from ilora.explain.usage import expert_usage, explain_usage
from ilora.gate_map import UserMixtures
from tests.ilora.explain.test_gates import PNG, table

ROW = Row(0, (1, 2, 3), 4)


def test_figures_are_means_over_users_of_every_layer() -> None:
    weights = np.array([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], [[0.1, 0.3, 0.6], [0.0, 0.0, 1.0]]])
    usage = expert_usage(weights)
    np.testing.assert_allclose(usage.mean, [[0.3, 0.4, 0.3], [0.5, 0.0, 0.5]])
    np.testing.assert_allclose(usage.spread[0], [0.2, 0.1, 0.3])
    np.testing.assert_allclose(usage.strongest, [[0.5, 0.0, 0.5], [0.5, 0.0, 0.5]])


def test_effective_experts_run_from_one_to_all() -> None:
    even, single = np.full((5, 1, 4), 0.25), np.eye(4)[:, None]
    assert expert_usage(even).per_user == pytest.approx(4)
    assert expert_usage(even).overall == pytest.approx(4)
    assert expert_usage(single).per_user == pytest.approx(1)  # each user has one, all are used
    assert expert_usage(single).overall == pytest.approx(4)


@pytest.mark.parametrize("layers", [1, 14])
def test_the_table_has_a_line_for_every_layer_and_expert(tmp_path: Path, layers: int) -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(4), size=(9, layers))
    usage = explain_usage(UserMixtures((ROW,) * 9, weights), tmp_path)
    lines = table(tmp_path / "usage.csv")
    assert len(lines) == layers * 4
    last = lines[-1]
    assert (int(last["layer"]), int(last["expert"])) == (layers - 1, 4)
    assert float(last["mean_weight"]) == pytest.approx(usage.mean[-1, 3], abs=1e-6)
    assert float(last["share_of_users_strongest"]) == pytest.approx(
        usage.strongest[-1, 3], abs=1e-6
    )
    assert (tmp_path / "usage.png").read_bytes().startswith(PNG)


def test_one_expert_leaves_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one expert"):
        explain_usage(UserMixtures((ROW,), np.ones((1, 1, 1))), tmp_path)
