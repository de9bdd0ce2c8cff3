"""The CUDA backend's own ground: tensor cores at every rank and edge, masks, errors."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ilora_kernels import gated_lora, use_backend
from ilora_kernels.functional import gated_lora_onto

from .cuda_on_cpu import load
from .problems import (
    GATE_FORMS,
    TRAINABLE,
    Problem,
    assert_at_most_twice_the_error,
    assert_matches_float64,
    gradients,
    off_by_one,
    random_problem,
)

launch = importlib.import_module("ilora_kernels.backends.cuda.launch")
# Rows of whole units of 16 bytes, which is what the tensor cores take; never whole blocks.
UNITS = {"instances": 3, "length": 25, "d_in": 136, "d_out": 264, "experts": 4}
ODD = {"instances": 3, "length": 25, "d_in": 67, "d_out": 77, "experts": 4}
HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("gate_form", GATE_FORMS)
def test_tensor_cores_match_float64(
    cuda_device: torch.device,
    paths: list[bool],
    gate_form: str,
    dropout_p: float,
    dtype: torch.dtype,
) -> None:
    problem = random_problem(gate_form, device=cuda_device, rank=16, **UNITS)
    assert_matches_float64(problem, dtype, dropout_p=dropout_p)
    assert all(paths)
    # forward: shrink, expand; backward: shrink, column_sums, expand
    assert len(paths) == 5


@pytest.mark.parametrize("rank", [4, 8, 12, 24, 32, 48, 64, 100, 160])
@pytest.mark.parametrize("size", [UNITS, ODD], ids=["units", "odd"])
def test_every_rank_matches_float64(
    cuda_device: torch.device, paths: list[bool], rank: int, size: dict[str, int]
) -> None:
    problem = random_problem("instance", device=cuda_device, rank=rank, **size)
    assert_matches_float64(problem, torch.bfloat16, dropout_p=0.3)
    assert set(paths) == {size is UNITS}


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "delta"])
@pytest.mark.parametrize("size", [{"d_in": 2320, "d_out": 1096}, {"d_in": 24, "d_out": 16}])
def test_wide_and_narrow_matrices_match_float64(
    cuda_device: torch.device, size: dict[str, int], linear: bool
) -> None:
    problem = random_problem("packed", device=cuda_device, linear=linear, **UNITS | size, rank=16)
    for dtype in (*HALVES, torch.float32):
        assert_matches_float64(problem, dtype, dropout_p=0.1)


@pytest.mark.parametrize("gate_form", ["shared", "packed", "token_2d"])
def test_many_rows_are_summed_in_parts(cuda_device: torch.device, gate_form: str) -> None:
    size = {"instances": 30, "length": 29, "d_in": 24, "d_out": 16, "rank": 16}
    problem = random_problem(gate_form, device=cuda_device, experts=4, **size)
    splits, rows = launch._splits(problem.x.shape[:-1].numel(), 16, 24, 4)
    assert splits > 1
    assert rows % 128 == 0
    for dtype in (torch.bfloat16, torch.float32):
        assert_matches_float64(problem, dtype, dropout_p=0.1)


def test_a_misaligned_x_takes_the_plain_kernels(
    cuda_device: torch.device, paths: list[bool]
) -> None:
    problem = random_problem("token_2d", device=cuda_device, rank=16, **UNITS)
    assert_matches_float64(problem, torch.bfloat16, dropout_p=0.1, arrange=off_by_one)
    assert False in paths


def test_rows_with_gaps_between_them_are_taken_as_they_lie(
    cuda_device: torch.device, paths: list[bool]
) -> None:
    def with_gaps(x: Tensor) -> Tensor:
        return torch.cat([x, torch.full_like(x[:, :8], torch.nan)], dim=1)[:, : x.shape[1]]

    problem = random_problem("token_2d", device=cuda_device, rank=16, **UNITS)
    assert_matches_float64(problem, torch.bfloat16, dropout_p=0.1, arrange=with_gaps)
    assert all(paths)


def test_factors_with_gaps_between_their_rows_are_read_to_their_own_ends(
    cuda_device: torch.device,
) -> None:
    problem = random_problem("instance", device=cuda_device, rank=8, **UNITS).to(torch.bfloat16)

    def with_gaps(factor: Tensor) -> Tensor:
        return torch.cat([factor, torch.full_like(factor, torch.nan)], 1)[:, : factor.shape[1]]

    gaps = replace(problem, lora_A=with_gaps(problem.lora_A), lora_B=with_gaps(problem.lora_B))
    assert gaps.lora_B.stride(0) == 16
    runs = []
    for one in (problem, gaps):
        trainable = {n: getattr(one, n).requires_grad_() for n in ("x", "lora_A", "lora_B", "gate")}
        one = replace(one, **trainable)
        y = one.run()
        runs.append([y, *gradients(one, y)])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [UNITS, ODD], ids=["units", "odd"])
def test_masks_are_those_of_the_torch_backend(
    cuda_device: torch.device, size: dict[str, int], dtype: torch.dtype
) -> None:
    """Rank one and one expert: a mask that differed in one place would show in dX as a zero.

    All numbers are positive, so that no sum cancels and every result shows what is missing from it.
    """
    problem = random_problem("instance", device=cuda_device, **size | {"rank": 1, "experts": 1})
    positive = {name: getattr(problem, name).abs() for name in ("x", "lora_A", "lora_B")}
    problem = replace(problem, weight=None, bias=None, **positive).to(dtype)
    found = []
    for name, precision in (("torch", torch.float64), ("torch", dtype), ("cuda", dtype)):
        leaves = problem.to(precision).leaves()
        with use_backend(name):
            torch.manual_seed(3)
            y = leaves.run(dropout_p=0.3)
            wanted = [getattr(leaves, leaf) for leaf in TRAINABLE]
            found.append([y.detach(), *torch.autograd.grad(y, wanted, torch.ones_like(y))])
    oracle, plain, actual = found
    assert torch.equal(actual[1] == 0, oracle[1] == 0)
    assert 0.27 < float((actual[1] == 0).float().mean()) < 0.33
    for a, p, o in zip(actual, plain, oracle, strict=True):
        assert_at_most_twice_the_error(a, p, o)


def test_what_is_dropped_may_be_infinite(cuda_device: torch.device) -> None:
    x = torch.ones(16, 64, device=cuda_device, dtype=torch.bfloat16)
    A = torch.ones(4, 64, device=cuda_device, dtype=torch.bfloat16)
    gate = torch.ones(1, device=cuda_device)
    torch.manual_seed(5)
    with use_backend("torch"):
        expected = gated_lora(x, A, A.T.contiguous(), gate, dropout_p=0.5)
    from ilora_kernels.dropout import draw_seed, keep_mask

    torch.manual_seed(5)
    keep = keep_mask(draw_seed(x.device), 16, 64, 0.5)
    torch.manual_seed(5)
    y = gated_lora(torch.where(keep, x, torch.inf), A, A.T.contiguous(), gate, dropout_p=0.5)
    torch.testing.assert_close(y, expected)


def test_code_of_before_the_tensor_cores_takes_the_plain_kernels(
    cuda_device: torch.device, paths: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PTX for 7.5 runs on every newer GPU, but it holds no step of the tensor cores."""
    monkeypatch.setattr(launch, "_compiled_for", lambda _: 75)
    problem = random_problem("instance", device=cuda_device, rank=16, **UNITS)
    assert_matches_float64(problem, torch.float16)
    assert len(paths) == 5
    assert not any(paths)


