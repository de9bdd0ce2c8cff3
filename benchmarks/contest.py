"""All calls that share a yardstick, measured in the same rounds on the same inputs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.cases import Case
from benchmarks.timing import Call, Timing, first_call_s, host_cost_us, measure, peak_mib

FAILURES: tuple[type[Exception], ...] = (RuntimeError,)  # torch's own, of any kind
if importlib.util.find_spec("triton"):
    FAILURES += (importlib.import_module("triton.errors").TritonError,)

FROZEN, COPY = "frozen", "copy"


@dataclass(frozen=True)
class Contest:
    """Who takes part.

    Attributes:
        frozen: the yardstick.
        makers: what builds the call of each case; building may compile or capture.
        copy: a plain copy that moves ``moved_bytes`` bytes (read and written), or None.
        hide_launches: as in :func:`benchmarks.timing.measure`.
        most_rounds: enough for this contest, however many the run asks for.
        count_host: measure the CPU's cost in a loop of its own, not beside the device's.
    """

    frozen: Call
    makers: Mapping[Case, Callable[[], Call]]
    copy: Call | None = None
    moved_bytes: int = 0
    hide_launches: bool = True
    most_rounds: int = 1000
    count_host: bool = False


@dataclass(frozen=True)
class Result:
    """What was measured of one call; ``peak_mib`` is None on a CPU."""

    timing: Timing
    cpu_us: float
    peak_mib: float | None
    first_call_s: float


@dataclass(frozen=True)
class Results:
    """What was measured of a contest; a case that failed has its error instead of a result."""

    frozen: Result
    cases: Mapping[Case, Result | Exception]
    copy_gb_per_s: float | None


def hold(contest: Contest, device: torch.device, rounds: int) -> Results:
    """Run everything once, then measure what ran.

    A case that raises one of ``FAILURES`` (no memory, a kernel that needs more than the device has)
    takes no part in the rounds, and costs the others nothing; any other error ends all.
    """
    calls: dict[str, Call] = {FROZEN: contest.frozen}
    if contest.copy is not None:
        calls[COPY] = contest.copy
    first_s = {name: first_call_s(call, device) for name, call in calls.items()}
    failed: dict[Case, Exception] = {}
    for case, make in contest.makers.items():
        try:
            call = make()
            first_s[str(case)] = first_call_s(call, device)
        except FAILURES as error:
            failed[case] = error.with_traceback(None)  # whose frames would hold the tensors
        else:
            calls[str(case)] = call

    rounds = min(rounds, contest.most_rounds)
    timings = measure(calls, device, rounds=rounds, hide_launches=contest.hide_launches)
    peaks = {name: peak_mib(call, device) for name, call in calls.items()}
    host = (
        host_cost_us(calls, device)
        if contest.count_host
        else {name: timing.median_host_us for name, timing in timings.items()}
    )
    results = {
        name: Result(timing, host[name], peaks[name], first_s[name])
        for name, timing in timings.items()
    }
    return Results(
        frozen=results[FROZEN],
        cases={case: failed.get(case) or results[str(case)] for case in contest.makers},
        copy_gb_per_s=_bandwidth(contest.moved_bytes, timings.get(COPY)),
    )


def _bandwidth(num_bytes: int, timing: Timing | None) -> float | None:
    return None if timing is None else num_bytes / timing.median_us / 1e3
