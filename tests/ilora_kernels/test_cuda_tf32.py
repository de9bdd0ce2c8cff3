"""float32 in the CUDA backend: tensor cores where torch allows TF32, else plain multiply-adds."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ilora_kernels import gated_lora, use_backend
from ilora_kernels.dropout import draw_seed, keep_mask

from .problems import GATE_FORMS, Problem, gradients, off_by_one, random_problem
from .test_cuda import ODD, UNITS
from .tf32 import assert_errs_as_tf32_does, tf32_allowed

launch = importlib.import_module("ilora_kernels.backends.cuda.launch")
FOURS = UNITS | {"d_in": 140, "d_out": 268}  # whole units of 16 bytes in float32 alone


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("gate_form", GATE_FORMS)
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "delta"])
def test_tensor_cores_err_as_tf32_does(
    cuda_device: torch.device, paths: list[bool], linear: bool, gate_form: str, dropout_p: float
) -> None:
    problem = random_problem(gate_form, device=cuda_device, rank=16, linear=linear, **UNITS)
    assert_errs_as_tf32_does(problem, dropout_p=dropout_p)
    # forward: shrink, expand; backward: shrink, column_sums, expand
    assert paths == 5 * [True]


@pytest.mark.parametrize("rank", [4, 8, 12, 24, 32, 48, 64, 100, 160])
@pytest.mark.parametrize("size", [UNITS, FOURS, ODD], ids=["units", "fours", "odd"])
def test_every_rank_errs_as_tf32_does(
    cuda_device: torch.device, paths: list[bool], rank: int, size: dict[str, int]
) -> None:
    problem = random_problem("instance", device=cuda_device, rank=rank, linear=False, **size)
    assert_errs_as_tf32_does(problem, dropout_p=0.3)
    assert set(paths) == {size is not ODD}


def test_a_rank_of_no_whole_units_is_filled_with_zeros(
    cuda_device: torch.device, paths: list[bool]
) -> None:
    problem = random_problem("token", device=cuda_device, **UNITS | {"experts": 3}, rank=6)
    assert_errs_as_tf32_does(problem, dropout_p=0.3)
    assert paths == 5 * [True]


@pytest.mark.parametrize("size", [{"d_in": 2320, "d_out": 1096}, {"d_in": 12, "d_out": 20}])
def test_wide_and_narrow_matrices_err_as_tf32_does(
    cuda_device: torch.device, size: dict[str, int]
) -> None:
    problem = random_problem("packed", device=cuda_device, **UNITS | size, rank=16)
    assert_errs_as_tf32_does(problem, dropout_p=0.1)


@pytest.mark.parametrize("gate_form", ["shared", "packed", "token_2d"])
def test_many_rows_are_summed_in_parts(cuda_device: torch.device, gate_form: str) -> None:
    size = {"instances": 30, "length": 29, "d_in": 24, "d_out": 16, "rank": 16}
    problem = random_problem(gate_form, device=cuda_device, experts=4, **size)
    assert launch._splits(problem.x.shape[:-1].numel(), 16, 24, 4)[0] > 1
    assert_errs_as_tf32_does(problem, dropout_p=0.1)


def test_a_misaligned_x_takes_the_plain_kernels(
    cuda_device: torch.device, paths: list[bool]
) -> None:
    problem = random_problem("token_2d", device=cuda_device, rank=16, **UNITS)
    assert_errs_as_tf32_does(problem, dropout_p=0.1, arrange=off_by_one)
    assert False in paths


def test_masks_are_those_of_the_torch_backend(cuda_device: torch.device) -> None:
    """Rank one and one expert: a mask that differed in one place would show in dX as a zero."""
    problem = random_problem("instance", device=cuda_device, **FOURS | {"rank": 1, "experts": 1})
    problem = replace(problem.to(torch.float32), weight=None, bias=None)
    dropped = []
    for name in ("torch", "cuda"):
        with use_backend(name), tf32_allowed():
            dropped.append(_results(problem)[1] == 0)
    assert torch.equal(*dropped)
    assert 0.27 < float(dropped[0].float().mean()) < 0.33


def test_what_is_dropped_may_be_infinite(cuda_device: torch.device) -> None:
    x, A = torch.ones(16, 64, device=cuda_device), torch.ones(4, 64, device=cuda_device)
    gate = torch.ones(1, device=cuda_device)
    torch.manual_seed(5)
    keep = keep_mask(draw_seed(x.device), 16, 64, 0.5)
    x = torch.where(keep, x, torch.inf)
    torch.manual_seed(5)
    with tf32_allowed():
        y = gated_lora(x, A, A.T.contiguous(), gate, dropout_p=0.5)
    assert y.isfinite().all()


# ---- The setting


def _results(problem: Problem) -> list[Tensor]:
    leaves = problem.leaves()
    torch.manual_seed(3)
    y = leaves.run(dropout_p=0.3)
    return [y.detach(), *gradients(leaves, y)]


def test_where_tf32_is_not_allowed_the_bits_are_those_of_the_multiply_adds(
    cuda_device: torch.device, paths: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem("instance", device=cuda_device, linear=False, **UNITS, rank=16)
    problem = problem.to(torch.float32)
    with tf32_allowed(False):
        exact = _results(problem)
    with tf32_allowed():
        rounded = _results(problem)
    assert paths == 5 * [False] + 5 * [True]
    monkeypatch.setattr(launch, "_compiled_for", lambda _: 75)
    with tf32_allowed():
        multiply_adds = _results(problem)
    assert not any(paths[10:])
    for a, b, c in zip(exact, multiply_adds, rounded, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_a_backward_pass_follows_the_setting_of_its_own_time(
    cuda_device: torch.device, paths: list[bool]
) -> None:
    leaves = random_problem("packed", device=cuda_device, **UNITS, rank=16).to(torch.float32)
    leaves = leaves.leaves()
    for forward in (False, True):
        with tf32_allowed(forward):
            y = leaves.run()
        with tf32_allowed(not forward):
            gradients(leaves, y)
    assert paths == [False] * 2 + [True] * 3 + [True] * 2 + [False] * 3


@pytest.fixture
def restored() -> Iterator[None]:
    """All names of torch's setting as they are in a fresh process."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"


def _by(owner: object, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


@pytest.mark.parametrize(
    ("allow", "forbid"),
    [
        (
            lambda: torch.set_float32_matmul_precision("high"),
            lambda: torch.set_float32_matmul_precision("highest"),
        ),
        *(
            (_by(owner, name, allowed), _by(owner, name, forbidden))
            for owner, name, allowed, forbidden in (
                (torch.backends.cuda.matmul, "allow_tf32", True, False),
                (torch.backends.cuda.matmul, "fp32_precision", "tf32", "ieee"),
                (torch.backends, "fp32_precision", "tf32", "ieee"),
            )
        ),
    ],
    ids=["set_float32_matmul_precision", "allow_tf32", "matmul.fp32_precision", "fp32_precision"],
)
def test_every_name_of_torchs_setting_counts(
    restored: None, allow: Callable[[], None], forbid: Callable[[], None]
) -> None:
    assert not launch._may_round(torch.float32)
    for change, allowed in ((allow, True), (forbid, False)):
        change()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert launch._may_round(torch.float32) == allowed
        assert launch._may_round(torch.bfloat16)
