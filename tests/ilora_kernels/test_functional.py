"""What the public functions compute, against the float64 formula."""

from __future__ import annotations

import pytest
import torch

from ilora_kernels import gated_lora, gated_lora_linear
from ilora_kernels.functional import gated_lora_onto

from .problems import (
    GATE_FORMS,
    Problem,
    assert_matches_float64,
    gradients,
    random_problem,
)

SIZES = {
    "odd": {},
    "one token": {"instances": 1, "length": 1},
    "one feature": {"d_in": 1, "d_out": 1},
    "one expert": {"experts": 1},
    "rank is the number of experts": {"experts": 6},
    "larger": {"instances": 4, "length": 33, "d_in": 130, "d_out": 257, "rank": 24, "experts": 4},
    # Rows of whole 16-byte units, but not of whole units of eight elements, in float32.
    "widths of four modulo eight": {"d_in": 20, "d_out": 12},
    "rank of four": {"d_in": 24, "d_out": 16, "rank": 4, "experts": 2},
    "widths of eight": {"d_in": 24, "d_out": 16, "rank": 8, "experts": 2},
    "no token": {"length": 0},
    "no instance": {"instances": 0},
    "no feature": {"d_in": 0},
    "no output": {"d_out": 0},
}


@pytest.mark.parametrize("gate_form", GATE_FORMS)
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "delta"])
def test_output_and_gradients_match_float64(
    device: torch.device, gate_form: str, dtype: torch.dtype, linear: bool
) -> None:
    assert_matches_float64(random_problem(gate_form, device=device, linear=linear), dtype)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("gate_form", GATE_FORMS)
def test_every_size_works(device: torch.device, gate_form: str, size: dict[str, int]) -> None:
    assert_matches_float64(random_problem(gate_form, device=device, **size), torch.float32)


def test_a_layer_without_bias_works(device: torch.device) -> None:
    assert_matches_float64(random_problem("instance", device=device, bias=False), torch.float32)


def test_non_contiguous_inputs_give_the_same_as_contiguous_ones(device: torch.device) -> None:
    problem = random_problem("instance", device=device).to(torch.float32)
    strided = Problem(
        x=problem.x.transpose(0, 1).contiguous().transpose(0, 1),
        weight=problem.weight.T.contiguous().T,
        bias=problem.bias.repeat_interleave(2)[::2],
        lora_A=problem.lora_A.T.contiguous().T,
        lora_B=problem.lora_B.T.contiguous().T,
        gate=problem.gate.T.contiguous().T,
    ).leaves()
    contiguous = problem.leaves()
    assert not strided.x.is_contiguous()
    ys = strided.run(), contiguous.run()
    torch.testing.assert_close(*ys)
    for a, b in zip(gradients(strided, ys[0]), gradients(contiguous, ys[1]), strict=True):
        torch.testing.assert_close(a, b)


def test_an_expanded_x_works(device: torch.device) -> None:
    problem = random_problem("instance", device=device).to(torch.float32)
    repeated = problem.x[:1].expand(3, -1, -1)
    y = gated_lora(repeated, problem.lora_A, problem.lora_B, problem.gate)
    torch.testing.assert_close(
        y, gated_lora(repeated.contiguous(), problem.lora_A, problem.lora_B, problem.gate)
    )


def test_the_same_inputs_give_the_same_bits(device: torch.device) -> None:
    for gate_form in GATE_FORMS:
        runs = []
        for _ in range(2):
            problem = random_problem(gate_form, device=device).to(torch.float32)
            problem = problem if not runs else runs[0][0]
            leaves = problem.leaves()
            y = leaves.run()
            runs.append((problem, [y, *gradients(leaves, y)]))
        for first, second in zip(runs[0][1], runs[1][1], strict=True):
            assert torch.equal(first, second)


def test_uniform_gates_are_plain_lora(device: torch.device) -> None:
    problem = random_problem("shared", device=device).to(torch.float32)
    uniform = torch.ones(3, device=device)
    y = gated_lora(problem.x, problem.lora_A, problem.lora_B, uniform, scaling=2.0)
    torch.testing.assert_close(y, 2.0 * problem.x @ problem.lora_A.T @ problem.lora_B.T)


def test_the_update_onto_a_given_output_adds_and_passes_its_gradient(device: torch.device) -> None:
    problem = random_problem("instance", device=device, linear=False).to(torch.float32).leaves()
    base = torch.randn(3, 5, 13, device=device, requires_grad=True)
    low_rank = (problem.lora_A, problem.lora_B, problem.gate)
    y = gated_lora_onto(base, problem.x, *low_rank, scaling=problem.scaling)
    torch.testing.assert_close(y, base + problem.run_reference())
    (grad_base,) = torch.autograd.grad(y.square().sum(), base)
    torch.testing.assert_close(grad_base, 2 * y.detach())


def test_an_output_is_never_an_input_in_disguise(device: torch.device) -> None:
    problem = random_problem("instance", device=device, linear=False).to(torch.float32)
    base = torch.randn(3, 5, 13, device=device)
    before = base.clone()
    gated_lora_onto(base, problem.x, problem.lora_A, problem.lora_B, problem.gate).add_(1.0)
    assert torch.equal(base, before)


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_parameters(
    device: torch.device,
) -> None:
    problem = random_problem("instance", device=device).to(torch.float32).leaves()
    with torch.autocast(device.type, torch.bfloat16):
        y = problem.run()
    assert y.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in gradients(problem, y))
    low = problem.to(torch.bfloat16)
    assert torch.equal(y, Problem(**vars(low) | {"gate": problem.gate}).run())


def test_gates_enter_in_float32_also_for_half_precision_inputs(device: torch.device) -> None:
    problem = random_problem("instance", device=device).to(torch.float32).leaves()
    half = problem.to(torch.bfloat16)
    y = Problem(**vars(half) | {"gate": problem.gate}).run()
    (grad,) = torch.autograd.grad(y.sum(), problem.gate)
    assert grad.dtype == torch.float32


def test_gradients_come_only_where_they_are_asked_for(device: torch.device) -> None:
    problem = random_problem("instance", device=device).to(torch.float32)
    gate = problem.gate.clone().requires_grad_()
    y = gated_lora_linear(
        problem.x, problem.weight, problem.bias, problem.lora_A, problem.lora_B, gate
    )
    y.sum().backward()
    assert gate.grad is not None
    assert problem.x.grad is None
