"""How much each expert is used: do all of them work, and do users differ?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ilora.explain.gates import require_experts
from ilora.explain.pictures import draw_usage
from ilora.files import write_csv
from ilora.gate_map import FloatArray, UserMixtures


@dataclass(frozen=True)
class Usage:
    """Of every layer (one where all share a mixture) and expert: ``[layers, K]`` each.

    Attributes:
        mean: the mean weight over the users; uniform use is 1/K.
        spread: the standard deviation over the users; 0 says that the gate does not tell them apart.
        strongest: the share of users whose strongest expert it is (ties go to the first).
        per_user: exp of the entropy of a user's mixture, the mean over users and layers: how many
            experts a user has in effect, from 1 to K.
        overall: the same of the mean mixture: how many experts are used in effect at all.
    """

    mean: FloatArray
    spread: FloatArray
    strongest: FloatArray
    per_user: float
    overall: float


def expert_usage(weights: FloatArray) -> Usage:
    """From ``[users, layers, K]`` mixtures."""
    num_experts = weights.shape[-1]
    first = weights.argmax(-1)[..., None] == np.arange(num_experts)  # [users, layers, K]
    return Usage(
        mean=weights.mean(0),
        spread=weights.std(0),
        strongest=first.mean(0),
        per_user=float(_effective(weights).mean()),
        overall=float(_effective(weights.mean(0)).mean()),
    )


def explain_usage(found: UserMixtures, out: Path) -> Usage:
    """Write ``usage.png`` and ``usage.csv`` (a line for each layer and expert).

    Raises:
        InputError: there is one expert, and so nothing to show.
    """
    require_experts(found.weights.shape[-1])
    usage = expert_usage(found.weights)
    tables = (usage.mean, usage.spread, usage.strongest)
    lines = (
        [layer, expert + 1, *(f"{table[layer, expert]:.6f}" for table in tables)]
        for layer, expert in np.ndindex(usage.mean.shape)
    )
    header = ["layer", "expert", "mean_weight", "sd_over_users", "share_of_users_strongest"]
    write_csv(out / "usage.csv", header, lines)
    draw_usage(usage.mean, usage.spread, usage.strongest, out / "usage.png")
    return usage


def _effective(mixtures: FloatArray) -> FloatArray:
    """exp of the entropy over the last dimension, with 0 · log 0 = 0."""
    logs = np.log(mixtures, out=np.zeros_like(mixtures), where=mixtures > 0)
    return np.exp(-(mixtures * logs).sum(-1))
