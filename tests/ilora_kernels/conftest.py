"""One fixture chooses where and with what every kernel test runs; fresh memory holds NaN."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():  # before triton is imported: kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

from ilora_kernels import backends, use_backend
from ilora_kernels.backends import requested

from .cuda_on_cpu import cuda_on_cpu, why_not
from .noting import noted

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CPU_PLACES = [pytest.param(("cpu", name), id=f"cpu-{name}") for name in ("torch", "triton", "cuda")]
GPU_PLACES = [
    pytest.param(("cuda", name), id=f"cuda-{name}", marks=pytest.mark.gpu)
    for name in ("torch", "triton", "cuda")
]


@pytest.fixture(params=[*CPU_PLACES, *GPU_PLACES])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    yield from _in_place(*request.param)


@pytest.fixture(params=[CPU_PLACES[1], GPU_PLACES[1]])
def triton_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the Triton backend runs: in its interpreter on a CPU, compiled on a GPU."""
    yield from _in_place(*request.param)


@pytest.fixture(params=[CPU_PLACES[2], GPU_PLACES[2]])
def cuda_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the CUDA backend runs: its kernels compiled for a CPU, or for a GPU."""
    yield from _in_place(*request.param)


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Which kernels were chosen, tensor cores or not, in the order of their launches."""
    launch = importlib.import_module("ilora_kernels.backends.cuda.launch")
    return noted(monkeypatch, launch, "_for_tensor_cores")


def _in_place(device_type: str, backend: str) -> Iterator[torch.device]:
    if device_type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    if (device_type, backend) == ("cpu", "triton") and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("kernels are compiled for the GPU here; TRITON_INTERPRET=1 interprets them")
    with contextlib.ExitStack() as stack:
        if (device_type, backend) == ("cpu", "cuda"):
            if reason := why_not():
                pytest.skip(reason)
            stack.enter_context(cuda_on_cpu())
        if reason := backends()[backend]:
            pytest.skip(reason)
        stack.enter_context(use_backend(backend))
        yield torch.device(device_type)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest, device: torch.device) -> torch.dtype:
    """Every dtype that the backend in use takes on ``device``."""
    wanted: torch.dtype = request.param
    if requested() in ("triton", "cuda") and wanted == torch.float64:
        pytest.skip(f"the {requested()} backend takes no float64")
    if requested() == "triton" and wanted == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter computes bfloat16 wrongly")
    return wanted


@pytest.fixture(autouse=True)
def _no_launches_of_another_test() -> None:
    """Tests change what a pass launches; what was noted of one must not serve the next."""
    if importlib.util.find_spec("triton"):
        importlib.import_module("ilora_kernels.backends.triton.replay").forget()


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Deterministic mode fills every ``torch.empty`` with NaN: an unwritten output cannot pass."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(before)
