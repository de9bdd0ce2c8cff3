"""Training rows as windows in which several positions predict their next item at once.

The rows of a user overlap: ten of them share most of their history, and a causal encoder reads a
history once to predict after every position of it. So the rows are chained back into sequences,
and every epoch cuts these anew into runs of consecutive targets, one window a run:

    sequence   a b c d e f g …       run d e f, window 5:
    inputs     · a b c d e           (· is padding)
    targets          d e f           predicted from a b c, a b c d, a b c d e

Each row's target is predicted once an epoch, however many windows could hold it, and never from an
item outside its own row's history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilora.data.sequences import Row
from ilora.errors import InputError

IntArray = NDArray[np.int64]
IGNORED = -100  # a label that is no target, as in torch's cross entropy


@dataclass(slots=True)
class Chain:
    """Items of one user, oldest first; those from ``first_target`` on are the targets of rows."""

    items: list[int]
    first_target: int


def chain_rows(rows: Sequence[Row], window: int) -> list[Chain]:
    """Join rows that follow one another: one whose history ends in the last row's target.

    A row continues its user's latest chain if its history is exactly the (up to ``window``) latest
    items there; else it begins a new chain with its history as context. Nothing is assumed about
    the order of users. Rows without a user continue the latest such chain by the same test.
    """
    chains: list[Chain] = []
    latest: dict[int | None, Chain] = {}
    for row in rows:
        history = list(row.history[-window:])
        chain = latest.get(row.user)
        if chain is not None and history and chain.items[-window:] == history:
            chain.items.append(row.target)
        else:
            chain = Chain([*history, row.target], len(history))
            latest[row.user] = chain
            chains.append(chain)
    return chains


@dataclass
class TrainingWindows:
    """The training rows, ready to be cut into windows.

    Args:
        rows: the training rows, empty histories included.
        window: columns of a window, the encoder's.
        num_items: the padding id.
        run: the most targets in a window. 1 gives every target its full history and costs
            ``window`` times the work of ``run = window``.

    Raises:
        InputError: no row, or ``run`` outside ``1 … window``.
    """

    rows: Sequence[Row]
    window: int
    num_items: int
    run: int
    flat: IntArray = field(init=False, repr=False)  # every chain behind `window` padding ids
    place: IntArray = field(init=False, repr=False)  # of each target in `flat`
    chain: IntArray = field(init=False, repr=False)  # each target's chain
    order: IntArray = field(init=False, repr=False)  # each target's number within its chain

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError("rows is empty; an encoder needs at least one row to train on")
        if not 1 <= self.run <= self.window:
            raise InputError(
                f"targets_per_window is {self.run}; it must lie between 1 and the window of "
                f"{self.window}"
            )
        flat: list[int] = []
        place: list[IntArray] = []
        chains = chain_rows(self.rows, self.window)
        for chain in chains:
            flat.extend([self.num_items] * self.window)
            place.append(np.arange(chain.first_target, len(chain.items)) + len(flat))
            flat.extend(chain.items)
        self.flat = np.array(flat, dtype=np.int64)
        self.place = np.concatenate(place)
        self.chain = np.repeat(np.arange(len(chains)), [len(places) for places in place])
        self.order = np.concatenate([np.arange(len(places)) for places in place])

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.place)

    def epoch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """All targets once: inputs and labels, int64 ``[W, window]``; labels are -100 where none.

        The cuts lie elsewhere each time, so that a target is met now at the start of a run, with
        little context, now at its end, with all of it.
        """
        phase = rng.integers(self.run, size=int(self.chain[-1]) + 1)
        run = (self.order + phase[self.chain]) // self.run  # number of the run within its chain
        last = np.ones(len(run), dtype=bool)  # whether a target is the last of its run
        last[:-1] = (run[1:] != run[:-1]) | (self.chain[1:] != self.chain[:-1])
        size = np.diff(np.flatnonzero(last), prepend=-1)  # [W] targets in each run
        columns = np.arange(self.window) - self.window + 1  # …, -1, 0
        labels_at = self.place[last][:, None] + columns  # [W, window]
        inputs = self.flat[labels_at - 1]
        labels = np.where(columns > -size[:, None], self.flat[labels_at], IGNORED)
        return torch.from_numpy(inputs), torch.from_numpy(labels)

    def batches(self, batch_size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, about ``batch_size`` targets at a time."""
        inputs, labels = self.epoch(rng)
        order = torch.from_numpy(rng.permutation(len(inputs)))
        for batch in order.split(max(1, batch_size // self.run)):
            yield inputs[batch], labels[batch]
