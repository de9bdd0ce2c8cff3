"""Runs that differ in nothing but the seed, summed up in one line of a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ilora.evaluation.statistics import spread

SEED_ENDING = re.compile(r"[-_ ]*(seed|s)?[-_ ]*\d+$")


@dataclass(frozen=True)
class Seeded:
    """One evaluated run, and what it has in common with others.

    Attributes:
        run: the run's name.
        evaluation: which of its evaluations, such as ``test-free``.
        settings: a text that is the same for runs of the same settings but for the seed.
        seed: of the run.
        hit_ratio_at_1: right answers / all rows.
    """

    run: str
    evaluation: str
    settings: str
    seed: int
    hit_ratio_at_1: float


@dataclass(frozen=True)
class SeedRow:
    """HitRatio@1 over the seeds of one method: see :func:`ilora.evaluation.statistics.spread`."""

    name: str
    seeds: tuple[int, ...]
    mean: float
    sd: float
    ci95: tuple[float, float]


def over_seeds(runs: Sequence[Seeded]) -> list[SeedRow]:
    """One row for each evaluation that several seeds of the same settings have, in their order.

    Two runs of one seed are one run made twice; the first counts.
    """
    groups: dict[tuple[str, str], dict[int, Seeded]] = {}
    for run in runs:
        groups.setdefault((run.evaluation, run.settings), {}).setdefault(run.seed, run)
    rows = []
    for (evaluation, _), by_seed in groups.items():
        told = spread([run.hit_ratio_at_1 for run in by_seed.values()])
        if told.sd is None or told.ci95 is None:  # a single seed
            continue
        name = _common_name([run.run for run in by_seed.values()])
        rows.append(
            SeedRow(f"{name} ({evaluation})", tuple(by_seed), told.mean, told.sd, told.ci95)
        )
    return rows


def _common_name(names: Sequence[str]) -> str:
    """``lora-seed0``, ``lora-seed1`` -> ``lora``; all of them where that is not what differs."""
    stems = {SEED_ENDING.sub("", Path(name).name) for name in names}
    (stem, *others) = stems
    return stem if stem and not others else ", ".join(names)
