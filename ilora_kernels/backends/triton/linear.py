"""The frozen product with the low-rank one riding along: ``y = x Wᵀ + bias + h Bᵀ``.

Forward:    y  = x Wᵀ + bias + h Bᵀ
Backward:   dX = dY W + mask ⊙ (u A)

``h Bᵀ`` is one more step of the same inner product: where the frozen product sums over d_in in steps
of BLOCK_K, the adapter adds a step over the rank, into the same accumulators. Nothing is read or
written again. It is a step of the same loop, with h and B in the place of x and W, so that they are
fetched ahead as those are; past their last columns the copy engine fills in zeros. Under dropout the
mask stands between the two sums of dX: there the low-rank one comes first, is masked in the
accumulators, and the frozen one is added to it.

One program a multiprocessor walks over the tiles of y, in an order that keeps a band of x in cache.
Where the last round of tiles would leave most multiprocessors idle, its tiles are cut in two.

On Hopper the same is computed by ``linear_hopper``, which takes a little less time for it.

h is computed by the kernel launched before this one, which still runs while this one starts. A
program waits for it before it first fetches some, nearly a tile's worth of arithmetic later; so the first
tile of a program adds its low-rank part at the end, under dropout too.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ilora_kernels.backends.triton.adapter import Dropout, rank_block
from ilora_kernels.backends.triton.configs import (
    LinearConfig,
    choose,
    fusing_pays,
    multiprocessors,
    tile_counts,
)
from ilora_kernels.backends.triton.launch import (
    Settings,
    can_flatten,
    can_overlap,
    current_device,
    describable,
    has_hopper_kernels,
    holds_product,
    launch,
    settings,
)
from ilora_kernels.backends.triton.mask import keep_tile
from ilora_kernels.backends.triton.tiles import blocks_of, parts_of, tile_position


@triton.jit
def masked_low_rank(
    h_desc, factor_desc, seed_ptr, row, column, threshold,
    RANK: tl.constexpr, BLOCK_R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``mask ⊙ (u A)`` for a block of dX; u carries the factor 1/(1-p)."""
    low_rank = tl.zeros((ROWS, COLUMNS), tl.float32)
    # RANK, but the compiler must not know: of a loop it fetches both operands at once, ahead.
    end = tl.where(threshold >= 0, RANK, 0)
    for r in tl.range(0, end, BLOCK_R, num_stages=2):
        low_rank = tl.dot(h_desc.load([row, r]), factor_desc.load([r, column]), low_rank)
    rows = row + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    return tl.where(keep_tile(seed_ptr, rows, column, columns, threshold), low_rank, 0.0)


