"""The product of :mod:`linear` on Hopper: the same tiles and sums, with the fetching done by hand.

Triton fetches ahead inside one loop, whose steps are all alike. Here a ring of slots, each with room for
a block of x and one of W, is filled with whatever is used next, in this kernel's own order: across the
ends of tiles, also where a mask stands between two sums, and with blocks of h and of the factor only as
deep as the rank. Every sum is taken in the order of :mod:`linear`, so the results have the same bits.

Written in Gluon, the language in which Triton leaves layouts, copies and waiting to the author. It is
bound to a version of Triton; ``linear`` runs its own kernel elsewhere. Gluon has no interpreter:
``tests/ilora_kernels/gluon_on_cpu.py`` runs this code without a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ilora_kernels.backends.triton.adapter import rank_block
from ilora_kernels.backends.triton.configs import LinearConfig
from ilora_kernels.backends.triton.launch import SHARED_BYTES_FOR_PRODUCT, Settings, settings
from ilora_kernels.backends.triton.mask import keep_tile
from ilora_kernels.backends.triton.tiles import blocks_of, parts_of, tile_position


@gluon.jit
def place_of(tile, tiles, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, GROUP: gl.constexpr):
    """First row and column of a tile; those after the whole ones are half as wide."""
    whole_tiles, _, num_tiles_m, num_tiles_n = tiles
    half = gl.maximum(tile - whole_tiles, 0)
    whole = gl.minimum(tile, whole_tiles) + half // 2
    tile_m, tile_n = tile_position(whole, num_tiles_m, num_tiles_n, GROUP)
    return tile_m * BLOCK_M, tile_n * BLOCK_N + half % 2 * (BLOCK_N // 2)


# ---- The ring: where blocks of x or h arrive, where those of W or the factor, and a barrier a slot


@gluon.jit
def slot_as(slots, slot, desc):
    """A slot in the shape of the blocks of ``desc``."""
    return slots.index(slot)._reinterpret(desc.dtype, desc.block_type.shape, desc.layout)


@gluon.jit
def after(slot, phase, SLOTS: gl.constexpr):
    """The next slot, and the phase of its barrier, which turns with every round of the ring."""
    wraps = slot == SLOTS - 1
    return gl.where(wraps, 0, slot + 1), phase ^ wraps.to(gl.int32)


@gluon.jit
def before(slot, SLOTS: gl.constexpr):
    """The slot before."""
    return gl.where(slot == 0, SLOTS - 1, slot - 1)


@gluon.jit
def fill(slot, ring, left_desc, right_desc, row, column, depth, BACKWARD: gl.constexpr):
    """Have a block of each matrix copied, both from ``depth`` on along the axis that is summed over."""
    left_slots, right_slots, full = ring
    arrival = full.index(slot)
    mbarrier.expect(arrival, left_desc.block_type.nbytes + right_desc.block_type.nbytes)
    left, right = slot_as(left_slots, slot, left_desc), slot_as(right_slots, slot, right_desc)
    tma.async_copy_global_to_shared(left_desc, [row, depth], arrival, left)
    if BACKWARD:
        tma.async_copy_global_to_shared(right_desc, [depth, column], arrival, right)
    else:
        tma.async_copy_global_to_shared(right_desc, [column, depth], arrival, right)


@gluon.jit
def fill_next(
    slot, cursor, feed,
    BLOCK_N: gl.constexpr, RANK_STEPS: gl.constexpr, GROUP: gl.constexpr,
    PROGRAMS: gl.constexpr, BACKWARD: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Fill a slot that nobody reads any more, and move the cursor.

    The cursor is a tile, where that lies, and how many of its slots have been filled: one a step over
    the depth, and those over the rank after them or, under a mask, before them. A program's first tile
    always has them after: until then h may not be there. ``feed`` is what stays: the ring, the matrices,
    the numbers of tiles, and how many steps over the depth each takes.
    """
    ring, descs, tiles, steps = feed
    x_desc, w_desc, w_half_desc, h_desc, factor_desc, factor_half_desc = descs
    whole_tiles, all_tiles = tiles[0], tiles[1]
    tile, row, column, filled = cursor
    BLOCK_M: gl.constexpr = x_desc.block_type.shape[0]
    BLOCK_K: gl.constexpr = x_desc.block_type.shape[1]
    BLOCK_R: gl.constexpr = h_desc.block_type.shape[1]
    if tile < all_tiles:
        step = filled
        if MASKED and tile >= PROGRAMS:
            step = gl.where(filled < RANK_STEPS, steps + filled, filled - RANK_STEPS)
        if step < steps:
            depth = step * BLOCK_K
            if tile < whole_tiles:
                fill(slot, ring, x_desc, w_desc, row, column, depth, BACKWARD)
            else:
                fill(slot, ring, x_desc, w_half_desc, row, column, depth, BACKWARD)
        else:
            gdc_wait()  # h is there from here on
            gdc_launch_dependents()  # and so is what the gradients need
            depth = (step - steps) * BLOCK_R
            if tile < whole_tiles:
                fill(slot, ring, h_desc, factor_desc, row, column, depth, BACKWARD)
            else:
                fill(slot, ring, h_desc, factor_half_desc, row, column, depth, BACKWARD)
        filled += 1
        if filled == steps + RANK_STEPS:
            filled = 0
            tile += PROGRAMS
            row, column = place_of(tile, tiles, BLOCK_M, BLOCK_N, GROUP)
    return tile, row, column, filled