def test_a_base_is_copied_before_the_first_kernel(
    cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy may be no kernel, and a graph chains a kernel to kernels alone."""
    backend = importlib.import_module("ilora_kernels.backends.cuda")
    order: list[str] = []

    def noted(name: str) -> Any:
        original = getattr(backend, name)

        def call(*arguments: Any, **options: Any) -> Any:
            order.append(name)
            return original(*arguments, **options)

        return call

    for name in ("rows_of", "shrink", "expand"):
        monkeypatch.setattr(backend, name, noted(name))
    problem = random_problem("token_2d", device=cuda_device, linear=False, **UNITS, rank=16)
    problem = problem.to(torch.float16)
    base = torch.randn(UNITS["d_out"], len(problem.x), device=cuda_device).half().T
    low_rank = (problem.x, problem.lora_A, problem.lora_B, problem.gate)
    y = gated_lora_onto(base, *low_rank)
    assert order == ["rows_of", "rows_of", "shrink", "expand"]
    assert torch.equal(y, gated_lora_onto(base.contiguous(), *low_rank))


def test_an_error_of_cuda_is_an_exception_with_its_message(cuda_device: torch.device) -> None:
    kernels: Any = launch.kernels()
    nowhere = kernels.Place(4711, 0, 4, False)
    gating = kernels.Gating(0, 0, 0, 1, 1, 1, 1.0)
    with pytest.raises(RuntimeError, match=r"Choosing the GPU: .*\(cudaError"):
        kernels.finish(nowhere, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, gating)


def test_sequences_that_cu_seqlens_leaves_empty_get_a_gradient_of_zero(
    cuda_device: torch.device,
) -> None:
    lengths = torch.tensor([0, 0, 7, 0, 9, 0])
    base = random_problem("token_2d", device=cuda_device, instances=2, length=8, d_in=24, d_out=16)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    for dtype in (torch.int32, torch.int64):
        problem = Problem(
            **vars(base)
            | {
                "gate": torch.rand(6, 3, dtype=torch.float64, device=cuda_device),
                "cu_seqlens": offsets.to(cuda_device, dtype),
            }
        ).to(torch.float32)
        leaves = problem.leaves()
        grad = gradients(leaves, leaves.run())[3]
        assert not grad[lengths == 0].any()
        assert grad[lengths > 0].all()
        assert_matches_float64(problem, torch.float32)


def test_another_build_can_be_loaded_beside_it(cuda_device: torch.device, tmp_path: Path) -> None:
    module = launch.kernels()
    copy = load("beside._cuda", Path(shutil.copy(module.__file__, tmp_path / "_cuda.so")))
    assert copy.Place is not module.Place
    assert copy.Place(0, 0, 4, False)
