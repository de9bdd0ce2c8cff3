"""The tiles of a product: in which order they are computed, and the blocks that they are made of."""

from __future__ import annotations

import triton
import triton.language as tl

from ilora_kernels.backends.triton.configs import LinearConfig
from ilora_kernels.backends.triton.launch import Blocks


@triton.jit
def tile_position(tile, num_tiles_m, num_tiles_n, GROUP: tl.constexpr):
    """Tile number -> row and column of tiles: down a band of GROUP rows, then one column right."""
    tiles_in_band = GROUP * num_tiles_n
    first_m = (tile // tiles_in_band) * GROUP
    height = min(num_tiles_m - first_m, GROUP)
    within = tile % tiles_in_band
    return first_m + within % height, within // height


@triton.jit
def halves_of(tile):
    """Left and right half of a tile, without leaving the registers."""
    ROWS: tl.constexpr = tile.shape[0]
    COLUMNS: tl.constexpr = tile.shape[1]
    return tile.reshape([ROWS, 2, COLUMNS // 2]).permute((0, 2, 1)).split()


@triton.jit
def parts_of(tile, PARTS: tl.constexpr):
    """The tile's columns in 1, 2 or 4 parts."""
    if PARTS == 1:
        parts = (tile,)
    elif PARTS == 2:
        parts = halves_of(tile)
    else:
        left, right = halves_of(tile)
        a, b = halves_of(left)
        c, d = halves_of(right)
        parts = (a, b, c, d)  # type: ignore[assignment]
    return parts


def blocks_of(config: LinearConfig, block_r: int, backward: bool) -> Blocks:
    """Of x or dY, the weight, h or u, the factor, and y or dX; of two also those of half a tile."""

    def block(depth: int, width: int) -> tuple[int, int]:
        return (depth, width) if backward else (width, depth)

    widths = (config.block_n, config.block_n // 2)
    return (
        ((config.block_m, config.block_k),),
        tuple(block(config.block_k, width) for width in widths),
        ((config.block_m, block_r),),
        tuple(block(block_r, width) for width in widths),
        ((config.block_m, config.block_n // config.parts),),
    )
