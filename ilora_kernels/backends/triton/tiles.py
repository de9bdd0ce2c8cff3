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
