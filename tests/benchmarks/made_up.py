"""Results that nobody measured, in the form in which measured ones are stored."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.contest import Result, Results
from benchmarks.record import record
from benchmarks.timing import Timing

FROZEN_US = 100.0


@dataclass(frozen=True)
class Entry:
    """A case of a suite that took ``ratio`` times what the frozen layer took."""

    suite: str
    case: Case
    ratio: float

    @property
    def fullname(self) -> str:
        return f"benchmarks/bench_{self.suite}.py::test[{self.case}]"


def made_up_record(entry: Entry) -> dict[str, Any]:
    """The very function that records measurements, fed with invented rounds."""
    frozen = Result(_timing(1.0), cpu_us=10.0, peak_mib=200.0, first_call_s=0.1)
    result = Result(_timing(entry.ratio), cpu_us=50.0, peak_mib=210.0, first_call_s=1.25)
    results = Results(frozen, {entry.case: result}, copy_gb_per_s=4000.0)
    return record(entry.suite, entry.case, result, results)


def write_results(
    file: Path,
    entries: Iterable[Entry],
    *,
    device: str = "NVIDIA H200",
    command: str = "pytest benchmarks/ --benchmark-only",
) -> Path:
    """Write a file such as ``--benchmark-json`` writes."""
    content = {
        "machine_info": {
            "device": device,
            "python": "3.12.3",
            "torch": "2.11.0",
            "command": command,
        },
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2026-11-24T12:00:00+00:00",
        "benchmarks": [
            {"fullname": entry.fullname, "extra_info": made_up_record(entry)} for entry in entries
        ],
    }
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def _timing(ratio: float) -> Timing:
    device_us = tuple(FROZEN_US * ratio * factor for factor in (0.99, 1.0, 1.01))
    return Timing(device_us, host_us=(10.0,) * 3, ahead=1.0)
