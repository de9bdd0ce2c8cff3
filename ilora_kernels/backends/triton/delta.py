"""The low-rank product alone: ``y = base + mask ⊙ (h Bᵀ)``, a pass at the speed of memory.

For a base output computed elsewhere (a quantised layer, the library's product), for no base at all, and
for the gradient of x in those cases. ``y`` may be ``base`` itself.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from ilora_kernels.backends.triton.accumulate import add_product
from ilora_kernels.backends.triton.adapter import Dropout, rank_block
from ilora_kernels.backends.triton.configs import PassConfig, choose
from ilora_kernels.backends.triton.launch import (
    Settings,
    can_overlap,
    current_device,
    describable,
    launch,
    settings,
)
from ilora_kernels.backends.triton.mask import keep_tile


@triton.jit(do_not_specialize=("T", "N", "base_stride", "factor_stride", "threshold"))
def delta_kernel(
    base_ptr,  # [T, N]
    h_ptr,  # [T, R_PADDED]: h, or u in the backward pass
    factor_ptr,  # lora_B [N, R], or lora_A [R, N] in the backward pass
    y_ptr,  # [T, N]
    seed_ptr,
    T,
    N,
    base_stride,
    factor_stride,
    threshold,
    R: tl.constexpr,
    R_PADDED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BACKWARD: tl.constexpr,
    HAS_BASE: tl.constexpr,
    MASKED: tl.constexpr,
    ALIGNED: tl.constexpr,
    OVERLAP: tl.constexpr,
    FLOAT32: tl.constexpr,
):
    if ALIGNED:  # a hint that the compiler believes: rows are whole units of 16 bytes
        base_stride, factor_stride, N = base_stride // 8 * 8, factor_stride // 8 * 8, N // 8 * 8
    column_blocks = tl.cdiv(N, BLOCK_N)
    first_column = tl.program_id(0) % column_blocks * BLOCK_N
    rows = tl.program_id(0) // column_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = first_column + tl.arange(0, BLOCK_N)
    mask = (rows < T)[:, None] & (columns < N)[None, :]
    if HAS_BASE:
        base_offset = rows[:, None].to(tl.int64) * base_stride + columns[None, :]
        base = tl.load(base_ptr + base_offset, mask=mask, other=0.0)

    if OVERLAP:
        gdc_wait()  # h is there from here on
    y = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for r in tl.static_range(0, R_PADDED, BLOCK_R):
        j = r + tl.arange(0, BLOCK_R)
        if BACKWARD:
            factor_offset = j[:, None] * factor_stride + columns[None, :]
        else:
            factor_offset = columns[None, :] * factor_stride + j[:, None]
        in_factor = (j < R)[:, None] & (columns < N)[None, :]
        factor = tl.load(factor_ptr + factor_offset, mask=in_factor, other=0.0)
        in_h = (rows < T)[:, None] & (j < R_PADDED)[None, :]
        h_offset = rows[:, None].to(tl.int64) * R_PADDED + j[None, :]
        h = tl.load(h_ptr + h_offset, mask=in_h, other=0.0)
        y = add_product(y, h, factor, T, FLOAT32, False)
    if MASKED:
        i = tl.arange(0, BLOCK_N)[None, :]
        y = tl.where(keep_tile(seed_ptr, rows[:, None], first_column, i, threshold), y, 0.0)
    if HAS_BASE:
        y += base.to(tl.float32)
    y_offset = rows[:, None].to(tl.int64) * N + columns[None, :]
    tl.store(y_ptr + y_offset, y.to(y_ptr.dtype.element_ty), mask=mask)


def delta(
    base: Tensor | None,
    h: Tensor,  # [T, padded R]: h, or u in the backward pass
    factor: Tensor,  # lora_B, or lora_A in the backward pass
    rank: int,
    y: Tensor,
    dropout: Dropout | None,
    *,
    backward: bool,
) -> None:
    """Write y; launched after ``shrink``, it reads its base while that one still runs."""
    rows, columns = y.shape
    device = current_device()
    config: PassConfig = choose("delta", rows, rank, device)
    aligned = describable(factor) and describable(y) and (base is None or describable(base))
    masked = dropout is not None and backward
    how = _settings(
        config, rank, h.shape[1], device, backward, base is not None, masked, aligned,
        can_overlap(device), y.dtype == torch.float32,
    )  # fmt: skip
    y_or_base, base_stride = (y, columns) if base is None else (base, base.stride(0))
    y_or_seed, threshold = (y, 0) if dropout is None else (dropout.seed, dropout.threshold)
    launch(
        how,
        (-(-columns // config.block_d) * -(-rows // config.block_t), 1, 1),
        (y_or_base, h, factor, y, y_or_seed),
        (rows, columns, base_stride, factor.stride(0), threshold),
    )


@functools.lru_cache(maxsize=4096)
def _settings(
    config: PassConfig,
    rank: int,
    padded: int,
    device: int,
    backward: bool,
    has_base: bool,
    masked: bool,
    aligned: bool,
    overlap: bool,
    float32: bool,
) -> Settings:
    return settings(
        delta_kernel,
        {
            "R": rank,
            "R_PADDED": padded,
            "BLOCK_R": rank_block(rank),
            "BLOCK_T": config.block_t,
            "BLOCK_N": config.block_d,
            "BACKWARD": backward,
            "HAS_BASE": has_base,
            "MASKED": masked,
            "ALIGNED": aligned,
            "OVERLAP": overlap,
            "FLOAT32": float32,
        },
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        overlap=overlap,
    )
