"""The Triton backend by itself: each of its paths against float64, and how it launches.

On a CPU everything runs in Triton's interpreter; what only a GPU shows is in ``test_triton_gpu``.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from ilora_kernels import gated_lora, use_backend
from ilora_kernels.backends import triton as backend
from ilora_kernels.backends.triton import configs
from ilora_kernels.dropout import draw_seed, keep_mask

from . import gluon_on_cpu
from .noting import noted
from .problems import (
    GATE_FORMS,
    TRAINABLE,
    Problem,
    assert_matches_float64,
    gradients,
    off_by_one,
    random_problem,
)


def module(name: str) -> ModuleType:
    """A module of the backend; the package's attribute of that name is the function in it."""
    return importlib.import_module(f"ilora_kernels.backends.triton.{name}")


# Sizes that the copy engine can describe; every kernel has more than one block and a ragged last one.
ALIGNED = {"instances": 4, "length": 75, "d_in": 136, "d_out": 520}


@pytest.fixture(params=["triton", "hopper"])
def fused(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[list[bool]]:
    """Make ``linear`` compute the frozen product, and four programs of it; list the passes it ran.

    By each of its kernels: Hopper's own runs on a CPU as ``gluon_on_cpu``.
    """
    linear, hopper = module("linear"), request.param == "hopper"
    if not linear.holds_product(linear.current_device()):
        pytest.skip("the fused product needs Hopper's copy engine")
    if triton_device.type == "cpu" and hopper:
        monkeypatch.setattr(linear, "launch", gluon_on_cpu.launching(linear.launch))
    elif hopper and not linear.has_hopper_kernels(linear.current_device()):
        pytest.skip("needs Hopper, and Triton 3.6")
    monkeypatch.setattr(linear, "has_hopper_kernels", lambda _: hopper)
    monkeypatch.setattr(linear, "fusing_pays", lambda *_: True)
    monkeypatch.setattr(linear, "multiprocessors", lambda _: 4)
    monkeypatch.setattr(backend, "can_decode", lambda *_: False)
    passes: list[bool] = []
    original = backend.linear

    def counted(*arguments: Any, backward: bool) -> None:
        passes.append(backward)
        original(*arguments, backward=backward)

    monkeypatch.setattr(backend, "linear", counted)
    monkeypatch.setattr(backend, "replayed", lambda compute, arguments: compute(*arguments))
    linear._plan.cache_clear()  # it does not ask whose kernel
    yield passes
    linear._plan.cache_clear()


# ---- The fused product


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("gate_form", GATE_FORMS)
def test_the_fused_product_matches_float64_for_every_gate_form(
    triton_device: torch.device, fused: list[bool], gate_form: str, dropout_p: float
) -> None:
    size = ALIGNED | ({"instances": 25} if gate_form == "packed" else {})
    problem = random_problem(gate_form, device=triton_device, **size)
    assert_matches_float64(problem, torch.float16, dropout_p=dropout_p)
    assert fused == [False, True]


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(
    ("rows", "d_in", "d_out"),
    [
        pytest.param(64, 264, 248, id="one tile, in two halves"),
        pytest.param(200, 264, 264, id="a whole round"),
        pytest.param(300, 264, 520, id="dX of a whole round and half tiles"),
        pytest.param(300, 520, 264, id="dX of two rounds and half tiles"),
    ],
)
def test_every_number_of_rounds_matches_float64(
    triton_device: torch.device,
    fused: list[bool],
    rows: int,
    d_in: int,
    d_out: int,
    dropout_p: float,
) -> None:
    problem = random_problem(
        "instance", device=triton_device, instances=2, length=rows // 2, d_in=d_in, d_out=d_out
    )
    assert_matches_float64(problem, torch.float16, dropout_p=dropout_p)
    assert fused == [False, True]


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("rank", [16, 48, 80])
def test_the_fused_product_takes_ranks_of_several_steps(
    triton_device: torch.device, fused: list[bool], rank: int, dropout_p: float
) -> None:
    problem = random_problem(
        "instance", device=triton_device, rank=rank, experts=4, bias=False, **ALIGNED
    )
    assert_matches_float64(problem, torch.float16, dropout_p=dropout_p)
    assert fused == [False, True]


def test_the_fused_product_walks_over_rows_with_gaps_between_them(
    triton_device: torch.device, fused: list[bool]
) -> None:
    problem = random_problem("token_2d", device=triton_device, **ALIGNED)
    assert_matches_float64(
        problem, torch.float16, dropout_p=0.3, arrange=lambda x: with_gaps(x, 24)
    )
    assert fused == [False, True]


def with_gaps(x: Tensor, gap: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, gap))[..., : x.shape[-1]]


