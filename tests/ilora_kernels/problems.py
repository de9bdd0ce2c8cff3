"""Random problems of every gate form, the float64 oracle, and the rule for errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ilora_kernels import gated_lora, gated_lora_linear, reference
from ilora_kernels.dropout import draw_seed, keep_mask, threshold_and_scale

GATE_FORMS = ("shared", "instance", "token", "packed", "token_2d")
TRAINABLE = ("x", "lora_A", "lora_B", "gate")


@dataclass(frozen=True)
class Problem:
    """The arguments of ``gated_lora_linear``; without ``weight`` those of ``gated_lora``."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    lora_A: Tensor
    lora_B: Tensor
    gate: Tensor
    cu_seqlens: Tensor | None = None
    scaling: float = 1.7

    def to(self, dtype: torch.dtype) -> Problem:
        moved = {
            name: value.to(dtype)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        return replace(self, **moved)

    def leaves(self) -> Problem:
        """The same problem with fresh trainable leaves."""
        fresh = {n: getattr(self, n).detach().clone().requires_grad_() for n in TRAINABLE}
        return replace(self, **fresh)

    def run(self, function: Any = None, **options: Any) -> Tensor:
        """Call the public function, or the one of ``reference``."""
        low_rank = (self.lora_A, self.lora_B, self.gate)
        options = {"scaling": self.scaling, "cu_seqlens": self.cu_seqlens, **options}
        if self.weight is None:
            return (function or gated_lora)(self.x, *low_rank, **options)
        linear = function or gated_lora_linear
        return linear(self.x, self.weight, self.bias, *low_rank, **options)

    def run_reference(self, dropped: Tensor | None = None) -> Tensor:
        """The loop over experts; under dropout, ``dropped`` is what reaches the low-rank path."""
        if dropped is not None:
            low_rank = replace(self, x=dropped, weight=None).run(reference.gated_lora)
            if self.weight is None:
                return low_rank
            y = self.x @ self.weight.T + low_rank
            return y if self.bias is None else y + self.bias
        plain = reference.gated_lora if self.weight is None else reference.gated_lora_linear
        return self.run(plain)


def random_problem(
    gate_form: str,
    *,
    device: torch.device | str = "cpu",
    instances: int = 3,
    length: int = 5,
    d_in: int = 19,
    d_out: int = 13,
    experts: int = 3,
    rank: int = 6,
    linear: bool = True,
    bias: bool = True,
) -> Problem:
    """A float64 problem; ``gate_form`` is one of ``GATE_FORMS``."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, device=device)

    lengths = torch.arange(instances) % (length + 1)  # packed: the first sequence is empty
    num_tokens = int(lengths.sum()) if gate_form == "packed" else instances * length
    two_dimensional = gate_form in ("packed", "token_2d")
    gate_shape = {
        "shared": (experts,),
        "instance": (instances, experts),
        "token": (instances, length, experts),
        "packed": (instances, experts),
        "token_2d": (num_tokens, experts),
    }[gate_form]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Problem(
        x=random(num_tokens, d_in) if two_dimensional else random(instances, length, d_in),
        weight=random(d_out, d_in) / d_in**0.5 if linear else None,
        bias=random(d_out) if linear and bias else None,
        lora_A=random(rank, d_in) / d_in**0.5,
        lora_B=random(d_out, rank) / rank**0.5,
        gate=random(*gate_shape).softmax(-1) if instances else random(*gate_shape),
        cu_seqlens=offsets.to(device, torch.int32) if gate_form == "packed" else None,
    )


def gradients(problem: Problem, output: Tensor) -> list[Tensor]:
    """The gradients of a fixed random direction of ``output``."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    wanted = [getattr(problem, name) for name in TRAINABLE]
    return list(torch.autograd.grad(output, wanted, direction.to(output)))


def off_by_one(x: Tensor) -> Tensor:
    """The same values from an address that is one element off."""
    moved = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    assert moved.data_ptr() % 16 != 0
    return moved


def assert_matches_float64(
    problem: Problem,
    dtype: torch.dtype,
    *,
    dropout_p: float = 0.0,
    arrange: Callable[[Tensor], Tensor] | None = None,
    formula: Callable[[Problem, Tensor | None], Tensor] = Problem.run_reference,
    directed: Callable[[Problem, Tensor], list[Tensor]] = gradients,
) -> None:
    """Output and gradients obey the rule for errors.

    Args:
        problem: in any dtype; it is rounded to ``dtype`` before anything is computed.
        arrange: a differentiable change of how x lies in memory, not of its values.
        formula: what, computed in ``dtype``, has the error that the rule allows twice.
        directed: what the gradients are of.
    """
    rounded = problem.to(dtype)
    plain, fused = rounded.leaves(), rounded.leaves()
    # The oracle starts from the rounded inputs: their rounding is nobody's error.
    oracle = rounded.to(torch.float64).leaves()
    arranged = fused if arrange is None else replace(fused, x=arrange(fused.x))
    torch.manual_seed(7)
    y = arranged.run(dropout_p=dropout_p)
    assert y.dtype == dtype
    torch.manual_seed(7)
    true_y = oracle.run_reference(_dropped(oracle.x, dropout_p))
    outputs = [true_y, formula(plain, _dropped(plain.x, dropout_p)), y]
    assert_at_most_twice_the_error(outputs[2], outputs[1], outputs[0])
    grads = [directed(p, y) for p, y in zip((oracle, plain, fused), outputs, strict=True)]
    for true, plain_grad, grad in zip(*grads, strict=True):
        assert_at_most_twice_the_error(grad, plain_grad, true)


def _dropped(x: Tensor, dropout_p: float) -> Tensor | None:
    """``dropout(x)`` with the mask that the next call draws after ``torch.manual_seed(7)``."""
    if dropout_p == 0.0:
        return None
    torch.manual_seed(7)
    rows = x.shape[:-1].numel()
    keep = keep_mask(draw_seed(x.device), rows, x.shape[-1], dropout_p).view(x.shape)
    return x * keep * threshold_and_scale(dropout_p)[1]


def assert_at_most_twice_the_error(actual: Tensor, plain: Tensor, oracle: Tensor) -> None:
    """The error against float64 is at most twice that of the formula in PyTorch, same dtype."""
    assert actual.shape == oracle.shape
    assert actual.isfinite().all()
    if oracle.numel() == 0:
        return
    if actual.dtype == torch.float64:  # the oracle is no better
        torch.testing.assert_close(actual, oracle, rtol=1e-12, atol=1e-12)
        return
    oracle = oracle.detach()
    scale = float(oracle.square().mean().sqrt())
    if scale == 0.0:  # the gradient of no token at all
        assert not actual.any()
        return

    def error(value: Tensor) -> float:
        return float((value.detach().double() - oracle).square().mean().sqrt() / scale)

    # The gate's gradient has a handful of elements, and luck makes either of the two nearly exact
    # (seen: factors of 0.3 to 3 around 3 eps). Two units are what rounding inputs and output costs.
    floor = 2 * torch.finfo(plain.dtype).eps
    assert error(actual) <= 2 * error(plain) + floor
