"""Who gets which experts, by cluster of users: the paper's figure 3 with clusters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ilora.data.folder import DataFolder
from ilora.data.sequences import Row
from ilora.encoders import SequenceEncoder
from ilora.errors import InputError
from ilora.explain.clusters import cluster, representations
from ilora.files import write_csv
from ilora.gate_map import GateMap, UserMixtures, known_groups
from ilora.plots import draw_gates

By = Literal["clusters", "groups"]


def label_users(
    encoder: SequenceEncoder,
    folder: DataFolder,
    rows: Sequence[Row],
    *,
    by: By = "clusters",
    clusters: int = 8,
    seed: int = 0,
) -> tuple[str, tuple[int, ...]]:
    """What sorts the users, ``"cluster"`` or ``"group"``, and the label of each row's user.

    Args:
        by: ``"clusters"``: k-means over the encoder's representations; ``"groups"``: the behaviour
            groups that made-up data know.

    Raises:
        InputError: groups are not known, or a number of clusters that the users do not give.
    """
    if by not in ("clusters", "groups"):
        raise InputError(f"by is {by!r}; it must be clusters or groups")
    if by == "clusters":
        found = cluster(representations(encoder, rows), clusters, seed=seed)
        return "cluster", tuple(found.tolist())
    groups = known_groups(folder, rows)
    if groups is None:
        raise InputError(
            f"by is 'groups', but {folder.path} knows no behaviour groups; give clusters"
        )
    return "group", groups


def explain_gates(
    found: UserMixtures, kind: str, labels: Sequence[int], out: Path
) -> dict[str, list[float]]:
    """Write ``gates.png`` and ``gates.csv`` (a line a user); return the mean mixture of each label.

    Of a gate per layer the mean over the layers is shown.

    Raises:
        InputError: there is one expert, and so nothing to show.
    """
    weights = found.mean
    require_experts(weights.shape[1])
    map_ = GateMap(weights, tuple(labels), kind)
    header = ["user", kind, *(f"expert_{k}" for k in range(1, map_.num_experts + 1))]
    lines = (
        [row.user, label, *(f"{w:.6f}" for w in mixture)]
        for row, label, mixture in zip(found.rows, labels, weights.tolist(), strict=True)
    )
    write_csv(out / "gates.csv", header, lines)
    draw_gates(map_, out / "gates.png")
    return map_.means()


def require_experts(count: int) -> None:
    """Raise `InputError` where a model has no mixture to explain."""
    if count == 1:
        raise InputError(
            "model: it has one expert, which everybody gets; give a model of method ilora"
        )
