"""What the shipped configurations compile to, on GPUs that are not here.

``compile_kernels`` runs once a target, in a process of its own: this one may be interpreting.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from ilora_kernels.backends.triton.configs import TUNED_FOLDER

ROOT = Path(__file__).parents[2]
KIB = 1024
SHARED_LIMIT = {"sm_80": 163 * KIB, "sm_90": 227 * KIB, "sm_100": 227 * KIB, "gfx942": 64 * KIB}
TARGETS = sorted(SHARED_LIMIT)
# A multiprocessor of sm_90: registers, shared memory, and what every block takes besides its own.
REGISTERS, SHARED, RESERVED = 65536, 228 * KIB, 1 * KIB

Record = dict[str, Any]


@pytest.fixture(scope="module")
def compilations() -> Iterator[dict[str, Future[list[Record]]]]:
    """All targets, two at a time; a test waits for its own."""
    with ThreadPoolExecutor(2) as pool:
        yield {target: pool.submit(compile_for, target) for target in TARGETS}


def compile_for(target: str) -> list[Record]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"ILORA_TUNED": str(TUNED_FOLDER / "default.json"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ilora_kernels.compile_kernels", target],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    records: list[Record] = json.loads(done.stdout)
    return records


@pytest.fixture
def records(
    compilations: dict[str, Future[list[Record]]], request: pytest.FixtureRequest
) -> list[Record]:
    """What the launches of every pass on the test's target compiled to."""
    return compilations[request.getfixturevalue("target")].result()


def those(records: list[Record], measure: str, wrong: Any) -> dict[str, Any]:
    """The kernels whose ``measure`` is ``wrong``, by a name that tells them apart."""
    names = ("kernel", "product", "pass", "rows", "rank", "dropout_p")
    return {
        ", ".join(f"{name} {record[name]}" for name in names): record[measure]
        for record in records
        if record.get(measure) is not None and wrong(record[measure])
    }


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles(records: list[Record], target: str) -> None:
    kernels = {"shrink_kernel", "gradients_kernel", "delta_kernel"}
    kernels |= {"linear_kernel"} if target in ("sm_90", "sm_100") else set()
    kernels |= {"linear_hopper_kernel"} if target == "sm_90" else set()
    kernels |= {"decode_split_kernel", "decode_finish_kernel"} if target != "gfx942" else set()
    assert {r["kernel"] for r in records} == kernels
    assert those(records, "error", bool) == {}


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_uses_the_matrix_units(records: list[Record], target: str) -> None:
    assert those(records, "matrix_instructions", lambda count: count == 0) == {}


@pytest.mark.parametrize("target", TARGETS)
def test_no_kernel_spills_registers(records: list[Record], target: str) -> None:
    assert those(records, "spills", bool) == {}


@pytest.mark.parametrize("target", ["sm_90"])
def test_no_register_is_computed_anew_while_the_tensor_cores_read_it(
    records: list[Record], target: str
) -> None:
    assert those(records, "overwritten_operands", bool) == {}


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_fits_into_shared_memory(records: list[Record], target: str) -> None:
    limit = SHARED_LIMIT[target]
    assert those(records, "shared", lambda size: size > limit) == {}


@pytest.mark.parametrize("target", ["sm_90"])
def test_the_small_kernels_fit_beside_the_product(records: list[Record], target: str) -> None:
    """On one multiprocessor, a block of each at once: that is what hides them.

    Of ranks above 32 those without dropout.
    """
    assert {small["rank"] for _, small in pairs(records)} == {16, 64}
    crowded = {
        f"{small['kernel']} by {small['product']}, {small['pass']}, {small['rows']} rows, rank "
        f"{small['rank']}, dropout {small['dropout_p']}": {
            "registers": registers_of(product) + registers_of(small),
            "shared": product["shared"] + small["shared"] + 2 * RESERVED,
        }
        for product, small in pairs(records)
        if small["rank"] <= 32 or not small["dropout_p"]
    }
    assert {k: v for k, v in crowded.items() if v["registers"] > REGISTERS} == {}
    assert {k: v for k, v in crowded.items() if v["shared"] > SHARED} == {}


def pairs(records: list[Record]) -> list[tuple[Record, Record]]:
    """The product and each small kernel of the same pass."""
    passes: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        names = ("rank", "pass", "rows", "dropout_p", "product")
        key = tuple(record[name] for name in names)
        passes.setdefault(key, []).append(record)
    return [
        (product, small)
        for launches in passes.values()
        for product in launches
        for small in launches
        if product["kernel"].startswith("linear") and small is not product
        if not (product["error"] or small["error"])
    ]


def registers_of(record: Record) -> int:
    """Registers of a block: a thread's are given out in eights."""
    a_thread: int = -(-record["registers"] // 8) * 8
    return a_thread * 32 * int(record["num_warps"])
