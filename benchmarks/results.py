"""Stored results: pytest-benchmark's JSON files -> the lines that the tables are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilora.errors import InputError


@dataclass(frozen=True)
class Run:
    """Where and with what one file was measured."""

    machine: dict[str, Any]
    commit: str
    date: str

    def __str__(self) -> str:
        """The line under a table: device, versions, date, commit, command."""
        machine = self.machine
        device = machine["device"]
        settings = [f"driver {machine['driver']}"] if machine.get("driver") else []
        settings += [f"{machine['power_limit_w']} W"] if machine.get("power_limit_w") else []
        names = ("torch", "triton", "transformers", "peft")
        versions = [f"{name} {machine[name]}" for name in names if machine.get(name)]
        versions += [f"CUDA {machine['cuda']}"] if machine.get("cuda") else []
        versions.append(f"Python {machine['python']}")
        where = f"{device} ({', '.join(settings)})" if settings else device
        what = f"{self.date}, commit {self.commit}: `{machine['command']}`"
        return f"*{where}, {', '.join(versions)}, {what}*"


@dataclass(frozen=True)
class Line:
    """One case's record (see :mod:`benchmarks.record`) and the run that it is of."""

    record: dict[str, Any]
    run: Run

    def __getitem__(self, key: str) -> Any:
        return self.record[key]

    def get(self, key: str) -> Any:
        """The value, or None if this line has none."""
        return self.record.get(key)

    @property
    def place(self) -> tuple[int, int, int]:
        """d_out, d_in and T: the row of a table."""
        return self["d_out"], self["d_in"], self["T"]


def read_results(files: Sequence[Path]) -> list[Line]:
    """Read JSON files of one device; a case that is in several counts as in the last.

    But a run of peers stays whole: what took turns in it is compared with nothing else.

    Raises:
        InputError: a file is not such a JSON, or the files are of several devices.
    """
    lines: dict[tuple[str, str], Line] = {}
    for file in files:
        content = _parsed(file)
        run = Run(
            machine=content["machine_info"],
            commit=str(content["commit_info"].get("id", "unknown"))[:7],
            date=content["datetime"][:10],
        )
        for entry in content["benchmarks"]:
            line = Line(entry["extra_info"], run)
            key = entry["fullname"], str(run) if line["suite"] == "peers" else ""
            lines.pop(key, None)  # the later one takes the later place
            lines[key] = line
    devices = sorted({line.run.machine["device"] for line in lines.values()})
    if len(devices) > 1:
        raise InputError(
            f"the results are of several devices ({', '.join(devices)}); report on one at a time"
        )
    return list(lines.values())


def geometric_mean(values: Iterable[float]) -> float:
    """The n-th root of the product; what averages ratios.

    Raises:
        ValueError: there is no value, or one is not positive.
    """
    given = list(values)
    if not given or min(given) <= 0:
        raise ValueError(f"the values are {given}; they must be positive, and at least one.")
    return math.exp(sum(map(math.log, given)) / len(given))


def _parsed(file: Path) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    wanted = ("machine_info", "commit_info", "datetime", "benchmarks")
    missing = [key for key in wanted if not isinstance(content, dict) or key not in content]
    if missing or "command" not in content["machine_info"]:
        raise InputError(
            f"{file} is not a result of these benchmarks; make one with "
            "`pytest benchmarks/ --benchmark-only --benchmark-json FILE`"
        )
    return content
