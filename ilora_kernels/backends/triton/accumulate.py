"""Adding a block's product to a running sum."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_product(total, a, b, T, FLOAT32: tl.constexpr, COMPUTED: tl.constexpr):
    """``total + a b``, in float32.

    16-bit operands go to the tensor cores, into the same accumulators. Float32 ones do not: there a
    block's products are summed first and then added, which errs less than one chain over thousands of
    elements. ``T > 0`` is a one that the compiler does not know; with a known one it would make the
    chain again.

    ``COMPUTED`` where a was computed in registers, as a masked x is. A Hopper's tensor cores read them
    while the program goes on, and Triton 3.6 lets it go on to overwrite them (seen: infinite
    results). It waits where the sum is used within the loop, as by a multiplication by one.
    """
    one = tl.where(T > 0, 1.0, 0.0)
    if FLOAT32:
        return total + tl.dot(a, b, input_precision="ieee") * one
    elif COMPUTED:
        return tl.dot(a, b, total) * one
    else:
        return tl.dot(a, b, total)
