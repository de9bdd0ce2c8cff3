"""Who gets which experts: the gate's weights for many users, and their means by behaviour group.

The picture that comes of it (`ilora.plots.draw_gates`) is the paper's figure 3 with groups: do
users who behave alike share a mixture of experts?
"""

from __future__ import annotations

from collections.abc import Sequence
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
        kind: what a group is called.

    Raises:
        InputError: no user, or not one group for each user.
    """

    weights: FloatArray
    groups: tuple[int, ...] | None = None
    kind: str = "group"

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
            (f"{self.kind} {group}", _by_strongest(self.weights[labels == group]))
            for group in sorted(set(self.groups))
        ]

    def means(self) -> dict[str, list[float]]:
        """Mean weights ``[K]`` of each block."""
        return {name: weights.mean(axis=0).tolist() for name, weights in self.blocks()}


@dataclass(frozen=True)
class UserMixtures:
    """What the gate says of some users.

    Attributes:
        rows: one a user: the latest.
        weights: ``[users, layers, K]``; one layer where all share a mixture.
    """

    rows: tuple[Row, ...]
    weights: FloatArray

    @property
    def mean(self) -> FloatArray:
        """``[users, K]``: over the layers."""
        return self.weights.mean(axis=1)


@torch.inference_mode()
def user_mixtures(
    encoder: SequenceEncoder,
    gate: Gate,
    folder: DataFolder,
    split: Split = "test",
    *,
    min_history: int = 3,
) -> UserMixtures:
    """The gate's weights for the users of a split, each read from the latest of their rows.

    The language model is not needed: the gate sees the history alone.

    Raises:
        InputError: no row has ``min_history`` history items.
    """
    rows = [row for _, row in latest_rows(folder, split, min_history)]
    device = encoder.item_embeddings.weight.device
    histories = pad_histories([row.history for row in rows], encoder.window, encoder.num_items)
    mixtures = [gate.mixture(encoder, batch.to(device)) for batch in histories.split(1024)]
    weights = torch.cat(mixtures).double().cpu().numpy()
    return UserMixtures(tuple(rows), weights.reshape(len(rows), -1, weights.shape[-1]))


def gate_map(
    encoder: SequenceEncoder,
    gate: Gate,
    folder: DataFolder,
    split: Split = "test",
    *,
    min_history: int = 3,
) -> GateMap:
    """`user_mixtures`, the mean over the layers, by the behaviour groups that the data knows.

    Raises:
        InputError: no row has ``min_history`` history items.
    """
    found = user_mixtures(encoder, gate, folder, split, min_history=min_history)
    return GateMap(found.mean, known_groups(folder, found.rows))


def known_groups(folder: DataFolder, rows: Sequence[Row]) -> tuple[int, ...] | None:
    """The behaviour group of each row's user; None where not all of them are known."""
    known = folder.groups()
    groups = [known[row.user] for row in rows if known and row.user is not None]
    return tuple(groups) if len(groups) == len(rows) else None


def latest_rows(folder: DataFolder, split: Split, min_history: int) -> list[tuple[int, Row]]:
    """One row a user, the last in the file, with its number among those that are long enough.

    Rows of a user follow one another in time. Rows without a user each count as one of their own.

    Raises:
        InputError: no row has ``min_history`` history items.
    """
    latest: dict[int | str, tuple[int, Row]] = {}
    for number, row in enumerate(folder.rows(split, min_history=min_history)):
        latest[f"row {number}" if row.user is None else row.user] = number, row
    if not latest:
        raise InputError(
            f"min_history is {min_history}, which leaves no {split} row of {folder.path}; lower it"
        )
    return list(latest.values())


def _by_strongest(weights: FloatArray) -> FloatArray:
    order = np.lexsort((-weights.max(axis=1), weights.argmax(axis=1)))
    return weights[order]
