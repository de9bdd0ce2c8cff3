"""Adding a block's product to a running sum."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_product(total, a, b, T, FLOAT32: tl.constexpr):
    """``total + a b``, in float32.

    16-bit operands go to the tensor cores, into the same accumulators. Float32 ones do not: there a
    block's products are summed first and then added, which errs less than one chain over thousands of
    elements. ``T > 0`` is a one that the compiler does not know; with a known one it would make the
    chain again.
    """
    if FLOAT32:
        one = tl.where(T > 0, 1.0, 0.0)
        return total + tl.dot(a, b, input_precision="ieee") * one
    else:
        return tl.dot(a, b, total)
