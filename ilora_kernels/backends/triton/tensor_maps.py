"""Tensor maps, the copy engine's descriptions of matrices, encoded once and not at every launch.

A map is a pure function of the matrix's address, shape and strides and of its layout: element type, block
and swizzle. So it is kept by those values. Nothing is kept alive, and memory that is freed and given out
again is described rightly: the same values are the same map. A weight's maps cost a look-up from its
second call on.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# All maps of a 7B model in training are about 3,000, and some 4,500 more with every new number of tokens.
MOST_MAPS = 16384

# (address, shape, strides, number of the layout) -> what a launcher takes for a descriptor.
_maps: dict[tuple[Any, ...], tuple[Any, ...]] = {}
_layouts: dict[tuple[Any, ...], int] = {}


class Descriptor(TensorDescriptor):
    """A host tensor descriptor, less the checks that ``describable`` makes once a tensor."""

    def __init__(self, matrix: Tensor, block: tuple[int, ...]) -> None:
        self.base = matrix
        self.shape = list(matrix.shape)
        self.strides = list(matrix.stride())
        self.block_shape = list(block)
        self.padding = "zero"


def layout_number(meta: dict[str, Any]) -> int:
    """A small number for how a compiled kernel wants a matrix laid out, equal for equal layouts."""
    block = tuple(meta["block_size"])
    names = ("swizzle", "elem_size", "elem_type", "fp4_padded")
    return _layouts.setdefault((block, *(meta[name] for name in names)), len(_layouts))


def tensor_map(matrix: Tensor, address: int, layout: int, meta: dict[str, Any]) -> tuple[Any, ...]:
    """Return the map of a matrix and its sizes, as Triton's launcher takes them.

    Args:
        address: the matrix's.
        layout: the :func:`layout_number` of ``meta``.
        meta: the compiled kernel's own description of how it reads this argument.
    """
    key = (address, matrix.shape, matrix.stride(), layout)
    found = _maps.get(key)
    return found if found is not None else _encoded(key, matrix, meta)


def _encoded(key: tuple[Any, ...], matrix: Tensor, meta: dict[str, Any]) -> tuple[Any, ...]:
    from triton.backends.nvidia.driver import make_tensordesc_arg  # absent from other builds

    if len(_maps) >= MOST_MAPS:
        _maps.clear()
    expanded = tuple(make_tensordesc_arg(Descriptor(matrix, meta["block_size"]), meta))
    _maps[key] = expanded
    return expanded
