"""From a case and its tensors to the call that is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import baselines
from benchmarks.cases import (
    COMPILED,
    DECODE,
    DELTA,
    DELTA_ALONE,
    EAGER,
    FORWARD,
    IN_GRAPH,
    LINEAR,
    ONE_THREAD,
    ONTO,
    PEFT,
    REFERENCE,
    TRAINING,
    Case,
)
from benchmarks.contest import Contest
from benchmarks.problems import Problem, Problems
from benchmarks.timing import MIB, Call
from ilora_kernels.functional import gated_lora, gated_lora_linear, gated_lora_onto
from ilora_kernels.graphs import capture

COPIED_MIB = {"cuda": 512, "cpu": 8}  # so large that a copy runs at its full bandwidth

Function = Callable[[], Tensor]

_PEERS: dict[str, Callable[..., Tensor]] = {
    REFERENCE: baselines.reference_einsum,
    EAGER: baselines.three_gemm,
    COMPILED: baselines.three_gemm,
    DELTA: baselines.linear_and_delta,
}


def linear_contest(cases: Sequence[Case], device: torch.device) -> Contest:
    """The contest of cases of linear layers that have one baseline, and with it all their tensors.

    Where an update onto a base is among them a copy takes part, to know the bandwidth of the hour.
    """
    problems = Problems(cases[0], device)
    if any(case.launch == "torch.compile" or case.backend == COMPILED for case in cases):
        torch.compiler.reset()  # else the shapes of earlier contests count towards a limit
    copied_bytes = COPIED_MIB[device.type] * MIB if any(case.op == ONTO for case in cases) else 0
    return Contest(
        frozen=frozen_call(problems, cases[0].mode),
        makers={case: partial(step, case, problems.of(case)) for case in cases},
        copy=copy_call(copied_bytes, device) if copied_bytes else None,
        moved_bytes=2 * copied_bytes,
    )


def frozen_call(problems: Problems, mode: str) -> Call:
    """``F.linear`` with the frozen weight; in training also the input's gradient."""
    function = partial(F.linear, problems.x, problems.weight)
    return in_mode(mode, function, [problems.x], problems.grad_y)


def copy_call(num_bytes: int, device: torch.device) -> Call:
    """A copy on the device; it moves twice as many bytes: it reads and it writes."""
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    return partial(torch.empty_like(source).copy_, source)


def step(case: Case, problem: Problem) -> Call:
    """The call of a case, launched as the case says."""
    function = function_of(case, problem)
    leaves = [problem.x, problem.lora_A, problem.lora_B]
    leaves += [] if case.backend == PEFT else [problem.gate]
    if case.launch == "torch.compile" or case.backend == COMPILED:
        # fullgraph: an error, not a silent fall back to eager, where something cannot be compiled.
        function = torch.compile(function, fullgraph=True, dynamic=False)
    call = in_mode(case.mode, function, leaves, problem.grad_y)
    if case.launch == ONE_THREAD:
        return in_one_thread(call)
    return replayed(call) if case.launch == IN_GRAPH else call


def in_one_thread(call: Call) -> Call:
    """PyTorch gives the backward pass on a GPU a thread of its own; here the caller's computes it."""

    def one_thread() -> object:
        with torch.autograd.set_multithreading_enabled(False):
            return call()

    return one_thread


def in_mode(mode: str, function: Function, leaves: Sequence[Tensor], grad_y: Tensor) -> Call:
    """The function alone without recording, or with the gradients of all leaves."""

    def forward() -> Tensor:
        with torch.no_grad():
            return function()

    def training() -> tuple[Tensor, tuple[Tensor, ...]]:
        y = function()
        return y, torch.autograd.grad(y, leaves, grad_y)

    calls: dict[str, Call] = {FORWARD: forward, TRAINING: training}
    return calls[mode]


def replayed(call: Call) -> Call:
    """Capture the call in a CUDA graph; its outputs live as long as the graph."""
    graph, outputs = capture(call, warm_ups=3)

    def replay() -> object:
        graph.replay()
        return outputs

    return replay


def function_of(case: Case, problem: Problem) -> Function:
    """What computes y, in whichever way the case's backend does."""
    x, weight, gate = problem.x, problem.weight, problem.gate
    A, B = problem.lora_A, problem.lora_B
    peer: dict[str, Any] = {"scaling": problem.scaling, "dropout_p": case.dropout}
    if case.backend == PEFT:
        return partial(baselines.peft_layer(weight, A, B, **peer), x)
    if case.backend in _PEERS:
        function = _PEERS[case.backend]
        return lambda: function(x, weight, A, B, gate, **peer)

    packed: dict[str, Any] = {"cu_seqlens": problem.cu_seqlens}
    forms: dict[str, Function] = {
        LINEAR: lambda: gated_lora_linear(x, weight, None, A, B, gate, **peer, **packed),
        DELTA_ALONE: lambda: gated_lora(x, A, B, gate, **peer, **packed),
        ONTO: lambda: gated_lora_onto(problem.base, x, A, B, gate, **peer, **packed),
    }
    return forms[LINEAR if case.op == DECODE else case.op]
