"""Training a sequence encoder on a data folder: full softmax, early stopping on frozen candidates."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F

from ilora.data.folder import DataFolder
from ilora.devices import choose_device
from ilora.encoders.base import SequenceEncoder
from ilora.encoders.evaluation import (
    SPLITS,
    ranked_rows,
    target_ranks,
    write_encoder_metrics,
)
from ilora.encoders.registry import build_encoder
from ilora.encoders.storage import CONFIG_FILE, EncoderConfig, save_encoder
from ilora.encoders.windows import IGNORED, TrainingWindows
from ilora.errors import InputError
from ilora.evaluation.metrics import ranking_values
from ilora.evaluation.records import METRICS_FILE
from ilora.files import atomic_folder, is_taken


@dataclass(frozen=True, slots=True)
class EncoderTraining:
    """How to train an encoder. The defaults were chosen on validation rows, never on test rows.

    Attributes:
        learning_rate: Adam's, constant.
        batch_size: about so many targets a step.
        targets_per_window: at most so many targets share one window of the encoder. 1 gives every
            target its whole history; 5, half a window, at least 6 of its 10 items for a fifth of
            the work. See `ilora.encoders.windows`.
        weight_decay: decoupled (AdamW), on every parameter; 0 is plain Adam.
        max_epochs: at most so many passes over the training rows.
        patience: stop after so many epochs without a better validation NDCG.
        min_history: validation and test rows with a shorter history are left out; 3 as in the
            paper's loaders and in `ilora.evaluation.evaluate`, so that figures are of equal rows.
    """

    learning_rate: float = 1e-3
    batch_size: int = 256
    targets_per_window: int = 5
    weight_decay: float = 0.1
    max_epochs: int = 60
    patience: int = 10
    min_history: int = 3

    def __post_init__(self) -> None:
        for name in ("batch_size", "targets_per_window", "max_epochs", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay is {self.weight_decay}; it must not be below 0")
        if self.min_history < 0:
            raise InputError(f"min_history is {self.min_history}; it must not be below 0")


@dataclass(frozen=True)
class EncoderResult:
    """A trained encoder (frozen, in eval mode, on the CPU) and what is known about it.

    Attributes:
        path: the folder it was written to; `ilora.encoders.load_encoder` reads it.
        metrics: what ``metrics.json`` holds; ``metrics["val"]`` and ``metrics["test"]`` are
            `ilora.evaluation.metrics.ranking_metrics` over the frozen candidates.
    """

    encoder: SequenceEncoder
    path: Path
    metrics: dict[str, Any]


def train_encoder(
    folder: DataFolder,
    out: str | Path,
    *,
    name: str = "sasrec",
    seed: int = 0,
    hidden_size: int = 64,
    options: dict[str, Any] | None = None,
    training: EncoderTraining | None = None,
    device: str | torch.device | None = None,
) -> EncoderResult:
    """Train an encoder, keep the weights of its best epoch, measure them, write the folder ``out``.

    **The loss** is cross entropy over the whole catalogue,
    ``-log softmax_i(<z(history), e(i)>)[target]``. A few thousand items fit, and sampling
    negatives costs accuracy: SASRec's binary cross entropy on one negative is overconfident
    (Petrov and Macdonald, "gSASRec", RecSys 2023), and with the full softmax SASRec overtakes
    BERT4Rec, to which it had lost (Klenitskiy and Vasilev, "Turning Dross Into Gold Loss", RecSys
    2023).

    **The examples** are the rows of the training split, each target once an epoch, however many
    overlapping windows hold it; rows that follow one another share a pass of the encoder
    (`ilora.encoders.windows`).

    **Early stopping** goes by NDCG of the frozen candidate lists of the validation split. It
    moves with every rank, hit@1 only with the first; a hundred rows need the finer measure.

    With equal arguments, packages and number of threads a CPU gives equal bits.

    Args:
        out: a new folder, or an earlier encoder to replace.
        name: a key of `ilora.encoders.ENCODERS`.
        seed: of the initial weights, the order of rows and the dropout.
        hidden_size: width of item and history vectors; the paper's is 64.
        options: the encoder's own, such as ``{"num_heads": 2, "dropout": 0.2}``.
        training: how to train; None takes the defaults.
        device: where; None takes CUDA if there is one.

    Raises:
        InputError: an option out of range, an ``out`` that holds something else than an encoder, or
            no row left to train or evaluate on.
    """
    out, training = Path(out), training or EncoderTraining()
    _require_free(out)
    for split in SPLITS:  # what can fail should fail before the training
        ranked_rows(folder, split, training.min_history)
    place = choose_device(device)
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        encoder = build_encoder(
            name, len(folder.catalog), hidden_size, folder.window, **(options or {})
        ).to(place)
        history = _fit(encoder, folder, training, seed)
    origin = {
        "encoder": name,
        "seed": seed,
        "device": str(place),
        "seconds": round(time.perf_counter() - started, 2),
        **history,
    }
    encoder.to("cpu").requires_grad_(False).eval()
    with atomic_folder(out) as partial:
        config = _config(name, encoder, folder, {"seed": seed, **asdict(training)})
        save_encoder(partial, encoder, config)
        metrics = write_encoder_metrics(partial, encoder, folder, training.min_history, origin)
    return EncoderResult(encoder, out, metrics)


def _config(
    name: str, encoder: SequenceEncoder, folder: DataFolder, training: dict[str, Any]
) -> EncoderConfig:
    return EncoderConfig(
        encoder=name,
        num_items=encoder.num_items,
        hidden_size=encoder.hidden_size,
        window=encoder.window,
        options=encoder.options,
        data_name=folder.name,
        data_sha256=folder.sha256,
        training=training,
    )


def _fit(
    encoder: SequenceEncoder, folder: DataFolder, training: EncoderTraining, seed: int
) -> dict[str, Any]:
    """Train in place, leave the best epoch's weights, return the record for ``metrics.json``."""
    rows = folder.rows("train", min_history=0)
    run = min(training.targets_per_window, encoder.window)
    windows = TrainingWindows(rows, encoder.window, encoder.num_items, run)
    optimizer = torch.optim.AdamW(
        encoder.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    rng = np.random.default_rng(seed)
    best, best_epoch = -math.inf, 0
    best_state: dict[str, Tensor] = {}
    curve: list[dict[str, float]] = []
    with _progress_bar() as bar:
        task = bar.add_task(f"Training on {folder.name}", total=training.max_epochs, note="")
        for epoch in range(1, training.max_epochs + 1):
            loss = _train_epoch(encoder, windows, optimizer, training, rng)
            values = ranking_values(target_ranks(encoder, folder, "val", training.min_history))
            ndcg, hit = float(values["ndcg"].mean()), float(values["hr@1"].mean())
            curve.append({"epoch": epoch, "loss": loss, "val_ndcg": ndcg, "val_hr@1": hit})
            if ndcg > best:
                best, best_epoch = ndcg, epoch
                best_state = copy.deepcopy(encoder.state_dict())
            note = f"loss {loss:.2f}, NDCG {ndcg:.3f}, best {best:.3f}"
            bar.update(task, advance=1, note=note)
            if epoch - best_epoch >= training.patience:
                break
    encoder.load_state_dict(best_state)
    return {"epochs": len(curve), "best_epoch": best_epoch, "curve": curve}


def _train_epoch(
    encoder: SequenceEncoder,
    windows: TrainingWindows,
    optimizer: torch.optim.Optimizer,
    training: EncoderTraining,
    rng: np.random.Generator,
) -> float:
    """One pass over all targets; returns their mean loss."""
    device = encoder.item_embeddings.weight.device
    encoder.train()
    total = torch.zeros((), device=device)
    for inputs, labels in windows.batches(training.batch_size, rng):
        counted = labels != IGNORED
        targets = labels[counted].to(device)  # [T]
        z = encoder.prefix_representations(inputs.to(device))[counted.to(device)]  # [T, hidden]
        loss = F.cross_entropy(encoder.catalog_scores(z), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(targets)
    mean = total.item() / len(windows)
    # The last step can spoil the weights after the last loss was taken.
    sound = all(bool(parameter.isfinite().all()) for parameter in encoder.parameters())
    if not math.isfinite(mean) or not sound:
        raise InputError(
            f"learning_rate is {training.learning_rate} and the training diverged "
            f"(loss {mean:.3g}); lower it"
        )
    return mean


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _require_free(out: Path) -> None:
    if is_taken(out) and not ((out / CONFIG_FILE).is_file() and (out / METRICS_FILE).is_file()):
        raise InputError(f"{out} exists and is not an encoder's folder; choose a new folder")
