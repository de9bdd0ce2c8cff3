"""What else a user could run, in the same rounds; `-k "not compiled"` leaves out the slow builds."""

from __future__ import annotations

from benchmarks.cases import (
    DELTA,
    DROPOUT,
    LINEAR,
    MODES,
    PEER_TOKENS,
    Case,
    Plan,
    is_narrow,
)
from benchmarks.conftest import Record
from benchmarks.device_clock import DEVICE_TIME
from benchmarks.steps import linear_contest

pytestmark = DEVICE_TIME


def cases(plan: Plan) -> list[Case]:
    """The delta onto the vendor's product at every shape and T, as the floor; the others at some."""
    chosen = []
    for shape in plan.shapes:
        for tokens in plan.tokens:
            peers: tuple[str, ...] = (DELTA,)
            if tokens in plan.tokens_among(PEER_TOKENS) and not is_narrow(*shape):
                peers = plan.peers
            chosen += [
                Case(LINEAR, mode, *shape, tokens, backend, dropout=dropout, dtype=plan.dtype)
                for mode in MODES
                for dropout in (0.0, DROPOUT)
                for backend in (plan.backend, *peers)
            ]
    return chosen


def test_a_peer(case: Case, measure: Record) -> None:
    measure(case, linear_contest)
