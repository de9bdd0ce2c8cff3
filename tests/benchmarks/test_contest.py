from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from benchmarks.cases import EAGER, FORWARD, LINEAR, REFERENCE, Case
from benchmarks.contest import Contest, hold
from benchmarks.timing import Call

CPU = torch.device("cpu")
SOUND = Case(LINEAR, FORWARD, 4, 4, 8, EAGER)
BROKEN = Case(LINEAR, FORWARD, 4, 4, 8, REFERENCE)


def nothing() -> None:
    pass


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("no memory left")


@pytest.mark.parametrize("maker", [lambda: out_of_memory, out_of_memory], ids=["call", "maker"])
def test_a_case_without_memory_costs_the_others_nothing(maker: Callable[[], Call]) -> None:
    makers = {BROKEN: maker, SOUND: lambda: nothing}
    results = hold(Contest(frozen=nothing, makers=makers), CPU, rounds=3)
    assert isinstance(results.cases[BROKEN], torch.OutOfMemoryError)
    sound = results.cases[SOUND]
    assert not isinstance(sound, Exception)
    assert len(sound.timing.device_us) == 3


def test_a_mistake_ends_the_contest() -> None:
    contest = Contest(frozen=nothing, makers={SOUND: lambda: partial(int, "no number")})
    with pytest.raises(ValueError, match="no number"):
        hold(contest, CPU, rounds=3)


def test_a_copy_gives_the_bandwidth_and_a_contest_may_need_fewer_rounds() -> None:
    contest = Contest(nothing, {SOUND: lambda: nothing}, nothing, moved_bytes=10**9, most_rounds=2)
    results = hold(contest, CPU, rounds=30)
    assert len(results.frozen.timing.device_us) == 2
    assert results.copy_gb_per_s is not None
    assert results.copy_gb_per_s > 0
    assert hold(Contest(nothing, {}), CPU, rounds=1).copy_gb_per_s is None
