from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch

from benchmarks.timing import (
    WARM_UP_CALLS,
    Timing,
    first_call_s,
    host_cost_us,
    measure,
    median_of_ratios,
    orders,
    peak_mib,
    percentile,
    ratio_of_medians,
)
from tests.benchmarks.virtual_gpu import VirtualGpu

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def test_every_round_calls_everybody_once_in_an_order_of_its_own() -> None:
    called: list[str] = []
    calls = {name: (lambda name=name: called.append(name)) for name in "abcd"}
    measure(calls, CPU, rounds=12)
    rounds = [called[start : start + 4] for start in range(4 * WARM_UP_CALLS, len(called), 4)]
    assert len(rounds) == 12
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len({tuple(one) for one in rounds}) > 6


def test_orders_are_those_of_their_seed() -> None:
    names = list("abcdef")
    assert list(orders(names, 5, seed=1)) == list(orders(names, 5, seed=1))
    assert list(orders(names, 5, seed=1)) != list(orders(names, 5, seed=2))


def test_on_a_cpu_the_wall_clock_counts_and_nothing_is_known_of_launches() -> None:
    timings = measure({"one": lambda: None}, CPU, rounds=4)
    assert timings["one"].device_us == timings["one"].host_us
    assert len(timings["one"].device_us) == 4
    assert timings["one"].ahead is None


def test_no_round_is_refused() -> None:
    with pytest.raises(ValueError, match="rounds is 0"):
        measure({"one": lambda: None}, CPU, rounds=0)


def test_a_call_that_is_launched_slower_than_it_runs_is_timed_without_its_launching(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = VirtualGpu()
    gpu.install(monkeypatch)
    calls = {
        "quickly launched": gpu.call("quick", host_us=5, device_us=100),
        "slowly launched": gpu.call("slow", host_us=700, device_us=200),
    }
    timings = measure(calls, CUDA, rounds=10)
    assert timings["quickly launched"].median_us == pytest.approx(100)
    assert timings["slowly launched"].median_us == pytest.approx(200)
    assert timings["slowly launched"].median_host_us == pytest.approx(700)
    assert [timing.ahead for timing in timings.values()] == [1.0, 1.0]


def test_a_launch_that_the_device_waited_for_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = VirtualGpu()
    gpu.install(monkeypatch)
    slow = gpu.call("slow", host_us=700, device_us=200)
    timing = measure({"slow": slow}, CUDA, rounds=10, hide_launches=False)["slow"]
    assert timing.ahead == 0.0
    assert timing.median_us > 600


def test_a_round_is_enqueued_without_waiting_for_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = VirtualGpu()
    gpu.install(monkeypatch)
    waits_at: list[int] = []
    synchronize = gpu.synchronize
    monkeypatch.setattr(
        "benchmarks.timing.torch.cuda.synchronize",
        lambda *_: (waits_at.append(len(gpu.executed)), synchronize()),
    )
    names = "abc"
    calls = {name: gpu.call(name, host_us=1, device_us=50) for name in names}
    measure(calls, CUDA, rounds=6)
    end = len(gpu.executed)
    assert [waits for waits in waits_at if waits > end - 6 * 3] == [
        end - 3 * k for k in range(5, -1, -1)
    ]


def test_the_spread_is_numpys() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 8.0, 7.0]
    for percent in (0, 20, 50, 80, 100):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_the_two_ratios_are_of_medians_and_of_rounds() -> None:
    mine = Timing((10.0, 30.0, 20.0), (0.0,) * 3)
    frozen = Timing((10.0, 10.0, 5.0), (0.0,) * 3)
    assert ratio_of_medians(mine, frozen) == 2.0
    assert median_of_ratios(mine, frozen) == statistics.median([1.0, 3.0, 4.0])


def test_the_cost_to_the_cpu_is_that_of_one_call() -> None:
    costs = host_cost_us(
        {"none": lambda: None, "some": lambda: sum(range(20_000))}, CPU, blocks=3, calls_a_block=5
    )
    assert 0 <= costs["none"] < costs["some"]


def test_a_cpu_has_no_peak_memory_and_a_first_call_has_a_duration() -> None:
    assert peak_mib(lambda: None, CPU) is None
    assert first_call_s(lambda: sum(range(20_000)), CPU) > 0
