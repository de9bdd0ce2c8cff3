"""The formula with every low-rank product in TF32: what float32 on tensor cores is measured against."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ilora_kernels import reference
from ilora_kernels.dropout import threshold_and_scale

from .problems import Problem, assert_matches_float64


@contextmanager
def tf32_allowed(allowed: bool = True) -> Iterator[None]:
    """Torch's setting for products of float32 matrices, inside the block."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def to_tf32(numbers: Tensor) -> Tensor:
    """Round to 10 bits of fraction, halves away from zero."""
    bits = numbers.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class _Product(torch.autograd.Function):
    """``a b`` of matrices rounded to TF32, and so the two products of its backward pass."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return to_tf32(a) @ to_tf32(b)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return to_tf32(grad) @ to_tf32(b).T, to_tf32(a).T @ to_tf32(grad)


def formula_in_tf32(problem: Problem, dropped: Tensor | None, dropout_p: float) -> Tensor:
    """``x Wᵀ + bias + ((x̂ Aᵀ) ⊙ G) Bᵀ`` of a float32 problem; ``dropped`` is x̂.

    The inputs of each low-rank product are rounded, forward and backward, h and u included, and nothing
    else: what TF32 costs in the products that the kernels compute. The product of W is the library's, as
    it is beside the kernels, under the setting that holds: rounded here, where the library (on a CPU)
    does not round, it would allow y and dX an error that the kernels have no cause for. Dropout's factor
    comes after the rounding, as in the kernels: the same numbers are rounded then, and the few elements
    of a gate's gradient err alike, not as luck has it.
    """
    factor = 1.0 if dropped is None else threshold_and_scale(dropout_p)[1]
    x = problem.x if dropped is None else dropped / factor
    gate = reference._gate_of_every_token(x, problem.gate, problem.cu_seqlens)
    rank_of_expert = problem.lora_A.shape[0] // gate.shape[-1]
    xa = factor * _Product.apply(x.flatten(0, -2), problem.lora_A.T)
    weight = problem.scaling * gate.flatten(0, -2).repeat_interleave(rank_of_expert, -1)
    y = _Product.apply(xa * weight, problem.lora_B.T).unflatten(0, x.shape[:-1])
    if problem.weight is not None:
        y = y + problem.x @ problem.weight.T
    return y if problem.bias is None else y + problem.bias


def assert_errs_as_tf32_does(
    problem: Problem, dropout_p: float, arrange: Callable[[Tensor], Tensor] | None = None
) -> None:
    """The rule for errors where TF32 is allowed, with the error of :func:`formula_in_tf32`.

    Nothing else is conceded: the floor stays that of float32. Cutting off instead of rounding breaks it.
    """
    formula = functools.partial(formula_in_tf32, dropout_p=dropout_p)
    with tf32_allowed():
        assert_matches_float64(
            problem, torch.float32, dropout_p=dropout_p, formula=formula, arrange=arrange
        )
