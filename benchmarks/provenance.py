"""Where and with what a result was measured, for the JSON and for the line under each table."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import torch

PACKAGES = ("torch", "triton", "transformers", "peft")
OUTPUT_OPTIONS = (
    "--benchmark-json",
    "--commit",
    "--time-limit",
)  # what came out does not depend on


def provenance(device: torch.device, arguments: Sequence[str]) -> dict[str, Any]:
    """Name and settings of the device, and versions; no host name, no path.

    Args:
        arguments: those of pytest.
    """
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "device": _gpu_name(device) or platform.processor() or platform.machine(),
        "driver": _nvidia_smi("driver_version") if device.type == "cuda" else None,
        "power_limit_w": _nvidia_smi("power.limit") if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": platform.system(),
        **versions,
        "command": command(arguments),
    }


def command(arguments: Sequence[str]) -> str:
    """The pytest command, without the options that only say where results go."""
    kept = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument in OUTPUT_OPTIONS:
            next(remaining, None)
        elif not argument.startswith(tuple(f"{option}=" for option in OUTPUT_OPTIONS)):
            kept.append(argument)
    return shlex.join(["pytest", *kept])


def _gpu_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi(field: str) -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    lines = answer.stdout.split("\n")
    return lines[0].strip() if answer.returncode == 0 and lines else None
