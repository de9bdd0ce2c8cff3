"""Tensor maps, the copy engine's descriptions of matrices, encoded once and not at every launch.

A map is a pure function of the matrix's address, shape and strides and of its layout: element type, block
and swizzle. So it is kept by those values. Nothing is kept alive, and memory that is freed and given out
again is described rightly: the same values are the same map. A weight's maps cost a look-up from its
second call on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# A 7B model in training has about 3,000, and up to 2,500 more with every new number of tokens.
MOST_ENTRIES = 16384

# (address, shape, strides, number of the layouts) -> what a launcher takes for the descriptors.
_maps: dict[tuple[Any, ...], tuple[Any, ...]] = {}
_numbers: dict[tuple[Any, ...], int] = {}


class Descriptor(TensorDescriptor):
    """A host tensor descriptor, less the checks that ``describable`` makes once a tensor."""

    def __init__(self, matrix: Tensor | _Matrix, block: Sequence[int]) -> None:
        self.base: Any = matrix
        self.shape = list(matrix.shape)
        self.strides = list(matrix.stride())
        self.block_shape = list(block)
        self.padding = "zero"


class _Matrix(NamedTuple):
    """What a descriptor asks a tensor for."""

    address: int
    shape: Sequence[int]
    strides: Sequence[int]

    def data_ptr(self) -> int:
        return self.address

    def stride(self) -> Sequence[int]:
        return self.strides


class Layouts(NamedTuple):
    """In which blocks a compiled kernel reads one matrix, and how it wants them laid out."""

    number: int  # equal for equal layouts, of any kernel
    metas: tuple[dict[str, Any], ...]  # Triton's own words for each


def layouts(metas: Sequence[dict[str, Any]]) -> Layouts:
    """Number what a compiled kernel says of its descriptors of one matrix."""
    names = ("swizzle", "elem_size", "elem_type", "fp4_padded")
    values = tuple((*(meta[n] for n in names), *meta["block_size"]) for meta in metas)
    return Layouts(_numbers.setdefault(values, len(_numbers)), tuple(metas))


def maps_at(
    address: int, shape: Sequence[int], strides: Sequence[int], layouts: Layouts
) -> tuple[Any, ...]:
    """Return the maps of a matrix, each with its sizes after it, as Triton's launcher takes them."""
    key = (address, shape, strides, layouts.number)
    found = _maps.get(key)
    return found if found is not None else _encoded(key, layouts)


def _encoded(key: tuple[Any, ...], layouts: Layouts) -> tuple[Any, ...]:
    from triton.backends.nvidia.driver import make_tensordesc_arg  # not in every build of Triton

    if len(_maps) >= MOST_ENTRIES:
        _maps.clear()
    matrix = _Matrix(*key[:3])
    expanded: list[Any] = []
    for meta in layouts.metas:
        expanded += make_tensordesc_arg(Descriptor(matrix, meta["block_size"]), meta)
    found = _maps[key] = tuple(expanded)
    return found
