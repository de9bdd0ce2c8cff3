"""Do users who behave differently pull one shared LoRA in different directions?

The motivation of the paper (its figure 1): users are clustered, the gradient of the low-rank
parameters is taken on each cluster alone, and the cosines between these gradients say which
clusters help one another and which are in each other's way. A gradient of few users is noisy, and
noise makes every cosine small. So each cluster is also cut into two halves at random, and the
cosines between halves are compared: of two clusters with those of one cluster with itself, which
have the same noise and no conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.folder import DataFolder
from ilora.data.sequences import Row, Split
from ilora.errors import InputError
from ilora.evaluation.decoding import to_device
from ilora.explain.pictures import draw_similarity
from ilora.files import write_csv
from ilora.gate_map import FloatArray, latest_rows
from ilora.model import ILoRARecommender


@dataclass(frozen=True)
class Similarity:
    """Cosines between the gradients of clusters of users.

    Attributes:
        cosine: ``[clusters, clusters]``, symmetric, 1 on the diagonal: of whole clusters.
        halves: the same of half clusters: the mean over the four pairs of halves of two clusters,
            and on the diagonal the cosine between the two halves of one.
        users: ``[clusters]``: how many users each gradient was taken on.
        kind: what the users were sorted by: ``cluster`` or ``group``.
        labels: the name of each.
    """

    cosine: FloatArray
    halves: FloatArray
    users: tuple[int, ...]
    kind: str
    labels: tuple[int, ...]


def gradient_similarity(
    model: ILoRARecommender,
    folder: DataFolder,
    label: Callable[[list[Row]], tuple[str, tuple[int, ...]]],
    *,
    split: Split = "train",
    min_history: int = 3,
    users: int = 128,
    batch_size: int = 8,
    seed: int = 0,
    bar: Callable[[Sequence[list[int]]], Iterable[list[int]]] = iter,
) -> Similarity:
    """Cosines between the gradients of the low-rank parameters on clusters of users.

    A gradient is that of the summed loss over the answers' tokens, with the model in eval mode, its
    prompts as in training, and one row a user: the latest.

    Args:
        label: sorts users by their latest rows, see `ilora.explain.gates.label_users`.
        users: at most so many of each cluster, drawn at random.
        batch_size: prompts at once; it does not change the result beyond rounding.
        seed: of the users drawn, of the halves, and of the prompts of training rows.
        bar: may show progress over the halves.

    Raises:
        InputError: ``users`` below 2, or a cluster with fewer than 2 users.
    """
    for option, value, least in (("users", users, 2), ("batch_size", batch_size, 1)):
        if value < least:
            raise InputError(f"{option} is {value}; it must be at least {least}")
    latest = latest_rows(folder, split, min_history)
    kind, labels = label([row for _, row in latest])
    names = tuple(sorted(set(labels)))
    rng = np.random.default_rng(seed)
    halves: list[list[int]] = []  # two for each cluster, of numbers of rows
    for name in names:
        members = [number for (number, _), own in zip(latest, labels, strict=True) if own == name]
        if len(members) < 2:
            raise InputError(
                f"{kind} {name} has {len(members)} user, and two are needed to compare its halves; "
                "ask for fewer clusters"
            )
        drawn = rng.permutation(members)[:users].tolist()
        halves += [drawn[::2], drawn[1::2]]
    builder = model.prompt_builder(folder.catalog, folder.domain, folder.window)
    rows = RecommendationDataset(folder, split, builder, seed=seed, min_history=min_history)
    collator = Collator(model.tokenizer, len(folder.catalog), folder.window, "left")
    gradients = [summed_gradient(model, rows, half, collator, batch_size) for half in bar(halves)]
    first, second = torch.stack(gradients[::2]), torch.stack(gradients[1::2])
    whole, one, two = _units(first + second), _units(first), _units(second)
    between = (one + two) @ (one + two).T / 4
    between.diagonal().copy_((one * two).sum(1))
    return Similarity(
        cosine=(whole @ whole.T).clamp(-1, 1).numpy(),
        halves=between.clamp(-1, 1).numpy(),
        users=tuple(len(a) + len(b) for a, b in zip(halves[::2], halves[1::2], strict=True)),
        kind=kind,
        labels=names,
    )


def summed_gradient(
    model: ILoRARecommender,
    rows: RecommendationDataset,
    numbers: Sequence[int],
    collator: Collator,
    batch_size: int,
) -> Tensor:
    """The gradient of the low-rank parameters over some rows: float64 ``[parameters]``, on the CPU.

    The loss is the sum over the tokens of the answers; the model's own gradients are left alone.
    """
    model.eval()
    parameters = [p for name, p in model.named_parameters() if ".lora_" in name]
    frozen = [p for p in parameters if not p.requires_grad]
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        for start in range(0, len(numbers), batch_size):
            examples = [rows[number] for number in numbers[start : start + batch_size]]
            batch = to_device(collator(examples), model.llm.device)
            loss = model(**batch, num_items_in_batch=1).loss
            for sum_, grad in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                sum_ += grad.double().cpu()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return torch.cat([sum_.flatten() for sum_ in total])


def explain_gradients(similarity: Similarity, out: Path) -> None:
    """Write ``gradients.png`` and ``gradients.csv``: a line a cluster, its cosines with all of them.

    Columns ``whole_…`` are those of whole clusters, ``half_…`` those of halves.
    """
    kind, labels = similarity.kind, similarity.labels
    header = [kind, "users", *(f"{part}_{label}" for part in ("whole", "half") for label in labels)]
    both = np.concatenate([similarity.cosine, similarity.halves], axis=1)
    lines = (
        [label, similarity.users[at], *(f"{value:.6f}" for value in both[at])]
        for at, label in enumerate(labels)
    )
    write_csv(out / "gradients.csv", header, lines)
    names = [
        f"{kind} {label}\n({users} users)"
        for label, users in zip(labels, similarity.users, strict=True)
    ]
    draw_similarity(similarity.cosine, similarity.halves, names, out / "gradients.png")


def _units(vectors: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays one."""
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-300)
