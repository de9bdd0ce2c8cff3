"""A training step of one decoder layer and of a whole Llama 2 7B, all seven projections adapted.

Forward and backward, no optimiser. The whole model recomputes every layer in its backward pass, for
all contenders alike, so that all fit one GPU; the single layer recomputes nothing. The loss is on the
last tokens of each row, as when a recommender learns.
"""

from __future__ import annotations

from benchmarks.cases import DROPOUT, LAYER, MODEL, PEFT, REFERENCE, TRAINING, Case, Plan
from benchmarks.conftest import Record
from benchmarks.device_clock import DEVICE_TIME
from benchmarks.models import model_contest

pytestmark = DEVICE_TIME


def cases(plan: Plan) -> list[Case]:
    hidden, tokens = (4096, 8 * 512) if plan.on_gpu else (64, 8 * 16)
    return [
        Case(
            op,
            TRAINING,
            hidden,
            hidden,
            tokens,
            backend,
            dropout=DROPOUT,
            dtype=plan.dtype,
            layers=1 if op == LAYER else plan.layers,
            checkpointing=op == MODEL,
        )
        for op in (LAYER, MODEL)
        for backend in (plan.backend, PEFT, REFERENCE)
    ]


def test_a_training_step(case: Case, measure: Record) -> None:
    measure(case, model_contest)
