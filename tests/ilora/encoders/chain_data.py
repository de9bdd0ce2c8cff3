"""A data folder whose next item is the current one's favourite successor, with known probability."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ilora.data.catalog import Catalog
from ilora.data.folder import DataFolder, write_folder
from ilora.data.sequences import UserSequence

NUM_ITEMS = 60
FAVOURITE = 0.8  # probability of the favourite successor; else the next item is drawn uniformly


def write_chain_folder(path: Path, *, num_users: int, length: int = 12) -> DataFolder:
    """``num_users`` sequences of a first-order Markov chain whose stationary distribution is flat.

    Favourites form one cycle through all items, so every item is equally popular.
    """
    rng = np.random.default_rng(0)
    cycle = rng.permutation(NUM_ITEMS)
    successor = np.empty(NUM_ITEMS, dtype=np.int64)
    successor[cycle] = np.roll(cycle, -1)
    sequences = []
    for user in range(num_users):
        items = [int(rng.integers(NUM_ITEMS))]
        while len(items) < length:
            follows = rng.random() < FAVOURITE
            items.append(int(successor[items[-1]] if follows else rng.integers(NUM_ITEMS)))
        sequences.append(UserSequence(user, tuple(items)))
    catalog = Catalog(tuple(f"thing {item}" for item in range(NUM_ITEMS)))
    return write_folder(
        path, name="chain", domain="item", catalog=catalog, sequences=sequences, seed=0
    )
