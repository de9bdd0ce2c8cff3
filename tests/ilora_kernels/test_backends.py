"""Choosing a backend."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ilora_kernels import backends, gated_lora, use_backend
from ilora_kernels.backends import AUTOMATIC, requested


def test_every_backend_is_usable_or_says_why_not() -> None:
    stated = backends()
    assert set(stated) == {"torch", "triton", "cuda"}
    assert stated["torch"] is None
    assert all(reason is None or reason.endswith(".") for reason in stated.values())


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="'tpu'"), use_backend("tpu"):
        pass


def test_an_unusable_backend_is_refused_with_its_reason() -> None:
    unusable = {name: reason for name, reason in backends().items() if reason}
    for name, reason in unusable.items():
        with pytest.raises(RuntimeError) as caught, use_backend(name):
            pass
        assert reason in str(caught.value)


def test_a_machine_without_triton_is_told_so() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"  # as if it were not installed
        "import ilora_kernels; print(ilora_kernels.backends()['triton'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    assert "triton" in done.stdout


def test_a_dtype_that_a_named_backend_lacks_is_refused(triton_device: torch.device) -> None:
    x = torch.ones(2, 4, dtype=torch.float64, device=triton_device)
    with pytest.raises(TypeError, match=r"triton backend does not take x of dtype torch\.float64"):
        gated_lora(x, x, x.T.contiguous(), x[0, :1])


def test_the_choice_ends_with_the_block_even_after_an_error() -> None:
    before = requested()

    def fail_inside() -> None:
        with use_backend("torch"):
            assert requested() == "torch"
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert requested() == before


@pytest.mark.parametrize(("value", "code"), [("torch", 0), ("nonsense", 1)])
def test_the_environment_variable_chooses(value: str, code: int) -> None:
    program = "from ilora_kernels.backends import requested; assert requested() == 'torch'"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"ILORA_BACKEND": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    if code:
        assert "ILORA_BACKEND is 'nonsense'" in done.stderr


def test_nothing_is_forced_by_default() -> None:
    if "ILORA_BACKEND" not in os.environ:
        assert requested() == AUTOMATIC
