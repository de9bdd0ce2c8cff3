"""Tokens a second of a Llama 2 7B, all seven projections adapted, against the frozen model."""

from __future__ import annotations

from benchmarks.cases import (
    EAGERLY,
    FORWARD,
    GENERATE,
    GENERATE_ROWS,
    IN_GRAPH,
    PEFT,
    REFERENCE,
    Case,
    Plan,
)
from benchmarks.conftest import Record
from benchmarks.device_clock import DEVICE_TIME
from benchmarks.serving import generate_contest

pytestmark = DEVICE_TIME


def cases(plan: Plan) -> list[Case]:
    hidden = 4096 if plan.on_gpu else 64
    launches = (IN_GRAPH, EAGERLY) if plan.on_gpu else (EAGERLY,)
    return [
        Case(
            GENERATE,
            FORWARD,
            hidden,
            hidden,
            rows,
            backend,
            instances=rows,
            dtype=plan.dtype,
            launch=launch,
            layers=plan.layers,
        )
        for rows in (GENERATE_ROWS if plan.on_gpu else GENERATE_ROWS[:2])
        for backend in (plan.backend, PEFT, REFERENCE)
        for launch in launches
    ]


def test_answers(case: Case, measure: Record) -> None:
    measure(case, generate_contest)
