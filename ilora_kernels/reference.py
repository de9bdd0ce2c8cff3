"""The formula as a loop over experts: slow, obvious, and the oracle of every test.

Kong et al., "Customizing Language Models with Instance-wise LoRA for Sequential
Recommendation", NeurIPS 2024, equation 8; Hu et al., "LoRA", ICLR 2022, for one expert.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gated_lora(
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *,
    scaling: float = 1.0,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return ``s · Σ_k gate[b(t), k] · (x[t] A_kᵀ) B_kᵀ``; shapes as in ``ilora_kernels.gated_lora``.

    To see dropout, hand in the dropped-out ``x``.
    """
    num_experts = gate.shape[-1]
    rank = lora_A.shape[0] // num_experts
    token_gate = _gate_of_every_token(x, gate, cu_seqlens)  # [..., K], one mixture a token
    y = torch.zeros(*x.shape[:-1], lora_B.shape[0], dtype=x.dtype, device=x.device)
    for k in range(num_experts):
        A_k = lora_A[k * rank : (k + 1) * rank]  # [r, d_in]
        B_k = lora_B[:, k * rank : (k + 1) * rank]  # [d_out, r]
        y = y + token_gate[..., k : k + 1] * (x @ A_k.T @ B_k.T)
    return scaling * y


def gated_lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *,
    scaling: float = 1.0,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Return ``x Wᵀ + bias`` plus :func:`gated_lora`."""
    y = x @ weight.T + gated_lora(x, lora_A, lora_B, gate, scaling=scaling, cu_seqlens=cu_seqlens)
    return y if bias is None else y + bias


def _gate_of_every_token(x: Tensor, gate: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    if cu_seqlens is not None and gate.ndim == 2:  # packed: [B, K] over the rows of x [T, d_in]
        lengths = cu_seqlens.diff().tolist()
        rows = [g.expand(length, -1) for g, length in zip(gate, lengths, strict=True)]
        return torch.cat(rows) if rows else gate
    if gate.ndim == 2 and x.ndim == 3:  # one mixture an instance
        return gate[:, None, :].expand(*x.shape[:2], -1)
    return gate.expand(*x.shape[:-1], -1)  # one for all, or one a token already
