"""Next-token pre-training of a small language model on text prompts: a plain loop.

The prompts are those of :mod:`ilora.data.prompts` with their answers, in words alone: the
placeholder is an ordinary token that ends a title. Only training rows are read.

**The loss.** A plain mean over all tokens would spend nearly everything on spelling titles that
nobody can predict (the candidates are drawn at random): of some two hundred tokens a prompt only
three or four are the answer. So the mean over all tokens, which teaches the titles and, through the
histories, what follows what, and the mean over the answers, which teaches to choose one of the
candidates and to copy it, are averaged, by
default with equal weight.

**The ramp.** To find the answer a model has to look a title up among twenty, and a young one has
nothing to go by: shown full prompts at once, the answer's loss stays for hundreds of steps at that
of a random choice. With three candidates the same step is easy, so prompts begin short and grow.

**Throughput.** Worker processes encode a chunk of several batches at once, sort it by length and cut
it, so that little padding is computed; right padding under a causal mask needs no mask at all, so
attention takes its fastest path; a batch that would not fit in memory is accumulated in equal
pieces. In bfloat16 the whole model is a bfloat16 copy of float32 master weights rather than
autocast, whose float32 residual stream costs bandwidth: measured on an H100 with 64 thousand
tokens a step, forward and backward of a 59 M Llama ran at 429 thousand tokens/s instead of 363.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ilora.data.collation import Batch, Collator, RecommendationDataset
from ilora.data.prompts import IGNORED_LABEL
from ilora.errors import InputError
from ilora.pretraining_corpus import PretrainingCorpus

PIECE_TOKENS = 65_536  # 29 GiB of activations and logits in a 59 M Llama; smaller is launch-bound
LOSS_POINTS = 200
FINAL_LEARNING_RATE = 0.1  # of the highest


@dataclass(frozen=True, slots=True)
class PretrainingOptions:
    """How to pre-train.

    Attributes:
        steps: optimiser steps.
        batch_size: full-length prompts a step; of shorter ones accordingly more.
        learning_rate: the highest; linear warm-up to it, cosine down to a tenth of it.
        warmup: share of the training in which the learning rate rises.
        weight_decay: AdamW's, for matrices only.
        answer_weight: share of the loss that the answers have; 0 is the plain mean over tokens.
        ramp: share of the training over which prompts grow to their full length; 0 shows full
            ones from the start.
        disguised: share of the prompts whose titles are spelled with random tokens, see
            :func:`ilora.pretraining_corpus.disguise`.
        num_workers: processes that encode prompts; the batches do not depend on it.
        bf16: compute in bfloat16, from float32 master weights; None does so on CUDA.
        seed: of the order of the rows, their negatives and wordings.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.05
    weight_decay: float = 0.1
    answer_weight: float = 0.5
    ramp: float = 0.7
    disguised: float = 0.5
    num_workers: int = 0
    bf16: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}: {getattr(self, name)} is too small; give more than 0")
        for name in ("warmup", "answer_weight", "ramp", "disguised"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: {getattr(self, name)} is no share; give 0 to 1")


@dataclass(slots=True)
class PretrainingResult:
    """What happened: steps and tokens done, seconds, ``(step, loss)`` averaged between points."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_curve: list[tuple[int, float]] = field(default_factory=list)


def pretrain(
    model: PreTrainedModel,
    datasets: Sequence[RecommendationDataset],
    collator: Collator,
    options: PretrainingOptions,
) -> PretrainingResult:
    """Train every weight of ``model`` in place, on the device where it is.

    Args:
        model: a causal language model in float32.
        datasets: training rows, encoded with their answers.
        collator: one that pads on the right.
        options: steps, learning rate and so on.
    """
    corpus = PretrainingCorpus(
        datasets,
        collator,
        steps=options.steps,
        batch_size=options.batch_size,
        ramp=options.ramp,
        disguised=options.disguised,
        seed=options.seed,
    )
    if options.num_workers:
        # The tokenizer's threads do not survive the fork into workers; silent unless told first.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    chunks = DataLoader(
        corpus,
        batch_size=None,
        num_workers=options.num_workers,
        # Workers are seeded from it; without one the loader would draw from torch's global state.
        generator=torch.Generator().manual_seed(options.seed),
    )
    optimizer = _adamw(model, options)
    bf16 = model.device.type == "cuda" if options.bf16 is None else options.bf16
    working = _bfloat16_copy(model) if bf16 else model
    working.train()
    result = PretrainingResult()
    losses: list[Tensor] = []
    interval = max(1, options.steps // LOSS_POINTS)
    started = time.monotonic()
    with _progress() as progress:
        task = progress.add_task("pre-training", total=1.0, loss=math.nan, rate=0.0)
        for batch in (batch for chunk in chunks for batch in chunk):
            done = result.steps / options.steps
            _set_learning_rate(optimizer, options, done)
            losses.append(_step(model, working, optimizer, batch, options))
            result.steps += 1
            result.tokens += int(batch["attention_mask"].sum())
            if result.steps % interval == 0 or result.steps == options.steps:
                # Reading a loss waits for the device, so it is done once in a while only.
                result.loss_curve.append((result.steps, float(torch.stack(losses).mean())))
                losses.clear()
                rate = result.tokens / (time.monotonic() - started)
                progress.update(task, completed=done, loss=result.loss_curve[-1][1], rate=rate)
        progress.update(task, completed=1.0)
    if losses:
        result.loss_curve.append((result.steps, float(torch.stack(losses).mean())))
    result.seconds = time.monotonic() - started
    model.eval()
    return result


@torch.no_grad()
def greedy_hits(
    model: PreTrainedModel,
    dataset: RecommendationDataset,
    collator: Collator,
    *,
    limit: int = 256,
    batch_size: int = 32,
) -> tuple[int, int]:
    """How many rows greedy decoding answers with exactly the target: ``(hits, rows)``.

    Nothing is generated: greedy decoding writes the target if and only if, reading the target,
    the likeliest next token is the right one at each of its places, the terminator's included.
    At most ``limit`` rows are read, evenly spaced over the split. ``collator`` pads on the right.
    """
    rows = evenly_spaced(len(dataset), limit)
    hits = 0
    model.eval()
    for at in range(0, len(rows), batch_size):
        batch = collator([dataset[row] for row in rows[at : at + batch_size]])
        labels = batch["labels"][:, 1:].to(model.device)
        logits = model(input_ids=batch["input_ids"].to(model.device), use_cache=False).logits
        right = logits[:, :-1].argmax(-1) == labels
        hits += int((right | (labels == IGNORED_LABEL)).all(dim=1).sum())
    return hits, len(rows)


def evenly_spaced(length: int, limit: int) -> list[int]:
    """At most ``limit`` numbers below ``length``, from the first to the last; needs both >= 1."""
    return np.linspace(0, length - 1, min(limit, length)).round().astype(int).tolist()


def _step(
    model: PreTrainedModel,
    working: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    options: PretrainingOptions,
) -> Tensor:
    """One optimiser step of ``model`` by the gradients of ``working``; the detached loss."""
    device = model.device
    input_ids, mask, labels = (
        batch["input_ids"].to(device, non_blocking=True),
        batch["attention_mask"].to(device, non_blocking=True),
        batch["labels"].to(device, non_blocking=True),
    )
    weights = token_weights(mask, labels, options.answer_weight)
    total = torch.zeros((), device=device)
    pieces = math.ceil(input_ids.numel() / PIECE_TOKENS)
    for piece, piece_weights in zip(input_ids.chunk(pieces), weights.chunk(pieces), strict=True):
        logits = working(input_ids=piece, use_cache=False).logits  # [b, S, V]
        nll = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), piece[:, 1:].flatten(), reduction="none"
        )
        loss = (nll * piece_weights.flatten()).sum()
        loss.backward()
        total += loss.detach()
    if working is not model:
        _move_gradients(working, model)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if working is not model:
        _copy_weights(model, working)
    return total


def _bfloat16_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with bfloat16 weights. Buffers stay as they are: rotary frequencies need float32."""
    working = copy.deepcopy(model)
    for parameter in working.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return working


def _move_gradients(working: PreTrainedModel, model: PreTrainedModel) -> None:
    for source, master in zip(working.parameters(), model.parameters(), strict=True):
        master.grad = None if source.grad is None else source.grad.float()
        source.grad = None


@torch.no_grad()
def _copy_weights(model: PreTrainedModel, working: PreTrainedModel) -> None:
    for master, target in zip(model.parameters(), working.parameters(), strict=True):
        target.copy_(master)


def token_weights(mask: Tensor, labels: Tensor, answer_weight: float) -> Tensor:
    """Weights ``[B, S - 1]`` of the predicted tokens: they sum to one over the batch.

    ``w = (1 - a) · real / Σ real + a · answer / Σ answer``, with ``a`` the answers' share.
    """
    real = mask[:, 1:].float()
    answer = (labels[:, 1:] != IGNORED_LABEL).float()
    return (1 - answer_weight) * real / real.sum() + answer_weight * answer / answer.sum()


def _adamw(model: PreTrainedModel, options: PretrainingOptions) -> torch.optim.AdamW:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = model.device.type == "cuda"
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), fused=fused)


def _set_learning_rate(
    optimizer: torch.optim.Optimizer, options: PretrainingOptions, done: float
) -> None:
    if done < options.warmup:
        # Half a step ahead, so that the very first step is not lost on a rate of zero.
        factor = (done + 0.5 / options.steps) / (options.warmup + 0.5 / options.steps)
    else:
        fall = (done - options.warmup) / max(1e-9, 1 - options.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * fall))
        factor = FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * factor


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
