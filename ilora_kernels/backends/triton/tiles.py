"""The order in which the tiles of a product are computed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_position(tile, num_tiles_m, num_tiles_n, GROUP: tl.constexpr):
    """Tile number -> row and column of tiles: down a band of GROUP rows, then one column right."""
    tiles_in_band = GROUP * num_tiles_n
    first_m = (tile // tiles_in_band) * GROUP
    height = min(num_tiles_m - first_m, GROUP)
    within = tile % tiles_in_band
    return first_m + within % height, within // height
