"""How long a call takes: contenders interleaved in rounds, device events, cold L2, medians.

On a GPU each call is preceded by a flush: a buffer of twice the L2 is overwritten, then another one
is read, so that the call finds neither its inputs in the cache nor the flush's dirty lines, whose
writing back would be charged to it. While the device is busy with that, the host enqueues the
call; nothing synchronises inside a round, so the time that launching takes does not enter the
device's. ``ahead`` says in which share of the rounds that came off.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

Call = Callable[[], object]

WARM_UP_CALLS = 3
TRIALS = 3
MOST_FLUSHES = 64  # some 5 ms on an H200: more than any call here needs to be enqueued
MIB = 2**20


@dataclass(frozen=True)
class Timing:
    """What one contender took, a number a round.

    Attributes:
        device_us: between the events around the call; on a CPU the wall clock's.
        host_us: until the call had returned to Python, with its work enqueued.
        ahead: share of the rounds in which the device began the call after the host had enqueued
            all of it; None on a CPU.
    """

    device_us: tuple[float, ...]
    host_us: tuple[float, ...]
    ahead: float | None = None

    @property
    def median_us(self) -> float:
        """The device time that counts."""
        return statistics.median(self.device_us)

    @property
    def median_host_us(self) -> float:
        """What the call cost the CPU beside a busy device."""
        return statistics.median(self.host_us)

    def percentile_us(self, percent: int) -> float:
        """The device time that ``percent`` of the rounds stayed under."""
        return percentile(self.device_us, percent)


def percentile(values: Sequence[float], percent: int) -> float:
    """Linear interpolation between the sorted values, as NumPy's."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def ratio_of_medians(timing: Timing, frozen: Timing) -> float:
    """The ratio that is reported."""
    return timing.median_us / frozen.median_us


def median_of_ratios(timing: Timing, frozen: Timing) -> float:
    """The same from pairs of one round, which a drift of the clock rate cannot bend."""
    pairs = zip(timing.device_us, frozen.device_us, strict=True)
    return statistics.median(mine / yardstick for mine, yardstick in pairs)


def measure(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    rounds: int = 30,
    seed: int = 0,
    hide_launches: bool = True,
) -> dict[str, Timing]:
    """Time every call once a round, in an order drawn anew for each round.

    Args:
        calls: contenders by name; each must allocate its outputs itself.
        hide_launches: keep the device busy until the host is through; without it one flush is all
            that precedes a call, which is right for calls that outlast their own launching.

    Raises:
        ValueError: there is no round to measure in.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; it must be at least 1.")
    for call in calls.values():
        for _ in range(WARM_UP_CALLS):
            call()
    stopwatch: _Stopwatch = _GpuStopwatch(device) if device.type == "cuda" else _CpuStopwatch()
    with _no_garbage_collection():
        stopwatch.prepare(list(calls.values()) if hide_launches else [])
        laps: dict[str, list[_Lap]] = {name: [] for name in calls}
        for order in orders(list(calls), rounds, seed):
            running = {name: stopwatch.start(calls[name]) for name in order}
            for name, lap in stopwatch.finish(running).items():
                laps[name].append(lap)
    return {name: _timing(of_one) for name, of_one in laps.items()}


def orders(names: Sequence[str], rounds: int, seed: int) -> Iterator[list[str]]:
    """A fresh order of all names for each round: nobody always follows the same neighbour."""
    generator = random.Random(seed)
    for _ in range(rounds):
        yield generator.sample(names, len(names))


def host_cost_us(
    calls: Mapping[str, Call], device: torch.device, *, blocks: int = 12, calls_a_block: int = 25
) -> dict[str, float]:
    """What a call costs the CPU: the median time until it returns, never waiting for the device.

    For calls that the device finishes faster than the host launches them. Blocks of the contenders
    alternate; the device catches up between blocks.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with _no_garbage_collection():
        for _ in range(blocks):
            for name, call in calls.items():
                _wait_for(device)
                call()  # the first after a pause pays for cold caches
                for _ in range(calls_a_block):
                    began = time.perf_counter()
                    result = call()
                    seconds[name].append(time.perf_counter() - began)
                    del result
    _wait_for(device)
    return {name: 1e6 * statistics.median(of_one) for name, of_one in seconds.items()}


