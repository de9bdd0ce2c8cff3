"""The dropout mask inside a kernel: the same bits as :mod:`ilora_kernels.dropout`."""

from __future__ import annotations

import triton
import triton.language as tl

_MULTIPLIER_1 = tl.constexpr(0x7FEB352D)
_MULTIPLIER_2 = tl.constexpr(0x846CA68B)
_GOLDEN_RATIO = tl.constexpr(0x9E3779B9)


@triton.jit
def _scramble(z):
    z ^= z >> 16
    z *= _MULTIPLIER_1
    z ^= z >> 15
    return z * _MULTIPLIER_2


@triton.jit
def _mix(z):
    z = _scramble(z)
    return z ^ (z >> 16)


@triton.jit
def keep_tile(seed_ptr, rows, first_column, columns, threshold):
    """Which elements of a tile stay.

    ``columns`` count from ``first_column``, an even number; ``rows`` and ``columns`` broadcast to the
    tile's shape. A hash serves two neighbouring columns: a thread holds both in every layout used
    here, and counting from ``first_column`` lets the compiler see that it is one hash.
    """
    seed = tl.load(seed_ptr)
    key = _mix(_mix(seed.to(tl.uint32)) ^ (seed >> 32).to(tl.uint32))
    row_key = _mix(_mix(rows.to(tl.uint32)) ^ key)
    pair = (first_column // 2 + (columns >> 1)).to(tl.uint32)
    bits = _scramble(row_key + pair * _GOLDEN_RATIO)
    half = tl.where((columns & 1) == 1, bits >> 16, bits & 0xFFFF)
    return half >= threshold
