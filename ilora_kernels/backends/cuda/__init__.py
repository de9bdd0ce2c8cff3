"""CUDA C++: thin passes around the library's product, for machines without Triton.

    forward     shrink(x) ── xa, h ──▶ expand: y = x Wᵀ + bias, then += h Bᵀ in place
    backward    shrink(dY) ── u, h, p ──▶ column_sums ──▶ finish: dA, dB, dG
                                     └──▶ expand: dX = dY W, then += mask ⊙ (u A) in place

The kernels are in ``csrc/``, one file each, and know addresses, sizes and a stream; everything that they
write is allocated here. Matrices whose rows are whole units of 16 bytes go to the tensor cores, all
others to plain multiply-adds. So does all float32, unless torch allows TF32 for products of matrices
(``torch.set_float32_matmul_precision("high")``, or ``"tf32"`` as
``torch.backends.cuda.matmul.fp32_precision``): then tensor cores take it as they take 16 bits, each
product's inputs rounded to TF32. The setting is read at every launch: a backward pass follows the one of
its own time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ilora_kernels import build_record
from ilora_kernels.backends.cuda.launch import (
    expand,
    factor_of,
    gating_of,
    gradients,
    kernels,
    mask_of,
    offsets_of,
    padded,
    place_of,
    rows_of,
    shrink,
)

SUPPORTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def why_unusable() -> str | None:
    """Needs a CUDA GPU, kernels that were built, and both of one generation."""
    if not build_record.extension_exists():
        return build_record.why_missing()
    if torch.version.hip or not torch.cuda.is_available():
        return "there is no CUDA GPU."
    if reason := kernels().why_unusable(torch.cuda.current_device()):
        major, minor = torch.cuda.get_device_capability()
        return (
            f"the kernels do not run on this GPU of compute capability {major}.{minor}: {reason}; "
            f"install again with ILORA_CUDA=on and ILORA_CUDA_ARCHS={major}{minor}."
        )
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
    _check_device(x)
    rows, rank = x.shape[0], lora_A.shape[0]
    xa = gate.new_empty((rows, rank))
    if rows == 0 or lora_B.shape[0] == 0:
        return x.new_empty((rows, lora_B.shape[0])), xa.zero_()
    place, gate, cu_seqlens = place_of(x), gate.contiguous(), offsets_of(cu_seqlens)
    gating = gating_of(gate, cu_seqlens, rows_per_gate, rank, scaling)
    mask = mask_of(dropout_p, seed)
    x, lora_A, lora_B = rows_of(x), factor_of(lora_A), factor_of(lora_B)
    if base is not None:
        base = rows_of(base)  # not later: expand may be chained to kernels alone, not to a copy
    h = x.new_empty((rows, padded(rank)))
    shrink(place, x, lora_A, xa, h, None, None, rank, gating, mask)
    if weight is not None:
        y = base = F.linear(x, weight, bias)
    else:
        y = x.new_empty((rows, lora_B.shape[0]))
    expand(place, base, h, lora_B, y, rank, mask, backward=False)
    return y, xa


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
    _check_device(x)
    inputs = (x, lora_A, lora_B, gate)
    dx, dA, dB, dgate = (
        t.new_empty(t.shape) if n else x.new_empty((0,)) for t, n in zip(inputs, needs, strict=True)
    )
    if grad_y.numel() == 0 or x.numel() == 0:
        return dx.zero_(), dA.zero_(), dB.zero_(), dgate.zero_()
    rows, rank = xa.shape
    place, gate, cu_seqlens = place_of(x), gate.contiguous(), offsets_of(cu_seqlens)
    gating = gating_of(gate, cu_seqlens, rows_per_gate, rank, scaling)
    mask = mask_of(dropout_p, seed)
    x, dy, lora_A, lora_B = rows_of(x), rows_of(grad_y), factor_of(lora_A), factor_of(lora_B)
    h, u = (dy.new_empty((rows, padded(rank))) for _ in range(2))
    p = torch.empty_like(xa)
    shrink(place, dy, lora_B, xa.contiguous(), h, u, p, rank, gating, mask)
    # dY again at once, while part of it is still in the cache; dX when nobody needs it any more.
    gradients(place, dy, h, dB, x, u, dA, p, dgate, gating, mask)
    if needs[0]:
        base = None
        if weight is not None:
            del dx  # before the library allocates its own
            dx = base = dy @ weight
        expand(place, base, u, lora_A, dx, rank, mask, backward=True)
    return dx, dA, dB, dgate


def _check_device(x: Tensor) -> None:
    # Kernels are handed addresses, and nothing after this would notice one of the CPU's.
    if not x.is_cuda:
        raise RuntimeError(
            f"x is on {x.device}, where the cuda backend does not compute; move it to a GPU, or use "
            "the torch backend."
        )
