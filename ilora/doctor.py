"""What this machine has, which backend will run on it, and why the others will not."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ilora.errors import InputError

PACKAGES = ("ilora", "torch", "triton", "transformers", "peft", "accelerate")
COMPILERS = ("c++", "g++", "clang++")
CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    name: str
    memory_gib: float
    capability: str


@dataclass(frozen=True)
class Choice:
    """The backend that computes on one kind of device (None: nothing does), and why."""

    backend: str | None
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """The machine as the package sees it.

    Attributes:
        packages: versions; None where a package is not installed.
        cpus: processors that this process may use.
        memory_free_gib: what is available now, within the container's limit; None if unknown.
        disk_free_gib: on the disk of the current folder.
        cuda: the CUDA version that torch was built with; None for a CPU build.
        backends: backend -> None if it is usable, else why not.
        drawbacks: usable backend -> why it could do more elsewhere, where it could.
        chosen: ``"cpu"`` and ``"cuda"`` -> the backend that will run there.
        cuda_kernels: what the installation built of them, or why nothing.
        nvcc, compiler: paths of the CUDA and the C++ compiler; None where there is none.
    """

    python: str
    system: str
    packages: dict[str, str | None]
    cpus: int
    memory_free_gib: float | None
    disk_free_gib: float
    cuda: str | None
    gpus: tuple[Gpu, ...]
    backends: dict[str, str | None]
    drawbacks: dict[str, str]
    chosen: dict[str, Choice]
    cuda_kernels: str
    nvcc: str | None
    compiler: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def table(self) -> list[tuple[str, str]]:
        """Rows of (what, value) for the terminal."""
        memory = "unknown" if self.memory_free_gib is None else f"{self.memory_free_gib:.1f} GiB"
        lines = [("python", f"{self.python} on {self.system}")]
        lines += [(name, found or "not installed") for name, found in self.packages.items()]
        lines += [("CPUs", str(self.cpus)), ("free memory", memory)]
        lines.append(("free disk here", f"{self.disk_free_gib:.1f} GiB"))
        lines += [
            (f"GPU {k}", f"{gpu.name}, {gpu.memory_gib:.1f} GiB, capability {gpu.capability}")
            for k, gpu in enumerate(self.gpus)
        ]
        if not self.gpus:
            build = "a CPU build" if self.cuda is None else f"built for CUDA {self.cuda}"
            lines.append(("GPU", f"none that torch sees (torch is {build})"))
        lines.append(("nvcc", self.nvcc or "not found"))
        lines.append(("C++ compiler", self.compiler or "not found"))
        lines.append(("CUDA kernels", self.cuda_kernels))
        lines += [
            (f"backend {name}", self._usable(name) if reason is None else f"not usable: {reason}")
            for name, reason in self.backends.items()
        ]
        for device, choice in self.chosen.items():
            lines.append(
                (f"on {device.upper()} runs", f"{choice.backend or 'nothing'}: {choice.reason}")
            )
        return lines

    def _usable(self, name: str) -> str:
        return f"usable; {self.drawbacks[name]}" if name in self.drawbacks else "usable"


def diagnose(folder: Path = Path()) -> Diagnosis:
    """Look at this machine; nothing is changed and no network is touched.

    Args:
        folder: on whose disk the free space is measured.

    Raises:
        InputError: ``ILORA_BACKEND`` names no backend.
    """
    usable, drawbacks = _backends()
    gpus = _gpus()
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    return Diagnosis(
        python=platform.python_version(),
        system=platform.platform(terse=True),
        packages={name: _version(name) for name in PACKAGES},
        cpus=_cpus(),
        memory_free_gib=free_memory_gib(),
        disk_free_gib=shutil.disk_usage(folder).free / GIB,
        cuda=torch.version.cuda,
        gpus=gpus,
        backends=usable,
        drawbacks=drawbacks,
        chosen=choose(usable, os.environ.get("ILORA_BACKEND", ""), has_gpu=bool(gpus)),
        cuda_kernels=_cuda_kernels(),
        nvcc=shutil.which("nvcc"),
        compiler=compiler,
    )


def choose(usable: Mapping[str, str | None], requested: str, *, has_gpu: bool) -> dict[str, Choice]:
    """The backend for CPU and CUDA tensors, as `ilora_kernels` chooses it.

    Args:
        usable: what `ilora_kernels.backends` returned, the preferred ones first.
        requested: the value of ``ILORA_BACKEND``, empty where it is not set.
    """
    if requested:
        problem = usable[requested]
        choice = (
            Choice(requested, "ILORA_BACKEND asks for it")
            if problem is None
            else Choice(
                None, f"ILORA_BACKEND asks for {requested}, which cannot be used: {problem}"
            )
        )
        return {"cpu": choice, "cuda": choice if has_gpu else Choice(None, "there is no GPU")}
    best = next(name for name, problem in usable.items() if problem is None)
    return {
        "cpu": Choice("torch", "the one that runs on a CPU"),
        "cuda": (
            Choice(best, "the first usable one in the order above")
            if has_gpu
            else Choice(None, "there is no GPU")
        ),
    }


def free_memory_gib(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> float | None:
    """Memory that can be had without swapping, within the container's limit; None if unknown."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None  # not Linux
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup 2, or the limit is "max"
        return free / GIB
    return min(free, limit - used) / GIB


def _backends() -> tuple[dict[str, str | None], dict[str, str]]:
    try:
        from ilora_kernels.backends import backends, drawbacks
    except ValueError as error:  # an ILORA_BACKEND that does not exist
        raise InputError(str(error)) from None
    return backends(), drawbacks()


def _cuda_kernels() -> str:
    from ilora_kernels import build_record

    try:
        return build_record.summary()
    except ValueError as error:  # somebody else's file in the place of the record
        raise InputError(str(error)) from None


def _gpus() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    return tuple(Gpu(p.name, p.total_memory / GIB, f"{p.major}.{p.minor}") for p in found)


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
