"""Decoding in one launch: every program sums ``x Aᵀ`` for itself, beside its rows of ``x Wᵀ``.

A comes out of the L2 cache, and no program waits for another.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ilora_kernels.backends.triton.adapter import Gating, power_of_two, rank_block
from ilora_kernels.backends.triton.configs import DecodeConfig
from ilora_kernels.backends.triton.decode_steps import (
    begin_early,
    load_block,
    load_factor,
    write_rows,
)
from ilora_kernels.backends.triton.launch import (
    can_overlap,
    current_device,
    descriptor,
    has_copy_engine,
    launch,
)

_NUMBERS = (
    "T", "N", "K", "num_gates", "rows_per_gate", "x_stride", "w_stride", "a_stride", "b_stride",
)  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def decode_whole_kernel(
    x_ref,  # [T, K], descriptor or pointer
    w_ref,  # [N, K], descriptor or pointer
    a_ref,  # [R, K], descriptor or pointer
    w_ptr,  # [N, K]
    b_ptr,  # [N, R]
    gate_ptr,  # [G, E]
    cu_seqlens_ptr,  # [G + 1]
    bias_ptr,  # [N]
    xa_ptr,  # [T, R]
    y_ptr,  # [T, N]
    T,
    N,
    K,
    num_gates,
    rows_per_gate,
    x_stride,
    w_stride,
    a_stride,
    b_stride,
    scaling,
    R: tl.constexpr,
    RANK_OF_EXPERT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PREFETCH: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    # A hint that the compiler believes: rows are whole units of 16 bytes.
    x_stride, w_stride, a_stride = x_stride // 8 * 8, w_stride // 8 * 8, a_stride // 8 * 8
    K = K // 8 * 8
    column = tl.program_id(0) * BLOCK_N
    begin_early(w_ptr, w_stride, column, N, 0, K, BLOCK_N, PREFETCH, OVERLAP)
    y = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    xa = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    for k in range(0, K, BLOCK_K):
        w = load_block(w_ref, column, N, w_stride, k, K, BLOCK_N, BLOCK_K, DESCRIPTORS, True)
        a = load_block(a_ref, 0, R, a_stride, k, K, BLOCK_R, BLOCK_K, DESCRIPTORS, False)
        x = load_block(x_ref, 0, T, x_stride, k, K, BLOCK_T, BLOCK_K, DESCRIPTORS, False)
        y = tl.dot(w, x.T, y)
        xa = tl.dot(a, x.T, xa)
    factor = load_factor(b_ptr, column, N, b_stride, R, BLOCK_N, BLOCK_R)
    write_rows(
        y, xa, column, 0, factor, gate_ptr, cu_seqlens_ptr, bias_ptr, xa_ptr, y_ptr,
        T, N, num_gates, rows_per_gate, scaling,
        R, RANK_OF_EXPERT, BLOCK_R, BLOCK_N, BLOCK_T, PACKED, HAS_BIAS,
    )  # fmt: skip


def decode_whole(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gating: Gating,
    xa: Tensor,
    y: Tensor,
    config: DecodeConfig,
) -> None:
    """Write ``y [T, N]`` and ``xa [T, R]``."""
    (rows, depth), columns, rank = x.shape, y.shape[1], lora_A.shape[0]
    gate, cu_seqlens, rows_per_gate, scaling = gating
    device = current_device()
    block_t, block_r = max(16, power_of_two(rows)), rank_block(rank)
    copied = config.copy_engine and has_copy_engine(device)

    def block(matrix: Tensor, height: int) -> object:
        return descriptor(matrix, [height, config.block_k]) if copied else matrix

    launch(
        decode_whole_kernel,
        (-(-columns // config.block_n), 1, 1),
        (
            block(x, block_t),
            block(weight, config.block_n),
            block(lora_A, block_r),
            weight,
            lora_B,
            gate,
            gate if cu_seqlens is None else cu_seqlens,
            y if bias is None else bias,
            xa,
            y,
            rows,
            columns,
            depth,
            gate.shape[0],
            max(rows_per_gate, 1),
            x.stride(0),
            weight.stride(0),
            lora_A.stride(0),
            lora_B.stride(0),
            scaling,
        ),
        {
            "R": rank,
            "RANK_OF_EXPERT": rank // gate.shape[1],
            "BLOCK_R": block_r,
            "BLOCK_N": config.block_n,
            "BLOCK_T": block_t,
            "BLOCK_K": config.block_k,
            "PREFETCH": config.prefetch,
            "PACKED": cu_seqlens is not None,
            "HAS_BIAS": bias is not None,
            "DESCRIPTORS": copied,
            "OVERLAP": can_overlap(device),
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        overlap=can_overlap(device),
    )
