"""An encoder's own ranking of the frozen candidates: its figures, and the rows they are made of."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilora.data.folder import DataFolder
from ilora.data.sequences import Row, Split
from ilora.encoders.base import SequenceEncoder, pad_histories
from ilora.errors import InputError
from ilora.evaluation.metrics import ranking_metrics, ranks_of_target
from ilora.evaluation.records import (
    METRICS_FILE,
    evaluation_folder,
    row_record,
    write_evaluation,
)
from ilora.evaluation.statistics import FloatArray
from ilora.files import write_json

SPLITS: tuple[Split, ...] = ("val", "test")
BATCH = 1024
RankedRows = list[tuple[Row, tuple[int, ...]]]


def target_ranks(
    encoder: SequenceEncoder, folder: DataFolder, split: Split, min_history: int = 3
) -> FloatArray:
    """Rank of the target among the frozen candidates, for each row of ``val`` or ``test``: ``[n]``.

    Rank 0 is the best; ties count half (`ilora.evaluation.metrics.ranks_of_target`).

    Raises:
        InputError: no row has ``min_history`` history items.
    """
    return _ranks(encoder, ranked_rows(folder, split, min_history))


def ranked_rows(folder: DataFolder, split: Split, min_history: int) -> RankedRows:
    """The rows of a split with their candidates.

    Raises:
        InputError: no row has ``min_history`` history items.
    """
    ranked = folder.ranked_rows(split, min_history=min_history)
    if not ranked:
        raise InputError(
            f"min_history is {min_history}, which leaves no {split} row of {folder.path}; lower it"
        )
    return ranked


def write_encoder_metrics(
    out: Path,
    encoder: SequenceEncoder,
    folder: DataFolder,
    min_history: int,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Measure an encoder on both splits and write what came out below its folder ``out``.

    ``metrics.json`` has the figures of both splits; ``evaluation/val-encoder`` and ``test-encoder``
    have those of one and a line for each row, as `ilora compare` reads them.

    Args:
        origin: how the encoder came about; the first part of ``metrics.json``.

    Returns:
        The content of ``metrics.json``.
    """
    common = {
        "decode": "rank",
        "num_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "data": {"name": folder.name, "sha256": folder.sha256},
        "min_history": min_history,
    }
    versions = {package: version(package) for package in ("torch", "numpy")}
    measured: dict[str, Any] = {}
    for split in SPLITS:
        ranked = ranked_rows(folder, split, min_history)
        ranks = _ranks(encoder, ranked)
        measured[split] = ranking_metrics(ranks)
        write_evaluation(
            evaluation_folder(out, f"{split}-encoder"),
            {**common, "split": split, **measured[split], "versions": versions},
            [
                row_record(row, candidates) | {"rank": rank, "hit": rank == 0}
                for (row, candidates), rank in zip(ranked, ranks.tolist(), strict=True)
            ],
        )
    metrics = {**origin, **common, **measured, "versions": versions}
    write_json(out / METRICS_FILE, metrics)
    return metrics


def _ranks(encoder: SequenceEncoder, ranked: RankedRows) -> FloatArray:
    histories = pad_histories([row.history for row, _ in ranked], encoder.window, encoder.num_items)
    candidates = torch.tensor([items for _, items in ranked])
    index = [items.index(row.target) for row, items in ranked]
    return ranks_of_target(_score(encoder, histories, candidates), index)


@torch.inference_mode()
def _score(encoder: SequenceEncoder, histories: Tensor, candidates: Tensor) -> FloatArray:
    was_training = encoder.training
    encoder.eval()
    device = encoder.item_embeddings.weight.device
    scores = [
        encoder.scores(rows.to(device), items.to(device)).double().cpu().numpy()
        for rows, items in zip(histories.split(BATCH), candidates.split(BATCH), strict=True)
    ]
    encoder.train(was_training)
    return np.concatenate(scores)
