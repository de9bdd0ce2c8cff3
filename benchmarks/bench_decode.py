"""A token a row through sixteen layers in one CUDA graph, against cuBLAS alone in such a graph."""

from __future__ import annotations

from benchmarks.cases import (
    COMPILED,
    DECODE,
    DECODE_LAYERS,
    DECODE_ROWS,
    EAGERLY,
    FORWARD,
    IN_GRAPH,
    Case,
    Plan,
    is_narrow,
)
from benchmarks.conftest import Record
from benchmarks.device_clock import DEVICE_TIME
from benchmarks.serving import layers_contest

pytestmark = DEVICE_TIME


def cases(plan: Plan) -> list[Case]:
    rows = tuple(t for t in plan.tokens if t <= DECODE_ROWS[-1]) or DECODE_ROWS
    peers = (peer for peer in plan.peers if peer != COMPILED)
    backends = (plan.backend, *peers)
    return [
        Case(
            DECODE,
            FORWARD,
            *shape,
            tokens,
            backend,
            instances=tokens,
            dtype=plan.dtype,
            launch=IN_GRAPH if plan.on_gpu else EAGERLY,
            layers=DECODE_LAYERS if plan.on_gpu else 2,
        )
        for shape in plan.shapes
        if not is_narrow(*shape)
        for tokens in rows
        for backend in backends
    ]


def test_a_token_of_each_user(case: Case, measure: Record) -> None:
    measure(case, layers_contest)
