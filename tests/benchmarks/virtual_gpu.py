"""A CUDA device in virtual time: a queue that works off what it is given, and a host beside it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks import timing
from benchmarks.timing import Call

FLUSH_US = 40.0


class VirtualGpu:
    """Host and device clocks in microseconds; the device starts a call when it has been given it."""

    def __init__(self) -> None:
        self.host_us = 0.0
        self.idle_from_us = 0.0
        self.executed: list[str] = []

    def call(self, name: str, *, host_us: float, device_us: float) -> Call:
        """A call of two kernels: one is launched at once, the other when the host is through."""

        def run() -> None:
            self.executed.append(name)
            self._enqueue(device_us / 2)
            self.host_us += host_us
            self._enqueue(device_us / 2)

        return run

    def flush(self, *_: object, **__: object) -> None:
        """A pass over one of the buffers."""
        self._enqueue(FLUSH_US / 2)

    def synchronize(self, *_: object) -> None:
        """The host waits."""
        self.host_us = max(self.host_us, self.idle_from_us)

    def now_s(self) -> float:
        """The host's clock."""
        return self.host_us / 1e6

    def _enqueue(self, device_us: float) -> None:
        self.idle_from_us = max(self.idle_from_us, self.host_us) + device_us

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Let :mod:`benchmarks.timing` believe in it."""
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at_us = max(gpu.host_us, gpu.idle_from_us)

            def query(self) -> bool:
                return gpu.host_us >= self.at_us

            def elapsed_time(self, later: Event) -> float:
                return (later.at_us - self.at_us) / 1e3

        class Stopwatch(timing._GpuStopwatch):
            def __init__(self, _: object) -> None:
                super().__init__(torch.device("cpu"))
                self._overwritten = SimpleNamespace(zero_=gpu.flush)  # type: ignore[assignment]

        cuda = SimpleNamespace(
            Event=Event,
            synchronize=self.synchronize,
            get_device_properties=lambda _: SimpleNamespace(L2_cache_size=16),
        )
        fake = {"cuda": cuda, "sum": self.flush}
        names = ("empty", "ones", "int8", "float32", "device")
        fake |= {name: getattr(torch, name) for name in names}
        patch.setattr(timing, "torch", SimpleNamespace(**fake))
        patch.setattr(timing, "_GpuStopwatch", Stopwatch)
        patch.setattr(timing, "time", SimpleNamespace(perf_counter=self.now_s))
