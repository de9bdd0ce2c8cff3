"""Users who behave alike: k-means over the encoder's representations of their histories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.vq import ClusterError, kmeans2

from ilora.data.sequences import Row
from ilora.encoders import SequenceEncoder, pad_histories
from ilora.errors import InputError
from ilora.gate_map import FloatArray

IntArray = NDArray[np.int64]
STARTS = 10  # k-means ends where its start lets it; the best of ten is seldom a bad one
ITERATIONS = 100


@torch.inference_mode()
def representations(encoder: SequenceEncoder, rows: Sequence[Row]) -> FloatArray:
    """``z`` of each row's history: ``[n, hidden]``, float64."""
    device = encoder.item_embeddings.weight.device
    histories = pad_histories([row.history for row in rows], encoder.window, encoder.num_items)
    z = [encoder.history_representation(part.to(device)) for part in histories.split(1024)]
    return torch.cat(z).double().cpu().numpy()


def cluster(points: ArrayLike, count: int, *, seed: int) -> IntArray:
    """Labels ``[n]`` of k-means with ``count`` clusters: the best of ten starts by squared distance.

    Starts are k-means++ (Arthur and Vassilvitskii, SODA 2007). Cluster 0 is the largest, and so on,
    so that labels do not depend on the order in which the starts drew them.

    Raises:
        InputError: fewer than 2 clusters, or more than there are distinct points.
    """
    table = np.asarray(points, dtype=np.float64)
    distinct = len(np.unique(table, axis=0))
    if not 2 <= count <= distinct:
        raise InputError(
            f"clusters is {count}; it must be at least 2 and at most the number of users who differ, "
            f"which is {distinct}"
        )
    rng = np.random.default_rng(seed)
    ends = [_one_start(table, count, rng) for _ in range(STARTS)]
    sound = [end for end in ends if end is not None]
    if not sound:
        raise InputError(f"clusters is {count}, and some are always empty; ask for fewer")
    labels = min(sound, key=lambda end: end[0])[1]
    sizes = np.bincount(labels, minlength=count)
    first = np.array([int(np.argmax(labels == label)) for label in range(count)])
    place = np.empty(count, dtype=np.int64)
    place[np.lexsort((first, -sizes))] = np.arange(count)
    return place[labels]


def _one_start(
    table: FloatArray, count: int, rng: np.random.Generator
) -> tuple[float, IntArray] | None:
    """The summed squared distance and the labels of one start; None if a cluster ended empty."""
    try:
        centres, labels = kmeans2(
            table, count, iter=ITERATIONS, minit="++", missing="raise", seed=rng
        )
    except ClusterError:
        return None
    if len(np.unique(labels)) < count:
        return None
    return float(((table - centres[labels]) ** 2).sum()), labels.astype(np.int64)
