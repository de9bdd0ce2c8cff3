"""Triton: the adapter rides in the shadow of the frozen product.

    forward     shrink(x) ── h ──▶ linear(x, W, h, B) ──▶ y
    backward    shrink(dY) ── u ──▶ linear(dY, W, u, A) ──▶ dX;  gradients(x, u, dY, h) ──▶ dA, dB, dG

Each file holds one kernel and its launch; the product has a second one, for Hopper. The kernels of a
pass overlap: shrink runs beside the first tiles of the product, the gradients beside its last ones.
Where the product's kernel cannot run (no copy engine before Hopper, rows that are not whole units of 16
bytes, float32) or does not pay, the frozen product is the library's and ``delta`` adds the low-rank part
to it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ilora_kernels.backends.triton.adapter import dropout, gating_of
from ilora_kernels.backends.triton.decode import can_decode, decode
from ilora_kernels.backends.triton.delta import delta
from ilora_kernels.backends.triton.gradients import gradients
from ilora_kernels.backends.triton.launch import INTERPRETED, TRITON_IS_KNOWN, describable
from ilora_kernels.backends.triton.linear import can_fuse, linear
from ilora_kernels.backends.triton.replay import replayed
from ilora_kernels.backends.triton.shrink import shrink, shrink_backward

SUPPORTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def why_unusable() -> str | None:
    """Triton runs on a GPU, and in its interpreter (TRITON_INTERPRET=1) on a CPU."""
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "there is no GPU; TRITON_INTERPRET=1 runs it, slowly, on a CPU."


def drawback() -> str | None:
    """What another version of Triton costs here; None where it is the one that all is written for."""
    if TRITON_IS_KNOWN:
        return None
    return (
        f"Triton {triton.__version__} is not 3.6, for which launching and Hopper's product are written: "
        "a call costs the CPU more, and on Hopper the product takes 1 to 3 % longer."
    )


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """See :func:`_forward`, whose launches are noted."""
    _check_device(arguments[0])
    y, xa = replayed(_forward, arguments)
    return y, xa


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """See :func:`_backward`, whose launches are noted."""
    _check_device(arguments[0])
    *others, needs = arguments
    return replayed(_backward, (*others, tuple(needs)))


def _forward(
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
    rank = lora_A.shape[0]
    y = x.new_empty((x.shape[0], lora_B.shape[0]))
    if y.numel() == 0:
        return y, gate.new_zeros((x.shape[0], rank))
    x, lora_A, lora_B = _rows(x), _factor(lora_A), _factor(lora_B)
    if base is not None:
        base = _rows(base)  # not later: delta reads it while the kernel before it may still run
    gating = gating_of(gate, cu_seqlens, rows_per_gate, scaling)
    mask = dropout(dropout_p, seed)
    if weight is not None and can_decode(x, weight, lora_A, mask):
        xa = gate.new_empty((x.shape[0], rank))
        decode(x, weight, bias, lora_A, lora_B, gating, xa, y)
        return y, xa
    fused = weight is not None and can_fuse(x, weight, y, rank)
    if weight is not None and not fused:
        del y  # before the library allocates its own
        y = base = F.linear(x, weight, bias)
    xa, h = shrink(x, lora_A, gating, mask, beside_product=fused)
    if weight is not None and fused:
        linear(x, weight, h, lora_B, y, bias, mask, backward=False)
    else:
        delta(base, h, lora_B, rank, y, mask, backward=False)
    return y, xa


def _backward(
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
    needs: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dx, dA, dB and dgate; an empty tensor where ``needs`` says nobody asks."""
    needs_x, needs_A, needs_B, needs_gate = needs
    dx = x.new_empty(x.shape if needs_x else (0,))
    dA = lora_A.new_empty(lora_A.shape) if needs_A else x.new_empty((0,))
    dB = lora_B.new_empty(lora_B.shape) if needs_B else x.new_empty((0,))
    dgate = gate.new_empty(gate.shape) if needs_gate else x.new_empty((0,))
    if grad_y.numel() == 0:
        return dx.zero_(), dA.zero_(), dB.zero_(), dgate.zero_()
    rank = lora_A.shape[0]
    x, dy, lora_A, lora_B = _rows(x), _rows(grad_y), _factor(lora_A), _factor(lora_B)
    gating = gating_of(gate, cu_seqlens, rows_per_gate, scaling)
    mask = dropout(dropout_p, seed)
    fused = needs_x and weight is not None and can_fuse(dy, weight, dx, rank)
    base = None
    if needs_x and weight is not None and not fused:
        del dx  # before the library allocates its own
        dx = base = dy @ weight
    u, h, p = shrink_backward(dy, lora_B, xa, gating, mask, beside_product=fused)
    if weight is not None and fused:
        linear(dy, weight, u, lora_A, dx, None, mask, backward=True)
    elif needs_x:
        delta(base, u, lora_A, rank, dx, mask, backward=True)
    gradients(x, u, dy, h, p, dA, dB, dgate, gating, mask, beside_product=fused)
    return dx, dA, dB, dgate


def _check_device(x: Tensor) -> None:
    # Kernels are handed addresses, and nothing after this would notice one of the CPU's.
    if not (x.is_cuda or INTERPRETED):
        raise RuntimeError(
            f"x is on {x.device}, where the triton backend does not compute; move it to a GPU, or "
            "use the torch backend."
        )


def _rows(matrix: Tensor) -> Tensor:
    """The matrix with its rows one after another in memory, as the kernels walk them."""
    # The kernels take the distance between rows as an int32.
    row, column = matrix.stride()
    in_rows = column == 1 and matrix.shape[1] <= row < 2**31
    return matrix if in_rows else matrix.clone(memory_format=torch.contiguous_format)


def _factor(matrix: Tensor) -> Tensor:
    """A thin factor that the copy engine can read: zeros fill its rows to multiples of eight."""
    if describable(matrix) and matrix.shape[0] * matrix.stride(0) < 2**31:  # offsets are int32
        return matrix
    padded = matrix.new_zeros((matrix.shape[0], -(-matrix.shape[1] // 8) * 8))
    padded[:, : matrix.shape[1]] = matrix
    return padded
