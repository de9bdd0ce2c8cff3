"""Whoever is compared computes the same: each peer against the loop over experts in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import (
    COMPILED,
    DELTA,
    DELTA_ALONE,
    EAGER,
    FORWARD,
    LINEAR,
    ONTO,
    PEFT,
    REFERENCE,
    TRAINING,
    Case,
)
from benchmarks.problems import Problem, Problems
from benchmarks.steps import function_of, in_one_thread, step
from ilora_kernels import reference

CPU = torch.device("cpu")
CASE = Case(LINEAR, TRAINING, 24, 20, 24, "torch", rank=8, instances=4, experts=2, dtype="float64")


def oracle(case: Case, problem: Problem) -> Tensor:
    if case.backend == PEFT:  # one expert of the whole rank, with weight one
        problem = replace(problem, gate=torch.ones(1, dtype=torch.float64))
    arguments = (problem.lora_A, problem.lora_B, problem.gate)
    options = {"scaling": problem.scaling, "cu_seqlens": problem.cu_seqlens}
    if case.op == LINEAR:
        return reference.gated_lora_linear(problem.x, problem.weight, None, *arguments, **options)
    update = reference.gated_lora(problem.x, *arguments, **options)
    return problem.base + update if case.op == ONTO else update


@pytest.mark.parametrize("gate", ["batched", "packed", "token"])
@pytest.mark.parametrize("op", [LINEAR, ONTO, DELTA_ALONE])
def test_the_fused_layer_equals_the_loop_in_every_form_that_is_timed(op: str, gate: str) -> None:
    assert_equal_to_the_oracle(replace(CASE, op=op, gate=gate))


@pytest.mark.parametrize("backend", [REFERENCE, EAGER, DELTA, PEFT])
def test_a_peer_equals_the_loop_with_all_its_gradients(backend: str) -> None:
    assert_equal_to_the_oracle(replace(CASE, backend=backend))


def test_the_compiled_peer_is_the_eager_one_and_can_be_compiled_whole() -> None:
    problem = Problems(CASE, CPU).of(CASE)
    eager, to_compile = (function_of(replace(CASE, backend=b), problem) for b in (EAGER, COMPILED))
    compiled = torch.compile(to_compile, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(), eager(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", REFERENCE, EAGER, DELTA, PEFT])
def test_dropout_acts_on_the_low_rank_path_alone(backend: str) -> None:
    case = replace(CASE, backend=backend, mode=FORWARD, dropout=0.5)
    problem = Problems(case, CPU).of(case)
    first, second = (step(case, problem)() for _ in range(2))
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert not torch.equal(first, second)
    without = step(case, replace(problem, lora_B=torch.zeros_like(problem.lora_B)))()
    torch.testing.assert_close(without, F.linear(problem.x, problem.weight))


def test_forward_alone_records_nothing() -> None:
    y = step(replace(CASE, mode=FORWARD), Problems(CASE, CPU).of(CASE))()
    assert isinstance(y, Tensor)
    assert not y.requires_grad


def assert_equal_to_the_oracle(case: Case) -> None:
    problem = Problems(case, CPU).of(case)
    leaves = [problem.x, problem.lora_A, problem.lora_B]
    leaves += [] if case.backend == PEFT else [problem.gate]
    expected = oracle(case, problem)
    wanted = torch.autograd.grad(expected, leaves, problem.grad_y)
    actual, gradients = step(case, problem)()  # type: ignore[misc]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert len(gradients) == len(wanted)
    for gradient, expected_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-11)


def test_one_thread_is_asked_for_and_given_back() -> None:
    def call() -> bool:
        return torch._C._is_multithreading_enabled()

    assert call()
    assert not in_one_thread(call)()
    assert call()
