"""The table: an adapted layer against the frozen one, forward, training, training with dropout."""

from __future__ import annotations

from benchmarks.cases import DROPOUT, FORWARD, LINEAR, TRAINING, Case, Plan
from benchmarks.conftest import Record
from benchmarks.device_clock import DEVICE_TIME
from benchmarks.steps import linear_contest

pytestmark = DEVICE_TIME


def cases(plan: Plan) -> list[Case]:
    return [
        Case(LINEAR, mode, *shape, tokens, plan.backend, dropout=dropout, dtype=plan.dtype)
        for shape in plan.shapes
        for tokens in plan.tokens
        for mode, dropout in ((FORWARD, 0.0), (TRAINING, 0.0), (TRAINING, DROPOUT))
    ]


def test_an_adapted_layer(case: Case, measure: Record) -> None:
    measure(case, linear_contest)
