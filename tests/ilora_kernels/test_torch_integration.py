"""The operators as torch's own tools see them: gradcheck, opcheck, torch.func, torch.compile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.library import opcheck

from ilora_kernels import gated_lora, gated_lora_linear
from ilora_kernels.backends import requested
from ilora_kernels.dropout import draw_seed
from ilora_kernels.graphs import capture

from .problems import GATE_FORMS, TRAINABLE, Problem, random_problem


def loss_of(problem: Problem) -> Any:
    """A function of the trainable tensors alone, plain enough to be compiled."""
    options = {"scaling": problem.scaling, "cu_seqlens": problem.cu_seqlens}
    weight, bias = problem.weight, problem.bias

    def linear(x: Any, lora_A: Any, lora_B: Any, gate: Any) -> Any:
        return gated_lora_linear(x, weight, bias, lora_A, lora_B, gate, **options).square().sum()

    def delta(x: Any, lora_A: Any, lora_B: Any, gate: Any) -> Any:
        return gated_lora(x, lora_A, lora_B, gate, **options).square().sum()

    return delta if weight is None else linear


def trainable(problem: Problem) -> tuple[torch.Tensor, ...]:
    return tuple(getattr(problem, name) for name in TRAINABLE)


@pytest.mark.parametrize("gate_form", GATE_FORMS)
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "delta"])
def test_gradcheck_passes(gate_form: str, linear: bool) -> None:
    problem = random_problem(gate_form, linear=linear, d_in=4, d_out=3).leaves()
    assert torch.autograd.gradcheck(loss_of(problem), trainable(problem))


@pytest.mark.parametrize("gate_form", GATE_FORMS)
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "delta"])
def test_gradients_are_the_central_differences_in_float32(
    device: torch.device, gate_form: str, linear: bool
) -> None:
    """A weighted sum of y is affine in each argument: there a difference is exact for any step."""
    problem = random_problem(gate_form, device=device, linear=linear).to(torch.float32).leaves()
    y = problem.run()
    weights = torch.randn_like(y).double()
    grads = torch.autograd.grad(y, trainable(problem), weights.float())

    def value(argument: str, step: torch.Tensor) -> torch.Tensor:
        moved = replace(problem, **{argument: getattr(problem, argument).detach() + step})
        return (moved.run().detach().double() * weights.float().double()).sum()

    for argument, grad in zip(TRAINABLE, grads, strict=True):
        step = torch.randn_like(grad)
        difference = (value(argument, step) - value(argument, -step)) / 2
        terms = (grad.double() * step.double()).norm() + (y.detach().double() * weights).norm()
        error = ((grad.double() * step.double()).sum() - difference).abs()
        assert error <= 32 * torch.finfo(torch.float32).eps * terms


@pytest.mark.parametrize("gate_form", GATE_FORMS)
@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_opcheck_passes(device: torch.device, gate_form: str, dropout_p: float) -> None:
    p = random_problem(gate_form, device=device).to(torch.float32)
    rows = p.x.flatten(0, -2)
    gate = p.gate[None] if p.gate.ndim == 1 else p.gate.flatten(0, -2)
    rows_per_gate = 0 if p.cu_seqlens is not None else rows.shape[0] // gate.shape[0]
    seed = draw_seed(device) if dropout_p else None
    low_rank = (p.lora_A, p.lora_B, gate, p.cu_seqlens)
    scalars = (rows_per_gate, 1.7, dropout_p, seed)
    forward = (rows, p.weight, p.bias, None, *low_rank, *scalars, requested())
    opcheck(torch.ops.ilora.gated_lora, forward)
    y, xa = torch.ops.ilora.gated_lora(*forward)
    for needs in ([True] * 4, [True, False, False, True], [False, True, True, False]):
        backward = (
            torch.randn_like(y),
            rows,
            p.weight,
            *low_rank,
            xa,
            *scalars,
            needs,
            requested(),
        )
        opcheck(torch.ops.ilora.gated_lora_backward, backward)


@pytest.mark.parametrize("asked", range(4))
def test_a_gradient_that_nobody_asks_for_is_as_empty_as_the_compiler_takes_it_to_be(
    device: torch.device, asked: int
) -> None:
    p = random_problem("instance", device=device).to(torch.float16)
    rows, gate = p.x.flatten(0, -2), p.gate.float()
    xa = torch.zeros(len(rows), len(p.lora_A), device=device)
    needs = [i == asked for i in range(4)]
    arguments = (
        rows.new_ones(len(rows), len(p.lora_B)), rows, p.weight, p.lora_A, p.lora_B, gate, None, xa,
        p.x.shape[1], 1.0, 0.0, None, needs, requested(),
    )  # fmt: skip
    opcheck(torch.ops.ilora.gated_lora_backward, arguments)


def test_func_grad_matches_autograd(device: torch.device) -> None:
    problem = random_problem("instance", device=device).to(torch.float32).leaves()
    y = problem.run()
    expected = torch.autograd.grad(y.square().sum(), trainable(problem))
    detached = tuple(t.detach() for t in trainable(problem))
    actual = torch.func.grad(loss_of(problem), argnums=(0, 1, 2, 3))(*detached)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_vmap_matches_a_loop(device: torch.device) -> None:
    p = random_problem("instance", device=device).to(torch.float32)

    def one(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return gated_lora_linear(x, p.weight, p.bias, p.lora_A, p.lora_B, gate)

    batched = torch.func.vmap(one)(p.x, p.gate)
    torch.testing.assert_close(
        batched, torch.stack([one(*s) for s in zip(p.x, p.gate, strict=True)])
    )


def test_per_sample_gradients_through_vmap_of_grad(device: torch.device) -> None:
    p = random_problem("instance", device=device).to(torch.float32)

    def loss(lora_A: torch.Tensor, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return gated_lora(x, lora_A, p.lora_B, gate).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(p.lora_A, p.x, p.gate)
    expected = [torch.func.grad(loss)(p.lora_A, *s) for s in zip(p.x, p.gate, strict=True)]
    torch.testing.assert_close(per_sample, torch.stack(expected))


def test_jacrev_matches_autograd(device: torch.device) -> None:
    p = random_problem("shared", device=device).to(torch.float32)

    def output(gate: torch.Tensor) -> torch.Tensor:
        return gated_lora(p.x[:, 0], p.lora_A, p.lora_B, gate)

    expected = torch.autograd.functional.jacobian(output, p.gate)
    torch.testing.assert_close(torch.func.jacrev(output)(p.gate), expected)


def test_forward_mode_is_refused_loudly(device: torch.device) -> None:
    p = random_problem("shared", device=device).to(torch.float32)

    def output(x: torch.Tensor) -> torch.Tensor:
        return gated_lora(x, p.lora_A, p.lora_B, p.gate)

    # Not recording gradients does not switch forward mode off.
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded), pytest.raises(NotImplementedError, match="jvp"):
            torch.func.jvp(output, (p.x,), (p.x,))


def test_a_second_derivative_is_refused_with_a_sentence(device: torch.device) -> None:
    p = random_problem("instance", device=device).to(torch.float32).leaves()
    (grad,) = torch.autograd.grad(p.run().square().sum(), p.x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("gate_form", GATE_FORMS)
def test_compile_has_no_graph_break_and_the_same_result(
    device: torch.device, gate_form: str
) -> None:
    torch._dynamo.reset()
    problem = random_problem(gate_form, device=device).to(torch.float32).leaves()
    compiled = torch.compile(loss_of(problem), fullgraph=True, backend="aot_eager")
    arguments = trainable(problem)
    for function in (compiled, loss_of(problem)):
        value = function(*arguments)
        grads = torch.autograd.grad(value, arguments)
        if function is compiled:
            expected = [value, *grads]
    for a, e in zip([value, *grads], expected, strict=True):
        torch.testing.assert_close(a, e)


def test_one_compiled_graph_serves_every_batch_size(device: torch.device) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(gated_lora_linear, fullgraph=True, dynamic=True, backend="aot_eager")
    for instances in (2, 3, 5):
        p = random_problem("instance", device=device, instances=instances).to(torch.float32)
        y = compiled(p.x, p.weight, p.bias, p.lora_A, p.lora_B, p.gate, scaling=p.scaling)
        torch.testing.assert_close(y, p.run_reference())


def test_dropout_under_compile_uses_one_mask_forward_and_backward(device: torch.device) -> None:
    torch._dynamo.reset()
    p = random_problem("shared", device=device, linear=False, rank=3).to(torch.float32)
    ones = torch.ones(4, 50, device=device, requires_grad=True)
    lora_A = torch.ones(3, 50, device=device)
    compiled = torch.compile(gated_lora, fullgraph=True, backend="aot_eager")
    y = compiled(ones, lora_A, p.lora_B, p.gate, dropout_p=0.5)
    (grad,) = torch.autograd.grad(y.sum(), ones)
    per_element = (p.gate.repeat_interleave(1) @ p.lora_B.T).sum()
    # y counts the kept elements of each row, and exactly those have a gradient.
    torch.testing.assert_close(y.sum(1) / per_element, (grad != 0).sum(1).float() * 2.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_a_cuda_graph_replays_with_new_gates() -> None:
    p = random_problem("instance", device="cuda").to(torch.float32)
    static_gate = p.gate.clone()
    graph, y = capture(
        lambda: gated_lora_linear(p.x, p.weight, p.bias, p.lora_A, p.lora_B, static_gate)
    )
    for _ in range(2):
        new_gate = torch.rand_like(static_gate)
        static_gate.copy_(new_gate)
        graph.replay()
        expected = gated_lora_linear(p.x, p.weight, p.bias, p.lora_A, p.lora_B, new_gate)
        torch.testing.assert_close(y, expected)
