"""First half of the low-rank path: ``h = (x̂ Aᵀ) ⊙ G``, and its mirror in the backward pass.

Forward, over x:      xa = x̂ Aᵀ,       h = xa ⊙ G
Backward, over dY:    v  = dY B,       u = v ⊙ G / (1-p),   h = xa ⊙ G,   p = s · xa ⊙ v

``G[t, j] = s · gate[b(t), j // r]``. ``x̂`` is x with the dropped elements zero; its factor 1/(1-p)
is applied to the float32 sum, and to u for the two products that u enters. ``p`` summed over an
instance's rows and an expert's columns is that gate's gradient.

The kernel reads one tall matrix once and writes next to nothing. Its blocks are small on purpose:
launched before the frozen product, which it releases at once, it runs *beside* it on the same
multiprocessors, on the bandwidth that the product leaves idle.

There each of its matrix instructions, of up to 64 rows and 16 columns of x, waits for its turn behind
those of the product, and their number is how long it takes. Under dropout, where masking takes time as
well, few rows are stacked to 64: each is cut in 2 or 4 parts that count as rows of their own and meet
all parts of A side by side; of the products, those of part i with part i are added.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ilora_kernels.backends.triton.accumulate import add_product
from ilora_kernels.backends.triton.adapter import Dropout, Gating, padded_rank, rank_block
from ilora_kernels.backends.triton.configs import PassConfig, choose, multiprocessors
from ilora_kernels.backends.triton.launch import (
    Blocks,
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
def instance_of(rows, cu_seqlens_ptr, num_gates, rows_per_gate, PACKED: tl.constexpr):
    """b(t): the gate that governs each row."""
    if PACKED:
        started = tl.zeros(rows.shape, tl.int32)  # how many sequences after the first have begun
        for first in range(1, num_gates, 32):
            index = first + tl.arange(0, 32)
            start = tl.load(cu_seqlens_ptr + index, mask=index < num_gates, other=2147483647)
            started += tl.sum((rows[:, None] >= start[None, :]).to(tl.int32), 1)
        return started
    else:
        return rows // rows_per_gate


@triton.jit
def sum_of_parts(product, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, PARTS: tl.constexpr):
    """``[T · PARTS, R · PARTS]`` -> ``[T, R]``: the sum of what part i of a row makes of part i of A."""
    by_part = product.reshape(BLOCK_T, PARTS, BLOCK_R, PARTS)
    i = tl.arange(0, PARTS)
    alike = (i[:, None] == i[None, :])[None, :, None, :]
    return tl.sum(tl.sum(tl.where(alike, by_part, 0.0), 3), 1)


@triton.jit(
    do_not_specialize=(
        "T", "D", "num_gates", "rows_per_gate", "x_stride", "factor_stride", "threshold",
    ),
)  # fmt: skip
def shrink_kernel(
    x_ref,  # [T, D], descriptor or pointer: x, or dY in the backward pass; in parts [T, PARTS, D/PARTS]
    factor_ref,  # the same: lora_A [R, D] or [R, PARTS, D/PARTS]; lora_B [D, R] in the backward pass
    gate_ptr,  # [G, K]
    cu_seqlens_ptr,  # [G + 1]
    xa_ptr,  # [T, R]; written in the forward pass, read in the backward pass
    h_ptr,  # [T, R_PADDED]
    u_ptr,  # [T, R_PADDED], backward pass
    p_ptr,  # [T, R], backward pass
    seed_ptr,
    T,
    D,
    num_gates,
    rows_per_gate,
    x_stride,
    factor_stride,
    scaling,
    threshold,
    keep_scale,
    R: tl.constexpr,
    R_PADDED: tl.constexpr,
    RANK_OF_EXPERT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    BACKWARD: tl.constexpr,
    PACKED: tl.constexpr,
    MASKED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ALIGNED: tl.constexpr,
    OVERLAP: tl.constexpr,
    FLOAT32: tl.constexpr,
):
    if OVERLAP:
        gdc_wait()  # this launch was prepared while the kernel before it ran
        gdc_launch_dependents()  # the product may start now; it waits for h where it needs it
    if ALIGNED:  # a hint that the compiler believes: rows are whole units of 16 bytes
        x_stride, factor_stride, D = x_stride // 8 * 8, factor_stride // 8 * 8, D // 8 * 8
    first_rank = tl.program_id(1) * BLOCK_R
    j = first_rank + tl.arange(0, BLOCK_R)
    for block in range(tl.program_id(0), tl.cdiv(T, BLOCK_T), tl.num_programs(0)):
        first_row = block * BLOCK_T
        rows = first_row + tl.arange(0, BLOCK_T)

        # xa or v: one pass over the rows of x or dY.
        product = tl.zeros((BLOCK_T * PARTS, BLOCK_R * PARTS), tl.float32)
        for d in range(0, D // PARTS, BLOCK_D):
            columns = d + tl.arange(0, BLOCK_D)
            if PARTS > 1:
                x = x_ref.load([first_row, 0, d]).reshape(BLOCK_T * PARTS, BLOCK_D)
                factor = factor_ref.load([first_rank, 0, d]).reshape(BLOCK_R * PARTS, BLOCK_D).T
            elif DESCRIPTORS:
                x = x_ref.load([first_row, d])
                if BACKWARD:
                    factor = factor_ref.load([d, first_rank])
                else:
                    factor = factor_ref.load([first_rank, d]).T
            else:
                x = tl.load(
                    x_ref + (rows[:, None].to(tl.int64) * x_stride + columns[None, :]),
                    mask=(rows < T)[:, None] & (columns < D)[None, :],
                    other=0.0,
                )
                if BACKWARD:
                    offset = columns[:, None] * factor_stride + j[None, :]
                else:
                    offset = j[None, :] * factor_stride + columns[:, None]
                in_factor = (columns < D)[:, None] & (j < R)[None, :]
                factor = tl.load(factor_ref + offset, mask=in_factor, other=0.0)
            if MASKED:
                m = tl.arange(0, BLOCK_T * PARTS)[:, None]
                first_column = m % PARTS * (D // PARTS) + d
                i = tl.arange(0, BLOCK_D)[None, :]
                keep = keep_tile(seed_ptr, first_row + m // PARTS, first_column, i, threshold)
                x = tl.where(keep, x, 0.0)
            product = add_product(product, x, factor, T, FLOAT32, MASKED)
        if PARTS > 1:
            product = sum_of_parts(product, BLOCK_T, BLOCK_R, PARTS)
        if MASKED:
            product *= keep_scale

        # The gates, in float32.
        valid = (rows < T)[:, None] & (j < R)[None, :]
        instance = instance_of(rows, cu_seqlens_ptr, num_gates, rows_per_gate, PACKED)
        NUM_EXPERTS: tl.constexpr = R // RANK_OF_EXPERT
        gate_offset = instance[:, None] * NUM_EXPERTS + (j // RANK_OF_EXPERT)[None, :]
        row_gate = scaling * tl.load(gate_ptr + gate_offset, mask=valid, other=0.0)

        thin = rows[:, None].to(tl.int64) * R + j[None, :]
        padded = rows[:, None].to(tl.int64) * R_PADDED + j[None, :]
        in_padded = (rows < T)[:, None] & (j < R_PADDED)[None, :]
        if BACKWARD:
            xa = tl.load(xa_ptr + thin, mask=valid, other=0.0)
            u = product * row_gate * keep_scale
            tl.store(u_ptr + padded, u.to(u_ptr.dtype.element_ty), mask=in_padded)
            tl.store(p_ptr + thin, scaling * xa * product, mask=valid)
        else:
            xa = product
            tl.store(xa_ptr + thin, xa, mask=valid)
        h = xa * row_gate
        tl.store(h_ptr + padded, h.to(h_ptr.dtype.element_ty), mask=in_padded)


def shrink(
    x: Tensor, lora_A: Tensor, gating: Gating, dropout: Dropout | None, *, beside_product: bool
) -> tuple[Tensor, Tensor]:
    """Return ``xa [T, R]`` in float32 and ``h [T, padded R]`` in x's dtype.

    ``beside_product`` where ``linear`` is launched next: the blocks are then small enough for both.
    """
    rank = lora_A.shape[0]
    xa = gating.gate.new_empty((x.shape[0], rank))
    h = x.new_empty((x.shape[0], padded_rank(rank)))
    role = "shrink" if dropout is None else "shrink dropout"
    _launch(x, lora_A, rank, gating, dropout, xa, h, h, xa, role, beside_product)
    return xa, h


def shrink_backward(
    dy: Tensor,
    lora_B: Tensor,
    xa: Tensor,
    gating: Gating,
    dropout: Dropout | None,
    *,
    beside_product: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``u`` and ``h [T, padded R]`` in dY's dtype and ``p [T, R]`` in float32."""
    rank = xa.shape[1]
    h, u = (dy.new_empty((dy.shape[0], padded_rank(rank))) for _ in range(2))
    p = xa.new_empty(xa.shape)
    _launch(dy, lora_B, rank, gating, dropout, xa, h, u, p, "shrink backward", beside_product)
    return u, h, p


