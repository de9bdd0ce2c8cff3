"""Rows in random order, those with prompts of about equal length in one batch: less padding.

A batch is as long as its longest prompt. Titles differ so much in length that of batches of 64 random
rows a quarter is padding. So a chunk of some batches is drawn at random, sorted by length and cut,
and the cuts are visited in random order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from ilora.data.collation import RecommendationDataset

BATCHES_PER_CHUNK = 16


class LengthSampler(Sampler[int]):
    """Every row once an epoch, in an order that depends on ``(seed, epoch)`` alone.

    A pass ends with the smaller batch, if there is one.
    """

    def __init__(self, rows: RecommendationDataset, batch_size: int, seed: int) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._rows)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, and what the rows draw; the Trainer calls this."""
        self.epoch = epoch
        self._rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self._seed, self.epoch))
        order, size = rng.permutation(len(self._rows)), self._batch_size
        whole = len(order) // size * size  # what is over comes last
        for start in range(0, whole, size * BATCHES_PER_CHUNK):
            chunk = order[start : min(start + size * BATCHES_PER_CHUNK, whole)]
            lengths = [self._rows.approximate_length(int(row)) for row in chunk]
            batches = chunk[np.argsort(lengths, kind="stable")].reshape(-1, size)
            yield from rng.permutation(batches).ravel().tolist()
        yield from order[whole:].tolist()
