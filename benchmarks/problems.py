"""The tensors of a case, and the work that it cannot avoid."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import DELTA_ALONE, LINEAR, ONTO, TRAINING, Case

SCALING = 2.0  # alpha = 32, R = 16


@dataclass(frozen=True)
class Problem:
    """The arguments of a case; x, lora_A, lora_B and gate are leaves that require gradients."""

    x: Tensor  # [B, S, d_in]; packed: [T, d_in]
    weight: Tensor  # [d_out, d_in]
    base: Tensor  # [B, S, d_out]; packed: [T, d_out]
    grad_y: Tensor  # as base
    lora_A: Tensor  # [R, d_in]
    lora_B: Tensor  # [d_out, R]
    gate: Tensor  # [B, K] or [B, S, K], float32 as the interface takes it (float64 for float64)
    cu_seqlens: Tensor | None  # [B + 1] if packed
    scaling: float = SCALING


class Problems:
    """The problems of all cases with one baseline: they share x, the weight and the gradient of y.

    Values are random normal, never zeros, on which matrix units draw less power and run faster.
    """

    def __init__(self, baseline: Case, device: torch.device, seed: int = 0) -> None:
        self._case = baseline
        self._device = device
        self._seed = seed
        tokens, d_in, d_out = baseline.tokens, baseline.d_in, baseline.d_out
        self._x = self._normal(1, tokens, d_in)
        self.weight = self._normal(2, d_out, d_in, scale=d_in**-0.5)
        self._grad_y = self._normal(3, tokens, d_out)
        self._gates: dict[tuple[str, int], Tensor] = {}
        self._adapters: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, case: Case) -> Problem:
        """The problem of ``case``, which has this baseline."""
        packed = case.gate == "packed"
        lora_A, lora_B = self._adapter(case.rank)
        return Problem(
            x=self._x_packed if packed else self.x,
            weight=self.weight,
            base=self._base if packed else self._grouped(self._base),
            grad_y=self._grad_y if packed else self.grad_y,
            lora_A=lora_A,
            lora_B=lora_B,
            gate=self._gate(case.gate, case.experts),
            cu_seqlens=self._offsets if packed else None,
        )

    @functools.cached_property
    def x(self) -> Tensor:
        """``[B, S, d_in]``, a leaf; the packed one is another leaf on the same memory."""
        return self._grouped(self._x).requires_grad_()

    @functools.cached_property
    def _x_packed(self) -> Tensor:
        return self._x.detach().requires_grad_()

    @property
    def grad_y(self) -> Tensor:
        """``[B, S, d_out]``, the gradient that the backward pass starts from."""
        return self._grouped(self._grad_y)

    @functools.cached_property
    def _base(self) -> Tensor:
        return self._normal(4, self._case.tokens, self._case.d_out)

    @functools.cached_property
    def _offsets(self) -> Tensor:
        """Mixed lengths: the b-th of B sequences has b / (1 + … + B) of the tokens."""
        count = self._case.instances
        ends = [self._case.tokens * b * (b + 1) // (count * (count + 1)) for b in range(count + 1)]
        return torch.tensor(ends, dtype=torch.int32, device=self._device)

    def _grouped(self, rows: Tensor) -> Tensor:
        return rows.detach().unflatten(0, (self._case.instances, -1))

    def _adapter(self, rank: int) -> tuple[Tensor, Tensor]:
        if rank not in self._adapters:
            d_in, d_out = self._case.d_in, self._case.d_out
            self._adapters[rank] = (
                self._normal(5, rank, d_in, scale=d_in**-0.5).requires_grad_(),
                self._normal(6, d_out, rank, scale=rank**-0.5).requires_grad_(),
            )
        return self._adapters[rank]

    def _gate(self, form: str, experts: int) -> Tensor:
        if (form, experts) not in self._gates:
            instances = self._case.instances
            rows = (instances, self._case.tokens // instances) if form == "token" else (instances,)
            dtype = torch.float64 if self._case.dtype == "float64" else torch.float32
            logits = self._normal(7, *rows, experts)
            self._gates[form, experts] = logits.to(dtype).softmax(-1).requires_grad_()
        return self._gates[form, experts]

    def _normal(self, role: int, *shape: int, scale: float = 1.0) -> Tensor:
        # One stream a role, so that no tensor depends on which others were asked for before.
        generator = torch.Generator(self._device).manual_seed(100 * self._seed + role)
        dtype, device = self._case.torch_dtype, self._device
        return torch.randn(shape, generator=generator, dtype=dtype, device=device) * scale


def necessary_flop(case: Case) -> float:
    """Floating-point operations of the formula; whoever computes more is not credited with it.

    The frozen product costs 2·T·d_out·d_in, its input gradient the same again. The low-rank path
    costs 2·T·R·(d_in + d_out) forward and twice that backward. The gates are left out.
    """
    frozen = 2.0 * case.tokens * case.d_out * case.d_in if case.op == LINEAR else 0.0
    low_rank = 2.0 * case.tokens * case.rank * (case.d_in + case.d_out)
    return 2 * frozen + 3 * low_rank if case.mode == TRAINING else frozen + low_rank


def necessary_bytes(case: Case) -> float:
    """Bytes that must move: every input read once, every output written once, a pass.

    Forward: x, y, A, B, and W or a given base. Backward: dy, x, dx, A, B, dA, dB and W; the
    gradient of a base is dy itself.
    """
    x, y = case.tokens * case.d_in, case.tokens * case.d_out
    adapter = case.rank * (case.d_in + case.d_out)
    weight = case.d_out * case.d_in if case.op == LINEAR else 0
    forward = x + y + adapter + weight + (y if case.op == ONTO else 0)
    backward = y + 2 * x + 2 * adapter + weight
    elements = forward + backward if case.mode == TRAINING else forward
    assert case.op in (LINEAR, DELTA_ALONE, ONTO)
    return float(elements * case.torch_dtype.itemsize)