def _launch(
    x: Tensor,
    factor: Tensor,
    rank: int,
    gating: Gating,
    dropout: Dropout | None,
    xa: Tensor,
    h: Tensor,
    u: Tensor,
    p: Tensor,
    role: str,
    beside_product: bool,
) -> None:
    rows, width = x.shape
    gate, cu_seqlens, rows_per_gate, scaling = gating
    backward, masked = role == "shrink backward", role == "shrink dropout"
    device = current_device()
    if not (beside_product or masked or x.dtype == torch.float32):
        role = "shrink alone"
    config: PassConfig = choose(role, rows, rank, device)
    aligned = describable(x) and describable(factor)
    descriptors = aligned and has_copy_engine(device)
    parts = 1
    if masked and descriptors and x.dtype != torch.float32:
        parts = _parts(config.block_t, rank, width)
    if parts > 1:
        x, factor = x.view(rows, parts, -1), factor.view(rank, parts, -1)
    how, grid = _plan(
        config, rows, rank, parts, h.shape[1], gate.shape[1], multiprocessors(device), device,
        beside_product, backward, cu_seqlens is not None, masked, descriptors, aligned,
        can_overlap(device), x.dtype == torch.float32,
    )  # fmt: skip
    gate_or_offsets = gate if cu_seqlens is None else cu_seqlens
    gate_or_seed, threshold, keep_scale = (gate, 0, 1.0) if dropout is None else dropout
    launch(
        how,
        grid,
        (x, factor, gate, gate_or_offsets, xa, h, u, p, gate_or_seed),
        (
            rows, width, gate.shape[0], max(rows_per_gate, 1), x.stride(0), factor.stride(0),
            scaling, threshold, keep_scale,
        ),
    )  # fmt: skip