@triton.jit
def compute_tiles(
    x_desc, w_desc, h_desc, factor_desc, factor_part_desc, y_desc, bias_ptr, seed_ptr,
    T, N, K, threshold,
    begin, end,  # tiles of this width; tile i lies in the whole tile begin_whole + i // PER_WHOLE
    begin_whole,
    late,  # until which tile u may not be there yet when the tile begins
    RANK: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PER_WHOLE: tl.constexpr, PART: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
    BACKWARD: tl.constexpr, HAS_BIAS: tl.constexpr, MASKED: tl.constexpr, OVERLAP: tl.constexpr,
    AHEAD: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """Write every PROGRAMS-th tile from ``begin`` on."""
    num_tiles_m = tl.cdiv(T, BLOCK_M)
    num_tiles_n = tl.cdiv(N, BLOCK_N * PER_WHOLE)
    steps = tl.cdiv(K, BLOCK_K)
    low_rank_steps = 0 if MASKED else tl.cdiv(RANK, BLOCK_K)
    for tile in tl.range(begin, end, PROGRAMS, flatten=FLATTEN):
        whole = begin_whole + tile // PER_WHOLE
        tile_m, tile_n = tile_position(whole, num_tiles_m, num_tiles_n, GROUP)
        row = tile_m * BLOCK_M
        column = (tile_n * PER_WHOLE + tile % PER_WHOLE) * BLOCK_N
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if MASKED and tile >= late:
            accumulator = masked_low_rank(
                h_desc, factor_desc, seed_ptr, row, column, threshold,
                RANK, BLOCK_R, BLOCK_M, BLOCK_N,
            )  # fmt: skip

        for k in range(steps + low_rank_steps):
            left, right, position = x_desc, w_desc, k * BLOCK_K
            if not MASKED:
                if k >= steps:
                    left, right, position = h_desc, factor_desc, (k - steps) * BLOCK_K
                if OVERLAP and k == steps - AHEAD:
                    gdc_wait()  # h is there from here on; it is fetched fewer than AHEAD steps early
            x = left.load([row, position])
            if BACKWARD:
                w = right.load([position, column])
            else:
                w = right.load([column, position]).T
            accumulator = tl.dot(x, w, accumulator)

        if OVERLAP:
            if MASKED:
                gdc_wait()
            gdc_launch_dependents()  # h is there, and so is what the gradients need

        # The tile leaves in parts, so that shared memory has room for the stages of the loads.
        PARTS: tl.constexpr = BLOCK_N // PART
        parts = parts_of(accumulator, PARTS)
        for i in tl.static_range(PARTS):
            part = parts[i]
            first = column + i * PART
            if HAS_BIAS:
                columns = first + tl.arange(0, PART)
                bias = tl.load(bias_ptr + columns, mask=columns < N, other=0.0)
                part += bias.to(tl.float32)[None, :]
            if MASKED and tile < late:
                part += masked_low_rank(
                    h_desc, factor_part_desc, seed_ptr, row, first, threshold,
                    RANK, BLOCK_R, BLOCK_M, PART,
                )  # fmt: skip
            y_desc.store([row, first], part.to(y_desc.dtype))


@triton.jit(do_not_specialize=("T", "N", "K", "threshold", "whole_tiles", "half_tiles"))
def linear_kernel(
    x_desc,  # [T, K]: x, or dY in the backward pass
    w_desc,  # [N, K]: the weight; in the backward pass, read as [K, N]
    w_half_desc,  # the same in blocks of half a tile
    h_desc,  # [T, RANK]: h, or u
    factor_desc,  # lora_B [N, R], or lora_A [R, N] in the backward pass
    factor_half_desc,  # the same in blocks of half a tile
    factor_part_desc,  # and of one part
    y_desc,  # [T, N]: y, or dX
    bias_ptr,  # [N]
    seed_ptr,
    T,
    N,
    K,
    threshold,
    whole_tiles,
    half_tiles,  # after the whole ones
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PART: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BACKWARD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MASKED: tl.constexpr,
    OVERLAP: tl.constexpr,
    AHEAD: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    if OVERLAP and K <= (AHEAD - 1) * BLOCK_K:
        gdc_wait()  # so few steps may all be fetched at once
    program = tl.program_id(0)
    compute_tiles(
        x_desc, w_desc, h_desc, factor_desc, factor_part_desc, y_desc, bias_ptr, seed_ptr,
        T, N, K, threshold, program, whole_tiles, 0, PROGRAMS,
        RANK, BLOCK_R, BLOCK_M, BLOCK_N, BLOCK_K, 1, PART, GROUP, PROGRAMS,
        BACKWARD, HAS_BIAS, MASKED, OVERLAP, AHEAD, FLATTEN,
    )  # fmt: skip
    late = tl.where(whole_tiles == 0, PROGRAMS, 0)
    compute_tiles(
        x_desc, w_half_desc, h_desc, factor_half_desc, factor_part_desc, y_desc, bias_ptr, seed_ptr,
        T, N, K, threshold, program, half_tiles, whole_tiles, late,
        RANK, BLOCK_R, BLOCK_M, BLOCK_N // 2, BLOCK_K, 2, PART, GROUP, PROGRAMS,
        BACKWARD, HAS_BIAS, MASKED, OVERLAP, AHEAD, FLATTEN,
    )  # fmt: skip


def _role(backward: bool, masked: bool) -> str:
    return "linear" + " backward" * backward + " dropout" * masked


def can_fuse(x: Tensor, weight: Tensor, y: Tensor, rank: int) -> bool:
    """Whether this kernel takes these matrices, and beats the library's product with ``delta``."""
    device = current_device()
    if not holds_product(device) or x.dtype == torch.float32:
        return False
    if y.shape[1] % 8 or not (describable(x) and describable(weight)):  # y is new: nothing to see
        return False
    config = choose("linear", x.shape[0], rank, device)
    return fusing_pays(*y.shape, x.shape[1], (config.block_m, config.block_n), device)


def linear(
    x: Tensor,  # [T, K]: x, or dY in the backward pass
    weight: Tensor,
    h: Tensor,  # [T, padded R]: h, or u
    factor: Tensor,  # lora_B, or lora_A in the backward pass
    y: Tensor,  # [T, N]: y, or dX
    bias: Tensor | None,
    dropout: Dropout | None,
    *,
    backward: bool,
) -> None:
    """Write y; launched after the kernel that writes h, it starts before that one has ended."""
    rows, depth = x.shape
    columns, rank = y.shape[1], h.shape[1]
    masked = dropout is not None and backward
    device = current_device()
    config: LinearConfig = choose(_role(backward, masked), rows, rank, device)
    how, grid, numbers = _plan(
        config, rows, columns, depth, rank, multiprocessors(device), device, backward, masked,
        bias is not None, can_overlap(device),
    )  # fmt: skip
    y_or_bias = y if bias is None else bias
    y_or_seed, threshold = (y, 0) if dropout is None else (dropout.seed, dropout.threshold)
    tensors = (x, weight, h, factor, y, y_or_bias, y_or_seed)
    launch(how, grid, tensors, (rows, columns, depth, threshold, *numbers))


@functools.lru_cache(maxsize=4096)
def _plan(
    config: LinearConfig,
    rows: int,
    columns: int,
    depth: int,
    rank: int,
    programs: int,
    device: int,
    backward: bool,
    masked: bool,
    has_bias: bool,
    overlap: bool,
) -> tuple[Settings, tuple[int, int, int], tuple[int, int]]:
    """What a launch consists of beside its tensors: settings, grid, numbers of tiles."""
    whole, half = tile_counts(rows, columns, config.block_m, config.block_n, programs)
    grid = (min(programs, max(whole, half)), 1, 1)
    if has_hopper_kernels(device):
        # Not at the top: what it is written in does not come with every Triton.
        from ilora_kernels.backends.triton.linear_hopper import hopper_settings

        how = hopper_settings(
            config, rank, programs, device, backward=backward, masked=masked, has_bias=has_bias
        )
        if how is not None:
            return how, grid, (whole, half)
    # Not masked, the rank is one of the steps of the loop, or several.
    block_r = rank_block(rank, limit=64) if masked else config.block_k
    part = config.block_n // config.parts
    x, w, h, factor, y = blocks_of(config, block_r, backward)
    factor += ((block_r, part) if backward else (part, block_r),)
    how = settings(
        linear_kernel,
        {
            "RANK": rank,
            "BLOCK_R": block_r,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "PART": part,
            "GROUP": config.group,
            "PROGRAMS": programs,
            "BACKWARD": backward,
            "HAS_BIAS": has_bias,
            "MASKED": masked,
            "OVERLAP": overlap,
            # Steps are fetched fewer than num_stages ahead; Blackwell's products may add one.
            "AHEAD": config.num_stages + (not can_flatten(device)),
            # With one whole tile a program there is no next tile whose loads could run ahead.
            "FLATTEN": config.flatten and whole > programs and can_flatten(device),
        },
        device,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        blocks=(x, w, h, factor, y),
        overlap=overlap,
    )
    return how, grid, (whole, half)