@pytest.mark.parametrize("gate_form", ["instance", "token"])
def test_the_expanded_gradient_of_a_sum_is_read_rightly(
    triton_device: torch.device, fused: list[bool], gate_form: str
) -> None:
    problem = random_problem(gate_form, device=triton_device, **ALIGNED)

    def of_the_sum(p: Problem, y: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(y.sum(), [getattr(p, name) for name in TRAINABLE]))

    assert_matches_float64(problem, torch.float16, directed=of_the_sum)
    assert fused == [False, True]


def test_a_frozen_input_asks_for_no_product_backward(
    triton_device: torch.device, fused: list[bool]
) -> None:
    problem = random_problem("instance", device=triton_device, **ALIGNED).to(torch.float16)
    leaves = problem.leaves()
    y = Problem(**vars(leaves) | {"x": problem.x}).run()
    direction = torch.randn_like(y)
    partial = torch.autograd.grad(y, (leaves.lora_A, leaves.lora_B, leaves.gate), direction)
    assert fused == [False]
    whole = torch.autograd.grad(
        leaves.run(), (leaves.x, leaves.lora_A, leaves.lora_B, leaves.gate), direction
    )
    assert all(torch.equal(a, b) for a, b in zip(partial, whole[1:], strict=True))


# ---- The path through pointers, and the library's product with delta


ODD_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a misaligned address": off_by_one,
    "an odd stride": lambda x: with_gaps(x, 3),
    "columns first": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
}


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ODD_LAYOUTS)
def test_inputs_that_no_descriptor_describes_match_float64(
    triton_device: torch.device, layout: str, dtype: torch.dtype, dropout_p: float
) -> None:
    problem = random_problem("token_2d", device=triton_device, length=30, d_in=72, d_out=80)
    assert_matches_float64(problem, dtype, dropout_p=dropout_p, arrange=ODD_LAYOUTS[layout])


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "delta"])
@pytest.mark.parametrize("d_out", [80, 77])
@pytest.mark.parametrize("d_in", [72, 67])
def test_widths_of_whole_units_and_odd_ones_match_float64_under_dropout(
    triton_device: torch.device, d_in: int, d_out: int, linear: bool
) -> None:
    problem = random_problem(
        "instance", device=triton_device, length=30, d_in=d_in, d_out=d_out, linear=linear
    )
    assert_matches_float64(problem, torch.float16, dropout_p=0.3)


@pytest.mark.parametrize("width", [4, 12, 20, 68])
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "delta"])
def test_float32_rows_of_an_odd_number_of_16_byte_units_match_float64(
    triton_device: torch.device, width: int, linear: bool
) -> None:
    problem = random_problem(
        "instance", device=triton_device, d_in=width, d_out=width, rank=4, experts=2, linear=linear
    )
    assert_matches_float64(problem, torch.float32, dropout_p=0.3)


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_further_apart_than_an_int32_counts_are_brought_together(rows: int) -> None:
    far = 2**31
    apart = torch.empty(far + 8, dtype=torch.float16, device="meta").as_strided((rows, 8), (far, 1))
    assert backend._rows(apart).stride() == (8, 1)