# ---- The tiles


@gluon.jit
def multiplied(
    accumulator, slot, ring, left_desc, right_desc, TRANSPOSED: gl.constexpr, PENDING: gl.constexpr
):
    """Add the product of a slot's blocks; return when all but the last PENDING products are done."""
    left_slots, right_slots = ring[0], ring[1]
    right = slot_as(right_slots, slot, right_desc)
    if TRANSPOSED:
        right = right.permute((1, 0))
    left = slot_as(left_slots, slot, left_desc)
    accumulator = warpgroup_mma(left, right, accumulator, is_async=True)
    return warpgroup_mma_wait(PENDING, deps=(accumulator,))


@gluon.jit
def masked(tile, row, column, seed_ptr, threshold, layout: gl.constexpr):
    """``mask ⊙ tile`` for a tile of dX whose corner is ``[row, column]``."""
    rows = row + gl.arange(0, tile.shape[0], gl.SliceLayout(1, layout))[:, None]
    columns = gl.arange(0, tile.shape[1], gl.SliceLayout(0, layout))[None, :]
    return gl.where(keep_tile(seed_ptr, rows, column, columns, threshold), tile, 0.0)


@gluon.jit
def compute_tiles(
    begin, end, slot, phase, cursor, feed, w_desc, factor_desc, y_desc, y_slots, bias_ptr, seed_ptr,
    N, threshold,
    WIDTH: gl.constexpr,  # of these tiles: BLOCK_N or half of that
    BLOCK_N: gl.constexpr, RANK_STEPS: gl.constexpr, GROUP: gl.constexpr,
    PROGRAMS: gl.constexpr, BACKWARD: gl.constexpr, HAS_BIAS: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Write every PROGRAMS-th tile from ``begin`` on; return what is next in the ring, and the cursor."""
    ring, descs, tiles, steps = feed
    left_slots, right_slots, full = ring
    x_desc, h_desc = descs[0], descs[3]
    BLOCK_M: gl.constexpr = x_desc.block_type.shape[0]
    PART: gl.constexpr = y_desc.block_type.shape[1]
    SLOTS: gl.constexpr = full.shape[0]
    BUFFERS: gl.constexpr = y_slots.shape[0]
    WARPS: gl.constexpr = gl.num_warps()
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, WIDTH, 16])
    of_part: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, PART, 16])
    for tile in range(begin, end, PROGRAMS):
        row, column = place_of(tile, tiles, BLOCK_M, BLOCK_N, GROUP)
        accumulator = gl.zeros((BLOCK_M, WIDTH), gl.float32, layout)
        if MASKED and tile >= PROGRAMS:
            for _r in gl.static_range(RANK_STEPS):
                mbarrier.wait(full.index(slot), phase)
                accumulator = multiplied(accumulator, slot, ring, h_desc, factor_desc, False, 0)
                cursor = fill_next(
                    slot, cursor, feed, BLOCK_N, RANK_STEPS, GROUP, PROGRAMS, BACKWARD, MASKED,
                )  # fmt: skip
                slot, phase = after(slot, phase, SLOTS)
            accumulator = masked(accumulator, row, column, seed_ptr, threshold, layout)

        for step in range(steps):
            mbarrier.wait(full.index(slot), phase)
            accumulator = multiplied(accumulator, slot, ring, x_desc, w_desc, not BACKWARD, 1)
            if step > 0:  # the slot before this one has been read
                cursor = fill_next(
                    before(slot, SLOTS), cursor, feed,
                    BLOCK_N, RANK_STEPS, GROUP, PROGRAMS, BACKWARD, MASKED,
                )  # fmt: skip
            slot, phase = after(slot, phase, SLOTS)
        if not MASKED:
            for _r in gl.static_range(RANK_STEPS):
                mbarrier.wait(full.index(slot), phase)
                accumulator = multiplied(
                    accumulator, slot, ring, h_desc, factor_desc, not BACKWARD, 1
                )
                cursor = fill_next(
                    before(slot, SLOTS), cursor, feed,
                    BLOCK_N, RANK_STEPS, GROUP, PROGRAMS, BACKWARD, MASKED,
                )  # fmt: skip
                slot, phase = after(slot, phase, SLOTS)
        accumulator = warpgroup_mma_wait(0, deps=(accumulator,))
        cursor = fill_next(
            before(slot, SLOTS), cursor, feed, BLOCK_N, RANK_STEPS, GROUP, PROGRAMS, BACKWARD, MASKED,
        )  # fmt: skip

        PARTS: gl.constexpr = WIDTH // PART
        parts = parts_of(accumulator, PARTS)
        for i in gl.static_range(PARTS):
            part = gl.convert_layout(parts[i], of_part)
            if HAS_BIAS:
                columns = column + i * PART + gl.arange(0, PART, gl.SliceLayout(0, of_part))
                bias = gl.load(bias_ptr + columns, mask=columns < N, other=0.0)
                part += bias.to(gl.float32)[None, :]
            if MASKED and tile < PROGRAMS:
                low_rank = gl.zeros((BLOCK_M, PART), gl.float32, of_part)
                its_slot, its_phase = slot, phase
                for _r in gl.static_range(RANK_STEPS):
                    mbarrier.wait(full.index(its_slot), its_phase)
                    u = slot_as(left_slots, its_slot, h_desc)
                    factor = slot_as(right_slots, its_slot, factor_desc).slice(i * PART, PART, 1)
                    low_rank = warpgroup_mma(u, factor, low_rank, is_async=True)
                    low_rank = warpgroup_mma_wait(0, deps=(low_rank,))
                    its_slot, its_phase = after(its_slot, its_phase, SLOTS)
                first = column + i * PART
                part += masked(low_rank, row, first, seed_ptr, threshold, of_part)
            tma.store_wait(BUFFERS - 1)  # the buffer of this part has been copied out
            buffer = y_slots.index(i % BUFFERS)
            buffer.store(part.to(y_desc.dtype))
            fence_async_shared()
            tma.async_copy_shared_to_global(y_desc, [row, column + i * PART], buffer)
        if MASKED and tile < PROGRAMS:
            for _r in gl.static_range(RANK_STEPS):
                cursor = fill_next(
                    slot, cursor, feed, BLOCK_N, RANK_STEPS, GROUP, PROGRAMS, BACKWARD, MASKED,
                )  # fmt: skip
                slot, phase = after(slot, phase, SLOTS)
    return slot, phase, cursor


@gluon.jit(do_not_specialize=("T", "N", "K", "threshold", "whole_tiles", "half_tiles"))
def linear_hopper_kernel(
    x_desc,  # as in linear_kernel
    w_desc,
    w_half_desc,
    h_desc,
    factor_desc,
    factor_half_desc,
    y_desc,  # in blocks of one part of a tile
    bias_ptr,
    seed_ptr,
    T,
    N,
    K,
    threshold,
    whole_tiles,
    half_tiles,
    BLOCK_N: gl.constexpr,
    RANK_STEPS: gl.constexpr,  # in blocks of h
    GROUP: gl.constexpr,
    PROGRAMS: gl.constexpr,
    SLOTS: gl.constexpr,
    BACKWARD: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    MASKED: gl.constexpr,
):
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=1)
    x: gl.constexpr = x_desc.block_type.shape
    w: gl.constexpr = w_desc.block_type.shape
    y: gl.constexpr = y_desc.block_type.shape
    BLOCK_M: gl.constexpr = x[0]
    BUFFERS: gl.constexpr = BLOCK_N // 2 // y[1]  # half a tile at once is on its way out
    left_slots = gl.allocate_shared_memory(x_desc.dtype, [SLOTS, x[0], x[1]], x_desc.layout)
    right_slots = gl.allocate_shared_memory(w_desc.dtype, [SLOTS, w[0], w[1]], w_desc.layout)
    y_slots = gl.allocate_shared_memory(y_desc.dtype, [BUFFERS, y[0], y[1]], y_desc.layout)

    descs = (x_desc, w_desc, w_half_desc, h_desc, factor_desc, factor_half_desc)
    num_tiles_m, num_tiles_n = gl.cdiv(T, BLOCK_M), gl.cdiv(N, BLOCK_N)
    tiles = (whole_tiles, whole_tiles + half_tiles, num_tiles_m, num_tiles_n)
    feed = ((left_slots, right_slots, full), descs, tiles, gl.cdiv(K, x[1]))
    program = gl.program_id(0)
    row, column = place_of(program, tiles, BLOCK_M, BLOCK_N, GROUP)
    cursor = (program, row, column, gl.to_tensor(0))
    for slot in gl.static_range(SLOTS):
        cursor = fill_next(
            slot, cursor, feed, BLOCK_N, RANK_STEPS, GROUP, PROGRAMS, BACKWARD, MASKED,
        )  # fmt: skip
    slot, phase, cursor = compute_tiles(
        program, whole_tiles, gl.to_tensor(0), gl.to_tensor(0), cursor, feed,
        w_desc, factor_desc, y_desc, y_slots, bias_ptr, seed_ptr, N, threshold,
        BLOCK_N, BLOCK_N, RANK_STEPS, GROUP, PROGRAMS, BACKWARD, HAS_BIAS, MASKED,
    )  # fmt: skip
    compute_tiles(
        whole_tiles + program, whole_tiles + half_tiles, slot, phase, cursor, feed,
        w_half_desc, factor_half_desc, y_desc, y_slots, bias_ptr, seed_ptr, N, threshold,
        BLOCK_N // 2, BLOCK_N, RANK_STEPS, GROUP, PROGRAMS, BACKWARD, HAS_BIAS, MASKED,
    )  # fmt: skip
    tma.store_wait(0)


# A thread's, where they suffice: the rest of a multiprocessor's is enough for 128 threads of 192 beside.
_REGISTERS = 160


def hopper_settings(
    config: LinearConfig,
    rank: int,
    programs: int,
    device: int,
    *,
    backward: bool,
    masked: bool,
    has_bias: bool,
) -> Settings | None:
    """How to launch the kernel; None where the ring is too small for the rank, or too large for the GPU.

    Under a mask all blocks of the rank are in the ring at once, at the end of a program's first tile.
    """
    block_r = rank_block(rank, limit=config.block_k)
    rank_steps = -(-rank // block_r)
    too_small = masked and rank_steps > config.num_stages
    if too_small or _shared_bytes(config) > SHARED_BYTES_FOR_PRODUCT:
        return None
    return settings(
        linear_hopper_kernel,
        {
            "BLOCK_N": config.block_n,
            "RANK_STEPS": rank_steps,
            "GROUP": config.group,
            "PROGRAMS": programs,
            "SLOTS": config.num_stages,
            "BACKWARD": backward,
            "HAS_BIAS": has_bias,
            "MASKED": masked,
        },
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        blocks=blocks_of(config, block_r, backward),
        overlap=True,
        registers=None if masked or has_bias else _REGISTERS,
        describe=described,
    )


def _shared_bytes(config: LinearConfig) -> int:
    """Of the ring, its barriers, and half a tile on its way out, in numbers of two bytes."""
    slot = (config.block_m + config.block_n) * config.block_k * 2
    return config.num_stages * (slot + 8) + config.block_m * config.block_n // 2 * 2


def described(matrix: Tensor, block: tuple[int, ...]) -> TensorDescriptor:
    """The descriptor of a matrix, to which in Gluon the layout of its blocks belongs."""
    kind = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[matrix.dtype]
    layout = gl.NVMMASharedLayout.get_default_for(list(block), kind)
    shape, strides = list(matrix.shape), list(matrix.stride())
    return TensorDescriptor(matrix, shape, strides, list(block), layout)
