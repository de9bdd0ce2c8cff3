"""The public functions: what they compute, and which shapes they take.

Checks (:mod:`ilora_kernels.checks`) run before anything is launched. Then all gate forms become one (see
:mod:`ilora_kernels.ops`) and the operator is called.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ilora_kernels import ops
from ilora_kernels.checks import (
    check_frozen,
    check_numbers,
    check_one_dtype,
    check_packed,
    check_shapes,
    check_tensors,
    shape_of,
)
from ilora_kernels.dropout import draw_seed


def gated_lora(
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *,
    scaling: float = 1.0,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """The gated sum over low-rank experts, without a base layer.

    .. math:: y_t = s \\sum_k g_{b(t),k} \\, (\\mathrm{dropout}(x_t) A_k^T) B_k^T

    The experts are concatenated, so the sum is one low-rank product with a diagonal in the middle,
    ``y = ((x Aᵀ) ⊙ G) Bᵀ``, and their number costs nothing.

    Args:
        x: ``[B, S, d_in]`` or ``[T, d_in]``, float64, float32, float16 or bfloat16, any strides.
        lora_A: ``[R, d_in]`` with R = K · r; expert k owns the rows ``k·r … (k+1)·r``.
        lora_B: ``[d_out, R]``; expert k owns the columns ``k·r … (k+1)·r``.
        gate: ``[K]`` one mixture for all; ``[B, K]`` one an instance; ``[B, S, K]`` or ``[T, K]``
            one a token. Any floating dtype; it enters in float32 (float64 for float64 ``x``).
        scaling: s.
        dropout_p: probability of dropping an element of ``x``, in [0, 1); the mask is drawn from
            torch's generator and never stored. Pass 0 outside training.
        cu_seqlens: int32 or int64 ``[B + 1]``, starting at 0, ending at T: ``x [T, d_in]`` is
            then a packed batch of B sequences and ``gate`` is ``[B, K]``. Values are checked once a
            tensor, which synchronises a GPU; not during CUDA-graph capture or compilation.

    Returns:
        ``x``'s shape with d_out last, ``x``'s dtype (under autocast, autocast's). Differentiable in
        x, lora_A, lora_B and gate, once.

    Raises:
        ValueError: a shape, device or value that does not fit, naming the argument.
        TypeError: a dtype that does not fit, naming the argument.

    Source: Kong et al., NeurIPS 2024, https://arxiv.org/abs/2408.10159.
    """
    return _apply(x, None, None, None, lora_A, lora_B, gate, scaling, dropout_p, cu_seqlens)


def gated_lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *,
    scaling: float = 1.0,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """A frozen linear layer and :func:`gated_lora` in one: ``y = x Wᵀ + bias + gated_lora(x)``.

    Args:
        weight: ``[d_out, d_in]``, frozen, of ``x``'s dtype.
        bias: ``[d_out]`` or None, frozen, of ``x``'s dtype.

    The other arguments, the result and the errors are :func:`gated_lora`'s. The dropout acts on
    the low-rank path alone. The weight and the bias get no gradient; asking for one
    (``requires_grad`` while gradients are recorded) is a ``ValueError``.
    """
    if weight is None:
        raise TypeError("weight is None; give the frozen weight, or call gated_lora without one.")
    return _apply(x, weight, bias, None, lora_A, lora_B, gate, scaling, dropout_p, cu_seqlens)


def gated_lora_onto(
    base: Tensor,
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *,
    scaling: float = 1.0,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """``base + gated_lora(x)`` for a base output computed elsewhere, by a quantised layer say.

    Args:
        base: ``x``'s shape with d_out last; it gets its gradient too.

    The other arguments, the result and the errors are :func:`gated_lora`'s.
    """
    return _apply(x, None, None, base, lora_A, lora_B, gate, scaling, dropout_p, cu_seqlens)


def _apply(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    scaling: float,
    dropout_p: float,
    cu_seqlens: Tensor | None,
) -> Tensor:
    check_tensors(x, weight, bias, base, lora_A, lora_B, gate, cu_seqlens)
    check_shapes(x, weight, bias, base, lora_A, lora_B, gate)
    check_frozen(weight, bias)
    check_numbers(scaling, dropout_p)

    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, lora_A, lora_B = x.to(dtype), lora_A.to(dtype), lora_B.to(dtype)
        weight, bias, base = (None if t is None else t.to(dtype) for t in (weight, bias, base))
    check_one_dtype(x, weight, bias, base, lora_A, lora_B)

    gate_rows, rows_per_gate, offsets = _one_gate_form(x, gate, cu_seqlens)
    gate_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return ops.gated_lora(
        x,
        weight,
        bias,
        base,
        lora_A,
        lora_B,
        gate_rows if gate_rows.dtype == gate_dtype else gate_rows.to(gate_dtype),
        offsets,
        rows_per_gate,
        float(scaling),
        float(dropout_p),
        draw_seed(x.device) if dropout_p > 0.0 else None,
    )


def _one_gate_form(
    x: Tensor, gate: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, int, Tensor | None]:
    """Bring the gate to ``[G, K]``; say how many rows of x each governs, or where they start."""
    if cu_seqlens is not None:
        check_packed(x, gate, cu_seqlens)
    if gate.ndim == 1:
        return gate[None], x.shape[:-1].numel(), None
    if cu_seqlens is not None:
        return gate, 0, cu_seqlens
    if gate.ndim == 2 and x.ndim == 3:
        if gate.shape[0] != x.shape[0]:
            raise ValueError(
                f"gate has {gate.shape[0]} rows, but x of shape {shape_of(x)} holds {x.shape[0]} "
                "instances; give one row an instance."
            )
        return gate, x.shape[1], None
    if gate.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"gate of shape {shape_of(gate)} does not fit x of shape {shape_of(x)}; with K experts it is "
            "[K], [B, K] or [B, S, K] for x [B, S, d_in], and [K], [T, K], or [B, K] with "
            "cu_seqlens, for x [T, d_in]."
        )
    return gate.reshape(-1, gate.shape[-1]), 1, None
