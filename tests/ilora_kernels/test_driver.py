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
KERNELS = {"shrink", "linear_hopper", "gradients", "delta", "decode_split", "decode_finish"}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
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
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def cases(told: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = told["cases"]
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


def test_a_pass_that_only_launches_is_computed_once_and_replayed_then(
    cases: list[dict[str, Any]],
) -> None:
    for case in cases:
        rows, *_, fused, dropout_p = case["case"]
        first, *later = (each["computed"] for each in case["rounds"])
        assert first == ["_forward", "_backward"] * 2, case["case"]  # the layer, the update alone
        # A pass of the layer with the library's product is more than its launches.
        decoded = rows <= 128 and not dropout_p
        expected = ["_forward"] * (not fused and not decoded) + ["_backward"] * (not fused)
        assert later == [expected] * 3, case["case"]


def test_a_tensor_that_was_two_arguments_once_is_not_taken_for_one_of_them(
    told: dict[str, Any],
) -> None:
    assert told["onto"] == ["x", "x", "dy"]


def test_watching_a_first_call_keeps_no_output_that_the_pass_has_freed(
    told: dict[str, Any],
) -> None:
    assert told["outputs"] == 1


def test_tensors_of_a_cpu_are_refused_though_a_pass_like_theirs_was_noted(
    told: dict[str, Any],
) -> None:
    assert told["refusal"].startswith("x is on cpu, where the triton backend does not compute")
