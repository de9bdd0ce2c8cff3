"""Plain PyTorch: three small matrix products around the frozen one, on any device.

    h  = (x̂ Aᵀ) ⊙ G          x̂ = dropout(x),  G[t, j] = s · gate[b(t), j // r]
    y  = x Wᵀ + bias + h Bᵀ

The gates, the scaling and every reduction enter in float32 (float64 for float64 inputs); nothing
of shape ``[T, K, d_out]`` exists.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ilora_kernels.dropout import keep_mask, threshold_and_scale

SUPPORTED_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def why_unusable() -> str | None:
    """PyTorch runs everywhere."""
    return None


def forward(
    x: Tensor,  # [T, d_in]
    weight: Tensor | None,  # [d_out, d_in]
    bias: Tensor | None,  # [d_out]
    base: Tensor | None,  # [T, d_out]
    lora_A: Tensor,  # [R, d_in]
    lora_B: Tensor,  # [d_out, R]
    gate: Tensor,  # [G, K]
    cu_seqlens: Tensor | None,  # [G + 1]
    rows_per_gate: int,
    scaling: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return ``y [T, d_out]`` and ``x̂ Aᵀ [T, R]`` before the gates."""
    xa = (_dropout(x, dropout_p, seed) @ lora_A.T).to(gate.dtype)  # [T, R]
    row_gate = _row_gate(gate, cu_seqlens, rows_per_gate, x.shape[0], lora_A.shape[0])
    h = (xa * row_gate * scaling).to(x.dtype)  # [T, R]
    if weight is not None:
        return F.linear(x, weight, bias).addmm_(h, lora_B.T), xa
    if base is not None:
        return torch.addmm(base, h, lora_B.T), xa
    return h @ lora_B.T, xa


def backward(
    grad_y: Tensor,  # [T, d_out]
    x: Tensor,
    weight: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    cu_seqlens: Tensor | None,
    xa: Tensor,  # [T, R]
    rows_per_gate: int,
    scaling: float,
    dropout_p: float,
    seed: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dx, dA, dB and dgate; an empty tensor where ``needs`` says nobody asks."""
    needs_x, needs_A, needs_B, needs_gate = needs
    row_gate = scaling * _row_gate(gate, cu_seqlens, rows_per_gate, x.shape[0], lora_A.shape[0])
    v = (grad_y @ lora_B).to(gate.dtype)  # [T, R], the gradient of h
    u = (v * row_gate).to(x.dtype)  # [T, R], the gradient of x̂ Aᵀ
    dx, dA, dB, dgate = (x.new_empty(0) for _ in needs)
    if needs_x:
        dx = _grad_x(grad_y, weight, u, lora_A, dropout_p, seed)
    if needs_A:
        dA = u.T @ _dropout(x, dropout_p, seed)
    if needs_B:
        dB = grad_y.T @ (xa * row_gate).to(x.dtype)
    if needs_gate:
        per_row = (xa * v).unflatten(1, (gate.shape[1], -1)).sum(-1) * scaling  # [T, K]
        dgate = _sum_over_instances(per_row, cu_seqlens, rows_per_gate, gate.shape[0])
    return dx, dA, dB, dgate


def _grad_x(
    grad_y: Tensor,
    weight: Tensor | None,
    u: Tensor,
    lora_A: Tensor,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    """``dx = dY W + mask/(1-p) ⊙ (u A)``."""
    if weight is None:
        return _dropout(u @ lora_A, dropout_p, seed)
    dx = grad_y @ weight
    if dropout_p == 0.0:
        return dx.addmm_(u, lora_A)
    return dx.add_(_dropout(u @ lora_A, dropout_p, seed))


def _dropout(value: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:
    if dropout_p == 0.0 or seed is None:
        return value
    keep = keep_mask(seed, value.shape[0], value.shape[1], dropout_p)
    _, scale = threshold_and_scale(dropout_p)
    return torch.where(keep, value * scale, 0.0)


def _row_gate(
    gate: Tensor, cu_seqlens: Tensor | None, rows_per_gate: int, num_rows: int, total_rank: int
) -> Tensor:
    """Every row's gate, repeated over the ranks of its expert: ``[T, R]``."""
    per_rank = gate.repeat_interleave(total_rank // gate.shape[1], dim=1)  # [G, R]
    if cu_seqlens is not None:
        return per_rank.repeat_interleave(cu_seqlens.diff(), dim=0, output_size=num_rows)
    return per_rank[:, None, :].expand(-1, rows_per_gate, -1).reshape(num_rows, total_rank)


def _sum_over_instances(
    per_row: Tensor, cu_seqlens: Tensor | None, rows_per_gate: int, num_gates: int
) -> Tensor:
    """``[T, K] -> [G, K]``; segment_reduce, because index_add on a GPU is not deterministic."""
    if cu_seqlens is not None:
        return torch.segment_reduce(per_row, "sum", offsets=cu_seqlens.long(), initial=0.0)
    return per_row.reshape(num_gates, rows_per_gate, per_row.shape[1]).sum(1)