def test_nothing_is_copied_between_kernels_that_run_beside_each_other(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``delta`` reads the base before it waits, so the base is no work of the launch before it."""
    done: list[str] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function.overloadpacket.__name__ in ("clone", "copy_"):
                done.append("copy")
            return function(*args, **(kwargs or {}))

    for name in ("shrink", "delta"):
        monkeypatch.setattr(module(name), "launch", lambda *_, n=name: done.append(n))
    x, base = torch.ones(32, 16, device=triton_device), torch.ones(24, 32, device=triton_device).T
    factors = (torch.ones(8, 16, device=triton_device), torch.ones(24, 8, device=triton_device))
    gate = torch.ones(1, 2, device=triton_device)
    with Copies():
        backend.forward(x, None, None, base, *factors, gate, None, 32, 1.0, 0.0, None)
    assert done == ["copy", "shrink", "delta"]


def test_a_misaligned_gradient_is_read_rightly(
    triton_device: torch.device, fused: list[bool]
) -> None:
    problem = random_problem("instance", device=triton_device, **ALIGNED)

    def misaligned(p: Problem, y: Tensor) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        # Multiples of 1/8 are the same in every dtype.
        direction = (torch.randn(y.shape, generator=generator) * 8).round() / 8
        wanted = [getattr(p, name) for name in TRAINABLE]
        return list(torch.autograd.grad(y, wanted, off_by_one(direction.to(y))))

    assert_matches_float64(problem, torch.float16, directed=misaligned)
    assert fused == [False]  # dY cannot be described: the library's product and delta instead


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "delta"])
@pytest.mark.parametrize(("rank", "experts"), [(136, 17), (200, 5)])
def test_ranks_above_one_block_match_float64(
    triton_device: torch.device, rank: int, experts: int, linear: bool
) -> None:
    problem = random_problem(
        "instance", device=triton_device, rank=rank, experts=experts, length=30, linear=linear
    )
    assert_matches_float64(problem, torch.float32, dropout_p=0.3)


@pytest.mark.parametrize(
    ("changed", "rank", "masked", "holds"),
    [
        pytest.param({}, 192, True, True, id="as many blocks as slots"),
        pytest.param({}, 208, True, False, id="more blocks than slots"),
        pytest.param({}, 208, False, True, id="more blocks than slots, one after another"),
        pytest.param({"num_stages": 5}, 16, False, False, id="more than the GPU has room for"),
        pytest.param({"num_stages": 5, "block_n": 128}, 16, False, True, id="smaller tiles"),
    ],
)
def test_what_hoppers_ring_does_not_hold_is_left_to_the_other_kernel(
    changed: dict[str, int], rank: int, masked: bool, holds: bool
) -> None:
    config = replace(configs.LinearConfig(128, 256, 64, 2, 16, True, 8, 3), **changed)  # type: ignore[arg-type]
    how = module("linear_hopper").hopper_settings(
        config, rank, 132, 0, backward=masked, masked=masked, has_bias=False
    )
    assert (how is not None) == holds


@pytest.mark.parametrize("rank", [136, 208])
def test_the_fused_product_takes_ranks_above_one_block(
    triton_device: torch.device, fused: list[bool], rank: int
) -> None:
    """Three blocks of 64, and more than Hopper's ring holds."""
    problem = random_problem("instance", device=triton_device, rank=rank, experts=8, **ALIGNED)
    assert_matches_float64(problem, torch.float16, dropout_p=0.3)
    assert fused == [False, True]


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the gradients see enough multiprocessors to split their sums; list the splits."""
    gradients_module = module("gradients")
    monkeypatch.setattr(gradients_module, "multiprocessors", lambda _: 64)
    return noted(monkeypatch, gradients_module, "_splits")


@pytest.mark.parametrize(
    ("gate_form", "d_in", "d_out", "dropout_p"),
    [
        ("instance", 16, 24, 0.3),
        ("instance", 19, 13, 0.0),
        ("packed", 16, 24, 0.0),
        ("token_2d", 19, 13, 0.0),
    ],
)
def test_sums_over_many_rows_are_split_where_columns_are_few(
    triton_device: torch.device,
    split: list[int],
    gate_form: str,
    d_in: int,
    d_out: int,
    dropout_p: float,
) -> None:
    instances, length = (47, 46) if gate_form == "packed" else (4, 270)  # packed: 0, 1, … 46 tokens
    problem = random_problem(
        gate_form, device=triton_device, instances=instances, length=length, d_in=d_in, d_out=d_out
    )
    assert problem.x.numel() // d_in >= 1024
    assert_matches_float64(problem, torch.float16, dropout_p=dropout_p)
    assert split[0] > 1


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("width", [16, 4096])
def test_partial_sums_are_not_written_beside_the_kernel_that_fills_their_memory(
    monkeypatch: pytest.MonkeyPatch, width: int, fill: bool
) -> None:
    gradients_module = module("gradients")
    overlaps: list[bool] = []
    monkeypatch.setattr(gradients_module, "can_overlap", lambda _: True)
    monkeypatch.setattr(gradients_module, "multiprocessors", lambda _: 64)
    monkeypatch.setattr(gradients_module, "current_device", lambda: 0)
    monkeypatch.setattr(gradients_module, "launch", lambda how, *_: overlaps.append(how.overlap))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", fill)
    x, thin = torch.empty(1024, width), torch.empty(1024, 16)
    gating = module("adapter").gating_of(torch.empty(8, 4), None, 128, 1.0)
    sums = (torch.empty(16, width), torch.empty(width, 16), torch.empty(8, 4))
    gradients_module.gradients(x, thin, x, thin, thin, *sums, gating, None, beside_product=True)
    assert overlaps == [not fill or width == 4096]  # where columns are many, nothing is split


def test_splits_never_leave_a_multiprocessor_two_programs_nor_a_program_few_rows() -> None:
    for column_blocks in (1, 2, 16, 40, 66, 1000):
        for rows in (1, 511, 1024, 16384):
            splits = module("gradients")._splits(column_blocks, rows, 132)
            assert splits >= 1
            assert splits == 1 or (splits * column_blocks <= 132 and rows // splits >= 512)
    assert module("gradients")._splits(0, 16384, 132) == 1


# ---- Backends agree


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "delta"])
@pytest.mark.parametrize("gate_form", GATE_FORMS)
def test_torch_and_triton_agree(
    triton_device: torch.device, gate_form: str, linear: bool, dropout_p: float
) -> None:
    problem = random_problem(gate_form, device=triton_device, linear=linear).to(torch.float32)
    results = []
    for name in ("torch", "triton"):
        leaves = problem.leaves()
        torch.manual_seed(3)
        with use_backend(name):
            y = leaves.run(dropout_p=dropout_p)
            results.append([y, *gradients(leaves, y)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    if dropout_p and not linear:  # where x is dropped its gradient is zero, and nowhere else
        assert torch.equal(results[0][1] == 0, results[1][1] == 0)
        assert (results[0][1] == 0).any()


# ---- Determinism


DETERMINISTIC: dict[str, dict[str, Any]] = {
    "pointers": {"gate_form": "packed", "instances": 20, "length": 9},
    "several rank blocks": {"gate_form": "token", "rank": 136, "experts": 17},
    "split sums": {"gate_form": "shared", "instances": 2, "length": 513, "d_in": 16, "d_out": 16},
}


def assert_the_same_bits_twice(problem: Problem) -> None:
    """Of y and the gradients, with dropout."""
    runs = []
    for _ in range(2):
        leaves = problem.to(torch.float16).leaves()
        torch.manual_seed(1)
        y = leaves.run(dropout_p=0.2)
        runs.append([y, *gradients(leaves, y)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("case", DETERMINISTIC)
def test_forward_and_backward_give_the_same_bits_twice(
    triton_device: torch.device, split: list[int], case: str
) -> None:
    assert_the_same_bits_twice(random_problem(device=triton_device, **DETERMINISTIC[case]))
    assert (max(split) > 1) == (case == "split sums")


def test_the_fused_product_gives_the_same_bits_twice(
    triton_device: torch.device, fused: list[bool]
) -> None:
    assert_the_same_bits_twice(random_problem("instance", device=triton_device, **ALIGNED))
    assert fused == [False, True] * 2


# ---- Memory and seeds


def test_memory_of_one_output_is_all_that_an_unfused_layer_allocates(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's product is the output: nothing else of ``[T, d_out]`` or ``[T, d_in]`` lives."""
    monkeypatch.setattr(module("linear"), "fusing_pays", lambda *_: False)
    problem = random_problem("instance", device=triton_device, length=64, d_in=512, d_out=1024)
    leaves = problem.to(torch.float32).leaves()
    arguments = (leaves.x.detach().flatten(0, 1), leaves.weight, leaves.bias)
    low_rank = (leaves.lora_A, leaves.lora_B, leaves.gate, None, 64, 1.0)
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    allocating = ("new_empty", "empty", "empty_like", "mm", "addmm", "linear", "new_zeros")

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal most
            result = function(*args, **(kwargs or {}))
            if function.overloadpacket.__name__ in allocating and result.numel() >= 192 * 512:
                alive.append(weakref.ref(result))
                most = max(most, sum(kept() is not None for kept in alive))
            return result

    with torch.no_grad(), Watch():
        y, xa = backend.forward(*arguments, None, *low_rank, 0.0, None)
    assert most == 1
    alive.clear()
    most = 0
    dy, (x, weight, _) = torch.ones_like(y), arguments
    backward = (dy, x, weight, *low_rank[:4], xa, *low_rank[4:], 0.0, None, [True] * 4)
    with torch.no_grad(), Watch():
        backend.backward(*backward)
    assert most == 1


def test_the_seed_of_the_call_makes_the_mask(triton_device: torch.device) -> None:
    """Rank one, ones everywhere: y counts the elements that stay, exactly."""
    x = torch.ones(70, 96, device=triton_device)
    ones = torch.ones(1, 96, device=triton_device)
    torch.manual_seed(5)
    y = gated_lora(x, ones, ones[:, :1], ones[0, :1], dropout_p=0.5)
    torch.manual_seed(5)
    keep = keep_mask(draw_seed(triton_device), 70, 96, 0.5)
    assert torch.equal(y[:, 0], 2.0 * keep.sum(1))
