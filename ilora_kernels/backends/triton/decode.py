"""A handful of rows, as in serving: ``y = x Wᵀ + bias + h Bᵀ``, with W read once.

With T tokens of up to 128, perhaps one a user, the product is bound by reading the weight, and a tile of
``linear`` would leave most multiprocessors idle. So d_in is cut into parts, and ``finish`` adds them in
a fixed order. The rows of A are rows like those of W: a tile of either times x, cut into so many parts
that all tiles together fill the GPU once; where whole tiles already do, d_in is not cut. A is read once,
and x once a tile. The second launch turns x Aᵀ into h and writes y.

How d_in is cut follows from the shape of W and the bucket alone, so that a row of y has the same bits in
every batch of that bucket. Nothing is kept between calls: calls on several streams, and graphs, are
independent.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ilora_kernels.backends.triton.adapter import Dropout, Gating, power_of_two, rank_block
from ilora_kernels.backends.triton.configs import (
    DecodeConfig,
    choose,
    decode_splits,
    multiprocessors,
)
from ilora_kernels.backends.triton.decode_steps import (
    begin_early,
    load_block,
    load_factor,
    write_rows,
)
from ilora_kernels.backends.triton.launch import (
    Settings,
    can_overlap,
    current_device,
    describable,
    has_copy_engine,
    launch,
    settings,
)

MOST_ROWS, MOST_RANK = 128, 128
_FINISH_N, _FINISH_T = 32, 32  # small tiles, so that all of them run at once


@triton.jit
def split_sum(
    total, rows_ref, x_ref, row, num_rows, rows_stride, T, x_stride, K, begin, end,
    ROWS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """``total + rows xᵀ`` over the steps from begin to end."""
    for step in range(begin, end):
        k = step * BLOCK_K
        w = load_block(rows_ref, row, num_rows, rows_stride, k, K, ROWS, BLOCK_K, DESCRIPTORS, ONCE)
        x = load_block(x_ref, 0, T, x_stride, k, K, BLOCK_T, BLOCK_K, DESCRIPTORS, False)
        total = tl.dot(w, x.T, total)
    return total


@triton.jit(do_not_specialize=("T", "N", "K", "x_stride", "w_stride", "a_stride"))
def decode_split_kernel(
    x_ref,  # [T, K], descriptor or pointer
    w_ref,  # [N, K], descriptor or pointer
    a_ref,  # [R, K], descriptor or pointer
    w_ptr,  # [N, K]
    a_ptr,  # [R, K]
    partial_ptr,  # [SPLITS, N + R, PITCH]: first the rows of W, then those of A
    T,
    N,
    K,
    x_stride,
    w_stride,
    a_stride,
    R: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PITCH: tl.constexpr,
    SPLITS: tl.constexpr,
    PREFETCH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    x_stride, w_stride, a_stride = x_stride // 8 * 8, w_stride // 8 * 8, a_stride // 8 * 8
    K = K // 8 * 8
    tile, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    steps = tl.cdiv(K, BLOCK_K)
    begin, end = split * steps // SPLITS, (split + 1) * steps // SPLITS
    t = tl.arange(0, BLOCK_T)
    out_ptr = partial_ptr + split * (N + R) * PITCH
    if tile == 0:  # the rows of A
        begin_early(a_ptr, a_stride, 0, R, begin * BLOCK_K, K, BLOCK_R, PREFETCH, OVERLAP)
        xa = split_sum(
            tl.zeros((BLOCK_R, BLOCK_T), tl.float32), a_ref, x_ref, 0, R, a_stride, T, x_stride, K,
            begin, end, BLOCK_R, BLOCK_T, BLOCK_K, DESCRIPTORS, False,
        )  # fmt: skip
        j = tl.arange(0, BLOCK_R)
        in_rank = (j < R)[:, None] & (t < PITCH)[None, :]
        tl.store(out_ptr + ((N + j[:, None]) * PITCH + t[None, :]), xa, mask=in_rank)
    else:
        row = (tile - 1) * BLOCK_N
        begin_early(w_ptr, w_stride, row, N, begin * BLOCK_K, K, BLOCK_N, PREFETCH, OVERLAP)
        y = split_sum(
            tl.zeros((BLOCK_N, BLOCK_T), tl.float32), w_ref, x_ref, row, N, w_stride, T, x_stride, K,
            begin, end, BLOCK_N, BLOCK_T, BLOCK_K, DESCRIPTORS, True,
        )  # fmt: skip
        n = row + tl.arange(0, BLOCK_N)
        in_y = (n < N)[:, None] & (t < PITCH)[None, :]
        tl.store(out_ptr + (n[:, None] * PITCH + t[None, :]), y, mask=in_y)


@triton.jit(do_not_specialize=("T", "N", "num_gates", "rows_per_gate", "b_stride"))
def decode_finish_kernel(
    partial_ptr,  # [SPLITS, N + R, PITCH]
    b_ptr,  # [N, R]
    gate_ptr,  # [G, E]
    cu_seqlens_ptr,  # [G + 1]
    bias_ptr,  # [N]
    xa_ptr,  # [T, R]
    y_ptr,  # [T, N]
    T,
    N,
    num_gates,
    rows_per_gate,
    b_stride,
    scaling,
    R: tl.constexpr,
    RANK_OF_EXPERT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PITCH: tl.constexpr,
    SPLITS: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    column, first_token = tl.program_id(0) * BLOCK_N, tl.program_id(1) * BLOCK_T
    factor = load_factor(b_ptr, column, N, b_stride, R, BLOCK_N, BLOCK_R)
    if OVERLAP:
        gdc_wait()  # the parts are there from here on
        gdc_launch_dependents()
    n = column + tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_R)
    t = first_token + tl.arange(0, BLOCK_T)
    in_y = (n < N)[:, None] & (t < PITCH)[None, :]
    in_rank = (j < R)[:, None] & (t < PITCH)[None, :]
    y = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    xa = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    for split in tl.static_range(SPLITS):
        part_ptr = partial_ptr + split * (N + R) * PITCH
        xa += tl.load(part_ptr + ((N + j[:, None]) * PITCH + t[None, :]), mask=in_rank, other=0.0)
        y += tl.load(part_ptr + (n[:, None] * PITCH + t[None, :]), mask=in_y, other=0.0)
    write_rows(
        y, xa, column, first_token, factor, gate_ptr, cu_seqlens_ptr, bias_ptr, xa_ptr, y_ptr,
        T, N, num_gates, rows_per_gate, scaling,
        R, RANK_OF_EXPERT, BLOCK_R, BLOCK_N, BLOCK_T, PACKED, HAS_BIAS,
    )  # fmt: skip


def can_decode(x: Tensor, weight: Tensor, lora_A: Tensor, dropout: Dropout | None) -> bool:
    """Whether these kernels take the call: few rows in 16 bits, laid out in units of 16 bytes."""
    return (
        x.shape[0] <= MOST_ROWS
        and (weight.shape[0] + MOST_RANK) * MOST_ROWS < 2**31  # offsets of partial sums are int32
        and lora_A.shape[0] <= MOST_RANK
        and dropout is None
        and x.dtype != torch.float32
        and torch.version.hip is None
        and describable(x)
        and describable(weight)
        and describable(lora_A)
    )


def decode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gating: Gating,
    xa: Tensor,
    y: Tensor,
) -> None:
    """Write ``y [T, d_out]`` and, in float32, ``xa = x Aᵀ [T, R]``."""
    (rows, depth), columns, rank = x.shape, y.shape[1], lora_A.shape[0]
    gate, cu_seqlens, rows_per_gate, scaling = gating
    device = current_device()
    config: DecodeConfig = choose("decode", rows, rank, device, columns)
    copied, overlap = config.copy_engine and has_copy_engine(device), can_overlap(device)
    plan = _plan(
        config, rows, columns, depth, rank, gate.shape[1], multiprocessors(device), device,
        cu_seqlens is not None, bias is not None, copied, overlap,
    )  # fmt: skip
    partial = xa.new_empty(plan.partial_shape)
    launch(
        plan.split,
        plan.split_grid,
        (x, weight, lora_A, weight, lora_A, partial),
        (rows, columns, depth, x.stride(0), weight.stride(0), lora_A.stride(0)),
    )
    gate_or_offsets = gate if cu_seqlens is None else cu_seqlens
    y_or_bias = y if bias is None else bias
    launch(
        plan.finish,
        plan.finish_grid,
        (partial, lora_B, gate, gate_or_offsets, y_or_bias, xa, y),
        (rows, columns, gate.shape[0], max(rows_per_gate, 1), lora_B.stride(0), scaling),
    )


class _Plan(NamedTuple):
    """What the two launches consist of beside their tensors and numbers."""

    split: Settings
    split_grid: tuple[int, int, int]
    partial_shape: tuple[int, int, int]
    finish: Settings
    finish_grid: tuple[int, int, int]


@functools.lru_cache(maxsize=4096)
def _plan(
    config: DecodeConfig,
    rows: int,
    columns: int,
    depth: int,
    rank: int,
    experts: int,
    programs: int,
    device: int,
    packed: bool,
    has_bias: bool,
    copied: bool,
    overlap: bool,
) -> _Plan:
    pitch = power_of_two(rows)  # a row of the partial sums, so that it is stored in whole units
    block_t, block_r = max(16, pitch), rank_block(rank)
    splits = decode_splits(columns, depth, config, programs)
    split = settings(
        decode_split_kernel,
        {
            "R": rank,
            "BLOCK_R": block_r,
            "BLOCK_N": config.block_n,
            "BLOCK_T": block_t,
            "BLOCK_K": config.block_k,
            "PITCH": pitch,
            "SPLITS": splits,
            "PREFETCH": config.prefetch,
            "DESCRIPTORS": copied,
            "OVERLAP": overlap,
        },
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        blocks=tuple(((height, config.block_k),) for height in (block_t, config.block_n, block_r))
        if copied
        else (),
        overlap=overlap,
    )
    finish_t = min(_FINISH_T, block_t)
    finish = settings(
        decode_finish_kernel,
        {
            "R": rank,
            "RANK_OF_EXPERT": rank // experts,
            "BLOCK_R": block_r,
            "BLOCK_N": _FINISH_N,
            "BLOCK_T": finish_t,
            "PITCH": pitch,
            "SPLITS": splits,
            "PACKED": packed,
            "HAS_BIAS": has_bias,
            "OVERLAP": overlap,
        },
        device,
        num_warps=4,
        num_stages=1,
        overlap=overlap,
    )
    split_grid = ((-(-columns // config.block_n) + 1) * splits, 1, 1)
    finish_grid = (-(-columns // _FINISH_N), -(-rows // finish_t), 1)
    return _Plan(split, split_grid, (splits, columns + rank, pitch), finish, finish_grid)
