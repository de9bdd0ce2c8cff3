"""One fixture chooses where and with what every kernel test runs; fresh memory holds NaN."""

from __future__ import annotations

from collections.abc import Iterator

import os

import pytest
import torch

if not torch.cuda.is_available():  # before triton is imported: kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

from ilora_kernels import backends, use_backend

PLACES = [
    pytest.param(("cpu", "torch"), id="cpu-torch"),
    pytest.param(("cpu", "triton"), id="cpu-triton"),
    *(
        pytest.param(("cuda", name), id=f"cuda-{name}", marks=pytest.mark.gpu)
        for name in ("torch", "triton", "cuda")
    ),
]


@pytest.fixture(params=PLACES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    device_type, backend = request.param
    if device_type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    if reason := backends()[backend]:
        pytest.skip(reason)
    with use_backend(backend):
        yield torch.device(device_type)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Deterministic mode fills every ``torch.empty`` with NaN: an unwritten output cannot pass."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(before)