def peak_mib(call: Call, device: torch.device) -> float | None:
    """What the call holds at its peak above what was allocated before, outputs included.

    Inputs are resident, and the call has run before, so that workspaces exist. None on a CPU.
    """
    if device.type != "cuda":
        return None
    # Autograd's own thread may free the call before late, within one of the readings.
    return statistics.median(_peak_mib(call, device) for _ in range(TRIALS))


def _peak_mib(call: Call, device: torch.device) -> float:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del result
    return (peak - before) / MIB


def first_call_s(call: Call, device: torch.device) -> float:
    """Wall-clock seconds of a call until the device is through: for a first one, with compiling."""
    _wait_for(device)
    began = time.perf_counter()
    call()
    _wait_for(device)
    return time.perf_counter() - began


@dataclass(frozen=True)
class _Lap:
    device_us: float
    host_us: float
    ahead: bool | None


@dataclass(frozen=True)
class _Running:
    """A call that was enqueued, and perhaps is not finished."""

    host_us: float
    began: torch.cuda.Event | None = None
    ended: torch.cuda.Event | None = None
    ahead: bool | None = None


class _Stopwatch(Protocol):
    def prepare(self, calls: Sequence[Call]) -> None:
        """Find out what it takes to time these calls well."""

    def start(self, call: Call) -> _Running: ...

    def finish(self, running: Mapping[str, _Running]) -> dict[str, _Lap]: ...


class _CpuStopwatch:
    def prepare(self, calls: Sequence[Call]) -> None:
        pass

    def start(self, call: Call) -> _Running:
        began = time.perf_counter()
        result = call()
        host_us = 1e6 * (time.perf_counter() - began)
        del result  # freeing is not the call's
        return _Running(host_us)

    def finish(self, running: Mapping[str, _Running]) -> dict[str, _Lap]:
        return {name: _Lap(one.host_us, one.host_us, None) for name, one in running.items()}


class _GpuStopwatch:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        num_bytes = 2 * torch.cuda.get_device_properties(device).L2_cache_size
        self._overwritten = torch.empty(num_bytes, dtype=torch.int8, device=device)
        self._read = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
        self._sum = torch.empty((), dtype=torch.float32, device=device)
        self._flushes = 1

    def prepare(self, calls: Sequence[Call]) -> None:
        """Flush so often before a call that the device is still at it when the host is through."""
        while self._flushes < MOST_FLUSHES and not all(self._is_hidden(call) for call in calls):
            self._flushes *= 2
        torch.cuda.synchronize(self._device)

    def start(self, call: Call) -> _Running:
        for _ in range(self._flushes):
            self._overwritten.zero_()
            torch.sum(self._read, dim=0, out=self._sum)
        began = torch.cuda.Event(enable_timing=True)
        ended = torch.cuda.Event(enable_timing=True)
        began.record()
        clock = time.perf_counter()
        result = call()
        host_us = 1e6 * (time.perf_counter() - clock)
        ended.record()
        ahead = not began.query()
        del result
        return _Running(host_us, began, ended, ahead)

    def _is_hidden(self, call: Call) -> bool:
        """Whether the host is through in time even where the device had nothing else to do."""
        for _ in range(TRIALS):
            torch.cuda.synchronize(self._device)
            if not self.start(call).ahead:
                return False
        return True

    def finish(self, running: Mapping[str, _Running]) -> dict[str, _Lap]:
        torch.cuda.synchronize(self._device)
        laps = {}
        for name, one in running.items():
            assert one.began is not None
            assert one.ended is not None
            laps[name] = _Lap(1e3 * one.began.elapsed_time(one.ended), one.host_us, one.ahead)
        return laps


def _timing(laps: Sequence[_Lap]) -> Timing:
    known = [lap.ahead for lap in laps if lap.ahead is not None]
    return Timing(
        device_us=tuple(lap.device_us for lap in laps),
        host_us=tuple(lap.host_us for lap in laps),
        ahead=sum(known) / len(known) if known else None,
    )


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
