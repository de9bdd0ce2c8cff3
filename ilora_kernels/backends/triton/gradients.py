"""The gradients of the adapter: ``dA = uᵀ x̂``, ``dB = dYᵀ h`` and the gates', in one launch.

    dA[j, d] = Σ_t u[t, j] x̂[t, d]
    dB[n, j] = Σ_t dY[t, n] h[t, j]
    dG[g, k] = Σ_{t in g} Σ_{j in k} p[t, j]

Programs of three kinds: a block of columns of dY, a block of columns of x, the rows of one gate (of
many gates where each governs one row). Each sums over its rows in order, alone, so that the result
has the same bits every time.

None of it needs dX. The programs are small enough to run beside the product that computes dX, and
are released by it (see ``linear``) as soon as u and h are there.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from ilora_kernels.backends.triton.accumulate import add_product
from ilora_kernels.backends.triton.adapter import Dropout, Gating, power_of_two, rank_block
from ilora_kernels.backends.triton.configs import PassConfig, choose, multiprocessors
from ilora_kernels.backends.triton.launch import (
    Settings,
    can_overlap,
    current_device,
    describable,
    has_copy_engine,
    launch,
    settings,
)
from ilora_kernels.backends.triton.mask import keep_tile


@triton.jit
def column_block_sum(
    x_ref,  # [T, D], descriptor or pointer
    c_ref,  # [T, R_PADDED], descriptor or pointer
    seed_ptr,
    T,
    D,
    first_row,
    last_row,
    first_column,
    first_rank,
    x_stride,
    threshold,
    R_PADDED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    FLOAT32: tl.constexpr,
):
    """``Σ_t x[t, d] c[t, j]`` for a block of columns d: ``[BLOCK_D, BLOCK_R]``."""
    total = tl.zeros((BLOCK_D, BLOCK_R), tl.float32)
    columns = first_column + tl.arange(0, BLOCK_D)
    j = first_rank + tl.arange(0, BLOCK_R)
    for t in range(first_row, last_row, BLOCK_T):
        rows = t + tl.arange(0, BLOCK_T)
        if DESCRIPTORS:
            x = x_ref.load([t, first_column])
            c = c_ref.load([t, first_rank])
        else:
            x = tl.load(
                x_ref + (rows[:, None].to(tl.int64) * x_stride + columns[None, :]),
                mask=(rows < T)[:, None] & (columns < D)[None, :],
                other=0.0,
            )
            c = tl.load(
                c_ref + (rows[:, None].to(tl.int64) * R_PADDED + j[None, :]),
                mask=(rows < T)[:, None] & (j < R_PADDED)[None, :],
                other=0.0,
                cache_modifier=".cg",  # as load_rows
            )
        x = x.T
        if MASKED:
            i = tl.arange(0, BLOCK_D)[:, None]
            x = tl.where(keep_tile(seed_ptr, rows[None, :], first_column, i, threshold), x, 0.0)
        total = add_product(total, x, c, T, FLOAT32, MASKED)
    return total


@triton.jit
def load_rows(p_ptr, first, last, j, R: tl.constexpr, BLOCK_G: tl.constexpr):
    """Rows ``first … first + BLOCK_G`` of p, zero from ``last`` on. Past the first-level cache:
    p was written while a kernel between its writer and this one still ran."""
    rows = first + tl.arange(0, BLOCK_G)
    mask = (rows < last)[:, None] & (j < R)[None, :]
    offset = rows[:, None].to(tl.int64) * R + j[None, :]
    return tl.load(p_ptr + offset, mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def gate_sums(
    p_ptr,
    first_row,
    last_row,
    R: tl.constexpr,
    RANK_OF_EXPERT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PER_TOKEN: tl.constexpr,
):
    """``Σ_{j in k} p[t, j]``, for each of BLOCK_G rows or summed over all rows of a gate into them."""
    k = tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_G, BLOCK_K), tl.float32)
    for r in tl.static_range(0, R, BLOCK_R):
        j = r + tl.arange(0, BLOCK_R)
        p = load_rows(p_ptr, first_row, last_row, j, R, BLOCK_G)
        if not PER_TOKEN:
            for t in range(first_row + BLOCK_G, last_row, BLOCK_G):
                p += load_rows(p_ptr, t, last_row, j, R, BLOCK_G)
        of_expert = ((j // RANK_OF_EXPERT)[:, None] == k[None, :]).to(tl.float32)
        sums = tl.dot(p, of_expert, sums, input_precision="ieee")
    return sums


@triton.jit(
    do_not_specialize=(
        "T", "d_in", "d_out", "rows_per_split", "num_gates", "rows_per_gate", "x_stride",
        "dy_stride", "threshold", "blocks_B", "blocks_A",
    ),
)  # fmt: skip
def gradients_kernel(
    x_ref,  # [T, d_in], descriptor or pointer, as the next three
    u_ref,  # [T, R_PADDED]
    dy_ref,  # [T, d_out]
    h_ref,  # [T, R_PADDED]
    p_ptr,  # [T, R]
    cu_seqlens_ptr,  # [G + 1]
    dA_ptr,  # [SPLITS, R, d_in]
    dB_ptr,  # [SPLITS, d_out, R]
    dgate_ptr,  # [G, K]
    seed_ptr,
    T,
    d_in,
    d_out,
    rows_per_split,
    num_gates,
    rows_per_gate,
    x_stride,
    dy_stride,
    threshold,
    blocks_B,  # how many programs there are of the first kind
    blocks_A,  # and of the second
    R: tl.constexpr,
    R_PADDED: tl.constexpr,
    RANK_OF_EXPERT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,  # a power of two, at least the number of experts
    BLOCK_G: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PACKED: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    MASKED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ALIGNED: tl.constexpr,
    OVERLAP: tl.constexpr,
    FLOAT32: tl.constexpr,
):
    if ALIGNED:  # a hint that the compiler believes: rows are whole units of 16 bytes
        x_stride, dy_stride = x_stride // 8 * 8, dy_stride // 8 * 8
        d_in, d_out = d_in // 8 * 8, d_out // 8 * 8
    block = tl.program_id(0)
    split = tl.program_id(1).to(tl.int64)
    first_rank = tl.program_id(2) * BLOCK_R
    j = first_rank + tl.arange(0, BLOCK_R)
    first_row = tl.program_id(1) * rows_per_split
    last_row = min(first_row + rows_per_split, T)
    if block < blocks_B:
        column = block * BLOCK_D
        total = column_block_sum(
            dy_ref, h_ref, seed_ptr, T, d_out, first_row, last_row, column, first_rank, dy_stride,
            threshold, R_PADDED, BLOCK_R, BLOCK_T, BLOCK_D, False, DESCRIPTORS, FLOAT32,
        )  # fmt: skip
        n = column + tl.arange(0, BLOCK_D)
        offset = split * d_out * R + (n[:, None].to(tl.int64) * R + j[None, :])
        mask = (n < d_out)[:, None] & (j < R)[None, :]
        tl.store(dB_ptr + offset, total.to(dB_ptr.dtype.element_ty), mask=mask)
    elif block < blocks_B + blocks_A:
        column = (block - blocks_B) * BLOCK_D
        total = column_block_sum(
            x_ref, u_ref, seed_ptr, T, d_in, first_row, last_row, column, first_rank, x_stride,
            threshold, R_PADDED, BLOCK_R, BLOCK_T, BLOCK_D, MASKED, DESCRIPTORS, FLOAT32,
        )  # fmt: skip
        d = column + tl.arange(0, BLOCK_D)
        offset = split * R * d_in + (j[:, None].to(tl.int64) * d_in + d[None, :])
        mask = (j < R)[:, None] & (d < d_in)[None, :]
        tl.store(dA_ptr + offset, total.T.to(dA_ptr.dtype.element_ty), mask=mask)
    elif (split == 0) & (first_rank == 0):
        gate = block - blocks_B - blocks_A
        if PER_TOKEN:
            first_row, last_row = gate * BLOCK_G, num_gates
        elif PACKED:
            first_row = tl.load(cu_seqlens_ptr + gate).to(tl.int32)
            last_row = tl.load(cu_seqlens_ptr + gate + 1).to(tl.int32)
        else:
            first_row, last_row = gate * rows_per_gate, (gate + 1) * rows_per_gate
        sums = gate_sums(
            p_ptr, first_row, last_row, R, RANK_OF_EXPERT, BLOCK_R, BLOCK_K, BLOCK_G, PER_TOKEN
        )
        NUM_EXPERTS: tl.constexpr = R // RANK_OF_EXPERT
        k = tl.arange(0, BLOCK_K)
        if PER_TOKEN:
            row = first_row + tl.arange(0, BLOCK_G)
            offset = row[:, None].to(tl.int64) * NUM_EXPERTS + k[None, :]
            mask = (row < num_gates)[:, None] & (k < NUM_EXPERTS)[None, :]
            tl.store(dgate_ptr + offset, sums, mask=mask)
        else:
            mask = k < NUM_EXPERTS
            tl.store(dgate_ptr + gate * NUM_EXPERTS + k, tl.sum(sums, 0), mask=mask)
    if OVERLAP and block == tl.num_programs(0) - 1:
        gdc_wait()  # this launch has not ended before the product has


def gradients(
    x: Tensor,
    u: Tensor,
    dy: Tensor,
    h: Tensor,
    p: Tensor,
    dA: Tensor,  # empty where nobody asks, as the next two
    dB: Tensor,
    dgate: Tensor,
    gating: Gating,
    dropout: Dropout | None,
    *,
    beside_product: bool,
) -> None:
    """Write dA, dB and dgate; ``beside_product`` where the launch before this one is ``linear``."""
    rows, d_in = x.shape
    d_out, rank = dy.shape[1], p.shape[1]
    device = current_device()
    role = "gradients" if dropout is None else "gradients dropout"
    config: PassConfig = choose(role, rows, rank, device)
    block_r = rank_block(rank)
    blocks_B = -(-d_out // config.block_d) if dB.numel() else 0
    blocks_A = -(-d_in // config.block_d) if dA.numel() else 0
    gates_per_block = _rows_of_p(block_r) if gating.per_token else 1
    blocks_gate = -(-gating.gate.shape[0] // gates_per_block) if dgate.numel() else 0
    blocks = blocks_B + blocks_A + blocks_gate
    if blocks == 0:
        return
    splits = _splits(blocks_B + blocks_A, rows, multiprocessors(device))
    rows_per_split = -(-rows // (splits * config.block_t)) * config.block_t
    splits = -(-rows // rows_per_split)
    sums = [t if splits == 1 else p.new_empty((splits, *t.shape)) for t in (dA, dB)]

    aligned = describable(x) and describable(dy)
    descriptors = aligned and has_copy_engine(device)
    overlap = beside_product and can_overlap(device) and not (splits > 1 and _memory_is_filled())
    gate, packed = gating.gate, gating.cu_seqlens is not None
    how = _settings(
        config, rank, h.shape[1], gate.shape[1], device, packed, gating.per_token,
        dropout is not None, descriptors, aligned, overlap, x.dtype == torch.float32,
    )  # fmt: skip
    p_or_offsets = p if gating.cu_seqlens is None else gating.cu_seqlens
    p_or_seed, threshold = (p, 0) if dropout is None else (dropout.seed, dropout.threshold)
    launch(
        how,
        (blocks, splits, -(-rank // block_r)),
        (x, u, dy, h, p, p_or_offsets, *sums, dgate, p_or_seed),
        (
            rows, d_in, d_out, rows_per_split, gate.shape[0], max(gating.rows_per_gate, 1),
            x.stride(0), dy.stride(0), threshold, blocks_B, blocks_A,
        ),
    )  # fmt: skip
    if splits > 1:
        for gradient, partial in zip((dA, dB), sums, strict=True):
            if gradient.numel():
                gradient.copy_(partial.sum(0))


@functools.lru_cache(maxsize=4096)
def _settings(
    config: PassConfig,
    rank: int,
    padded: int,
    experts: int,
    device: int,
    packed: bool,
    per_token: bool,
    masked: bool,
    descriptors: bool,
    aligned: bool,
    overlap: bool,
    float32: bool,
) -> Settings:
    block_r = rank_block(rank)
    tall, thin = ((config.block_t, config.block_d),), ((config.block_t, block_r),)
    return settings(
        gradients_kernel,
        {
            "R": rank,
            "R_PADDED": padded,
            "RANK_OF_EXPERT": rank // experts,
            "BLOCK_R": block_r,
            "BLOCK_K": max(16, power_of_two(experts)),
            "BLOCK_G": _rows_of_p(block_r),
            "BLOCK_T": config.block_t,
            "BLOCK_D": config.block_d,
            "PACKED": packed,
            "PER_TOKEN": per_token,
            "MASKED": masked,
            "DESCRIPTORS": descriptors,
            "ALIGNED": aligned,
            "OVERLAP": overlap,
            "FLOAT32": float32,
        },
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        blocks=(tall, thin, tall, thin) if descriptors else (),
        overlap=overlap,
    )


def _rows_of_p(block_r: int) -> int:
    """How many rows of p a program holds at once."""
    return 4096 // block_r


def _memory_is_filled() -> bool:
    """Whether new memory is the work of a kernel: partial sums may not be written beside that one."""
    deterministic: Any = torch.utils.deterministic  # torch's stub lacks the attribute
    return deterministic.fill_uninitialized_memory and torch.are_deterministic_algorithms_enabled()


def _splits(column_blocks: int, rows: int, programs: int) -> int:
    """In how many parts the rows are summed, where the columns alone occupy few multiprocessors."""
    if column_blocks == 0 or 2 * column_blocks >= programs:
        return 1
    return max(1, min(programs // column_blocks, rows // 512))