def _parts(block_t: int, rank: int, width: int) -> int:
    """In how many parts a row is cut, so that a block has the 64 rows of a matrix instruction.

    Only to rank 16: the products that do not count are ``parts`` times those that do. And only where
    each part is whole units of the copy engine.
    """
    parts = max(1, 64 // block_t)
    return parts if rank <= 16 and width % (8 * parts) == 0 else 1


@functools.lru_cache(maxsize=4096)
def _plan(
    config: PassConfig,
    rows: int,
    rank: int,
    parts: int,
    padded: int,
    experts: int,
    multiprocessors: int,
    device: int,
    beside_product: bool,
    backward: bool,
    packed: bool,
    masked: bool,
    descriptors: bool,
    aligned: bool,
    overlap: bool,
    float32: bool,
) -> tuple[Settings, tuple[int, int, int]]:
    """What a launch consists of beside its tensors and numbers: settings and grid."""
    blocks = -(-rows // config.block_t)
    # Beside the product, no more programs than it has: one on each multiprocessor.
    programs = min(multiprocessors, blocks) if beside_product else blocks
    block_r, depth = rank_block(rank), config.block_d
    blocks_of: Blocks = ()
    if parts > 1:
        blocks_of = (((config.block_t, parts, depth),), ((block_r, parts, depth),))
    elif descriptors:
        factor_block = (depth, block_r) if backward else (block_r, depth)
        blocks_of = (((config.block_t, depth),), (factor_block,))
    how = settings(
        shrink_kernel,
        {
            "R": rank,
            "R_PADDED": padded,
            "RANK_OF_EXPERT": rank // experts,
            "BLOCK_R": block_r,
            "BLOCK_T": config.block_t,
            "BLOCK_D": depth,
            "PARTS": parts,
            "BACKWARD": backward,
            "PACKED": packed,
            "MASKED": masked,
            "DESCRIPTORS": descriptors,
            "ALIGNED": aligned,
            "OVERLAP": overlap,
            "FLOAT32": float32,
        },
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        blocks=blocks_of,
        overlap=overlap,
    )
    return how, (programs, -(-rank // block_r), 1)
