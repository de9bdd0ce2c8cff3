"""Measured times for pytest-benchmark: a clock that shows the device's time instead of the wall's.

pytest-benchmark takes any clock as its timer. This one moves only when a measured round is told to
it, so that the statistics it keeps, prints and compares are those of the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

_now_s = 0.0


def device_clock() -> float:
    """Seconds, as a timer gives them."""
    return _now_s


DEVICE_TIME = pytest.mark.benchmark(timer=device_clock)


def tell(benchmark: Any, rounds_us: Sequence[float]) -> None:
    """Let ``benchmark``, of a test marked ``DEVICE_TIME``, see these rounds, microseconds each."""
    remaining = iter(rounds_us)

    def one_round() -> None:
        global _now_s
        _now_s += next(remaining) / 1e6

    benchmark.pedantic(one_round, rounds=len(rounds_us))
