"""Who gets which experts: the gate's weights for many users, and their means by behaviour group.

The picture that comes of it (`ilora.plots.draw_gates`) is the paper's figure 3 with groups: do
users who behave alike share a mixture of experts?
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ilora.data.folder import DataFolder
from ilora.data.sequences import Row, Split
from ilora.encoders import SequenceEncoder, pad_histories
from ilora.errors import InputError
from ilora.gate import Gate

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class GateMap:
    """The gate's weights for each user.

    Attributes:
        weights: ``[users, K]``; each row sums to 1.
        groups: the behaviour group of each user, None where groups are not known.

    Raises:
        InputError: no user, or not one group for each user.
    """

    weights: FloatArray
    groups: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights, dtype=np.float64)
        if weights.ndim != 2 or 0 in weights.shape:
            raise InputError(
                f"weights has shape {list(weights.shape)}; give [users, K] with at least one user"
            )
        object.__setattr__(self, "weights", weights)
        if self.groups is None:
            return
        if len(self.groups) != len(weights):
            raise InputError(
                f"groups has {len(self.groups)} values for {len(weights)} users; give one for each"
            )
        object.__setattr__(self, "groups", tuple(int(group) for group in self.groups))

    @property
    def num_experts(self) -> int:
        """K."""
        return int(self.weights.shape[1])

    def blocks(self) -> list[tuple[str, FloatArray]]:
        """Users of one group after another: name of the group, weights ``[users of it, K]``.

        Within a group users are sorted by their strongest expert and its weight, so that a mixture
        which many share shows as an area. Without groups there is one block of all users.
        """
        if self.groups is None:
            return [("all users", _by_strongest(self.weights))]
        labels = np.array(self.groups)
        return [
            (f"group {group}", _by_strongest(self.weights[labels == group]))
            for group in sorted(set(self.groups))
        ]

    def means(self) -> dict[str, list[float]]:
        """Mean weights ``[K]`` of each block."""
        return {name: weights.mean(axis=0).tolist() for name, weights in self.blocks()}


@torch.inference_mode()
def gate_map(
    encoder: SequenceEncoder,
    gate: Gate,
    folder: DataFolder,
    split: Split = "test",
    *,
    min_history: int = 3,
) -> GateMap:
    """The gate's weights for the users of a split, each read from the latest of their rows.

    The language model is not needed: the gate sees the history alone. Rows without a user each
    count as one of their own. Of a gate per layer the mean over the layers is taken.

    Raises:
        InputError: no row has ``min_history`` history items.
    """
    rows = _latest_rows(folder.rows(split, min_history=min_history))
    if not rows:
        raise InputError(
            f"min_history is {min_history}, which leaves no {split} row of {folder.path}; lower it"
        )
    device = encoder.item_embeddings.weight.device
    histories = pad_histories([row.history for row in rows], encoder.window, encoder.num_items)
    mixtures = [gate.mixture(encoder, batch.to(device)).double() for batch in histories.split(1024)]
    weights = [m if m.ndim == 2 else m.mean(1) for m in mixtures]
    known = folder.groups()
    groups = [known[row.user] for row in rows if known and row.user is not None]
    return GateMap(
        torch.cat(weights).cpu().numpy(), tuple(groups) if len(groups) == len(rows) else None
    )


def _latest_rows(rows: list[Row]) -> list[Row]:
    """One row a user, the last in the file: rows of a user follow one another in time."""
    latest: dict[int | str, Row] = {}
    for number, row in enumerate(rows):
        latest[f"row {number}" if row.user is None else row.user] = row
    return list(latest.values())


def _by_strongest(weights: FloatArray) -> FloatArray:
    order = np.lexsort((-weights.max(axis=1), weights.argmax(axis=1)))
    return weights[order]
