"""Other ranks, experts and gate forms beside the ordinary one; the update onto a given base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.cases import (
    DELTA_ALONE,
    LINEAR,
    MODES,
    ONTO,
    TOKENS,
    Case,
    Plan,
    is_narrow,
)
from benchmarks.conftest import Record
from benchmarks.device_clock import DEVICE_TIME
from benchmarks.steps import linear_contest

pytestmark = DEVICE_TIME

VARIANTS: tuple[dict[str, Any], ...] = (
    {},  # the ordinary one, in the same rounds
    {"rank": 64},
    {"experts": 16},
    {"gate": "packed"},
    {"gate": "token"},
    {"op": ONTO},
    {"op": DELTA_ALONE},
)
NARROW_VARIANTS: tuple[dict[str, Any], ...] = ({}, {"op": ONTO})


def cases(plan: Plan) -> list[Case]:
    """Each variant at each shape and T; of a narrow layer the ordinary one and the update alone."""
    ordinary = [
        Case(LINEAR, mode, *shape, tokens, plan.backend, dtype=plan.dtype)
        for shape in plan.shapes
        for tokens in plan.tokens_among(TOKENS[1:])
        for mode in MODES
    ]
    return [
        replace(case, **variant)
        for case in ordinary
        for variant in (NARROW_VARIANTS if is_narrow(case.d_out, case.d_in) else VARIANTS)
    ]


def test_a_variant(case: Case, measure: Record) -> None:
    measure(case, linear_contest)
