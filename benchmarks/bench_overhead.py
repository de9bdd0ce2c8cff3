"""What a call costs the CPU, on layers so small that the device is never the one who is late."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from benchmarks.cases import (
    DELTA,
    DROPOUT,
    EAGER,
    FORWARD,
    LINEAR,
    ONE_THREAD,
    PEFT,
    REFERENCE,
    TRAINING,
    Case,
    Plan,
)
from benchmarks.conftest import Record
from benchmarks.contest import Contest
from benchmarks.device_clock import DEVICE_TIME
from benchmarks.steps import linear_contest

pytestmark = DEVICE_TIME

TINY, TINY_TOKENS = 256, 64
LAUNCHES = ("eager", ONE_THREAD, "torch.compile", "CUDA graph")


def cases(plan: Plan) -> list[Case]:
    launches = LAUNCHES if plan.on_gpu else LAUNCHES[:1]
    contenders = [(plan.backend, launch) for launch in launches]
    contenders += [(peer, "eager") for peer in (DELTA, EAGER, PEFT, REFERENCE)]
    contenders += [(PEFT, ONE_THREAD)] if plan.on_gpu else []
    return [
        Case(
            LINEAR,
            mode,
            TINY,
            TINY,
            TINY_TOKENS,
            backend,
            dropout=dropout,
            dtype=plan.dtype,
            launch=launch,
        )
        for mode, dropout in ((FORWARD, 0.0), (TRAINING, 0.0), (TRAINING, DROPOUT))
        for backend, launch in contenders
    ]


def host_contest(cases: Sequence[Case], device: torch.device) -> Contest:
    """The contest of the same calls, with a loop of its own for the CPU's time."""
    return dataclasses.replace(linear_contest(cases, device), count_host=True)


def test_the_cost_to_the_cpu(case: Case, measure: Record) -> None:
    measure(case, host_contest)
