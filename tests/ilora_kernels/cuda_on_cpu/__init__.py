"""The CUDA backend without a GPU: its kernels' own code, compiled for the CPU.

``include/`` stands in for CUDA's headers, with a block's threads as fibers and the tensor cores' step
as a loop. Nothing of the kernels is written twice; what this cannot show is what a GPU does in parallel.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[3]
INCLUDE = Path(__file__).parent / "include"
FLAGS = ("-O1", "-std=c++17", "-fPIC", "-shared", "-fno-strict-aliasing", "-Wall")
MULTIPROCESSORS = 4  # of the GPU that is played: few, so that small problems are split too


def why_not() -> str | None:
    """Return why the kernels cannot be compiled here; None where they can."""
    return (
        None
        if shutil.which("g++")
        else "g++, which compiles the CUDA kernels for the CPU, is missing"
    )


@functools.cache
def kernels() -> Any:
    """Compile (once for each state of the sources) and load the module."""
    folder = ROOT / "build" / "cuda-on-cpu"
    folder.mkdir(parents=True, exist_ok=True)
    build = build_module()
    hashed = build.hash_of([ROOT / "csrc", INCLUDE])
    module = folder / f"{hashed}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        partial = module.with_suffix(f".{os.getpid()}.partial")
        headers = [INCLUDE, build.pybind11_headers(), sysconfig.get_paths()["include"]]
        sources = [*sorted((ROOT / "csrc" / "launch").glob("*.cu")), ROOT / "csrc" / "bindings.cpp"]
        command = ["g++", *FLAGS, "-Wno-unknown-pragmas", "-DILORA_ON_CPU"]
        command += ['-DILORA_SOURCE_HASH="on a CPU"', "-include", "cuda_runtime.h", "-x", "c++"]
        command += [f"-I{path}" for path in headers] + [str(path) for path in sources]
        subprocess.run([*command, "-o", str(partial)], check=True)
        partial.rename(module)
    return load("_cuda", module)


@contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """Inside the block the ``cuda`` backend takes tensors of the CPU."""
    backend = importlib.import_module("ilora_kernels.backends.cuda")
    launch = importlib.import_module("ilora_kernels.backends.cuda.launch")
    choice = importlib.import_module("ilora_kernels.backends")
    played = {
        "kernels": kernels,
        "place_of": lambda _: kernels().Place(0, 0, MULTIPROCESSORS, False),
        "_multiprocessors": lambda _: MULTIPROCESSORS,
        "_compiled_for": lambda _: 80,
    }
    choice._why_unusable.cache_clear()
    try:
        with (
            patch.multiple(launch, **played),
            patch.multiple(backend, place_of=played["place_of"], why_unusable=lambda: None),
            patch.object(backend, "_check_device"),
        ):
            yield
    finally:
        choice._why_unusable.cache_clear()


def build_module() -> ModuleType:
    """``csrc/build.py``, which is part of no package."""
    return load("csrc_build", ROOT / "csrc" / "build.py")


def load(name: str, file: Path) -> ModuleType:
    """Import a file that is part of no package."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
