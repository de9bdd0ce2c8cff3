"""What launches hand to the driver, in a process of its own that plays a GPU: ``driver_on_cpu``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
KERNELS = {"shrink", "linear", "gradients", "delta", "decode_split", "decode_finish"}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if not shutil.which("cc"):
        pytest.skip("cc, which builds the driver that launches nothing, is missing")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.ilora_kernels.driver_on_cpu",
            str(tmp_path_factory.mktemp("driver")),
        ],
        cwd=ROOT,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_every_kernel_is_launched(cases: list[dict[str, Any]]) -> None:
    names = {launch[0] for case in cases for launch in case["rounds"][0]["launches"]}
    assert names == {f"{name}_kernel" for name in KERNELS}


def test_a_later_launch_hands_over_what_tritons_own_first_launch_does(
    cases: list[dict[str, Any]],
) -> None:
    for case in cases:
        first, *later = (each["launches"] for each in case["rounds"])
        assert first
        for launches in later:  # the last over other tensors, which have names there, not addresses
            assert launches == first, case["case"]


def test_the_maps_of_tensors_that_stay_are_not_encoded_again(cases: list[dict[str, Any]]) -> None:
    first, _, again, elsewhere = (each["encoded"] for each in cases[0]["rounds"])
    assert first == elsewhere == ["x", "weight", "lora_A", "lora_B", "dy"]
    assert again == []
