"""The steps of decoding: starting early, reading blocks, and writing rows of y.

W's rows are the tall operand of the tensor cores and the T rows of x the narrow one; sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ilora_kernels.backends.triton.shrink import instance_of


@triton.jit
def begin_early(
    w_ptr, w_stride, row, num_rows, column, K,
    BLOCK_N: tl.constexpr, PREFETCH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Fetch PREFETCH lines of 128 bytes of each row into L2; then wait for the kernels before."""
    if OVERLAP:
        if PREFETCH > 0:
            rows = tl.minimum(row + tl.arange(0, BLOCK_N), num_rows - 1)
            columns = tl.minimum(column + tl.arange(0, PREFETCH) * 64, K - 1)
            lines = w_ptr + (rows[:, None].to(tl.int64) * w_stride + columns[None, :])
            tl.inline_asm_elementwise(
                "{ prefetch.global.L2 [$1]; mov.b32 $0, 0; }", "=r,l", [lines],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        gdc_wait()
        gdc_launch_dependents()  # not earlier: whoever starts then finds all before us complete


@triton.jit
def load_block(
    ref, row, num_rows, stride, k, K,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, DESCRIPTORS: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """``[ROWS, BLOCK_K]`` of a matrix, zero outside; ONCE where nobody else reads it."""
    if DESCRIPTORS:
        block = ref.load([row, k])
    else:
        rows = row + tl.arange(0, ROWS)
        columns = k + tl.arange(0, BLOCK_K)
        block = tl.load(
            ref + (rows[:, None].to(tl.int64) * stride + columns[None, :]),
            mask=(rows < num_rows)[:, None] & (columns < K)[None, :],
            other=0.0,
            eviction_policy="evict_first" if ONCE else "evict_last",
        )
    return block


@triton.jit
def write_rows(
    y, xa, column, first_token, factor, gate_ptr, cu_seqlens_ptr, bias_ptr, xa_ptr, y_ptr,
    T, N, num_gates, rows_per_gate, scaling,
    R: tl.constexpr, RANK_OF_EXPERT: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, PACKED: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Given ``y [BLOCK_N, BLOCK_T] = W xᵀ`` and ``xa [BLOCK_R, BLOCK_T] = A xᵀ``, add the rest."""
    n = column + tl.arange(0, BLOCK_N)
    t = first_token + tl.arange(0, BLOCK_T)
    j = tl.arange(0, BLOCK_R)

    # h = G ⊙ xa, the gates in float32.
    instance = instance_of(t, cu_seqlens_ptr, num_gates, rows_per_gate, PACKED)
    NUM_EXPERTS: tl.constexpr = R // RANK_OF_EXPERT
    in_rank = (j < R)[:, None] & (t < T)[None, :]
    gate_offset = instance[None, :] * NUM_EXPERTS + (j // RANK_OF_EXPERT)[:, None]
    h = xa * (scaling * tl.load(gate_ptr + gate_offset, mask=in_rank, other=0.0))
    if column == 0:  # what a backward pass needs
        tl.store(xa_ptr + (t[None, :] * R + j[:, None]), xa, mask=in_rank)

    y = tl.dot(factor, h.to(factor.dtype), y)
    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    place = t[None, :].to(tl.int64) * N + n[:, None]
    in_y = (n < N)[:, None] & (t < T)[None, :]
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=in_y)


@triton.jit
def load_factor(
    b_ptr, column, N, b_stride, R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr
):
    """``[BLOCK_N, BLOCK_R]`` of lora_B, zero after the rank."""
    n = column + tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_R)
    mask = (n < N)[:, None] & (j < R)[None, :]
    offset = n[:, None].to(tl.int64) * (b_stride // 8 * 8) + j[None, :]
    return tl.load(b_ptr + offset, mask=mask, other=0.0)
