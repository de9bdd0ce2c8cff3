"""Launching a kernel for the price of a dictionary look-up, and describing matrices to it.

Triton's own launch binds and specialises every argument again, tens of microseconds a call. Here the
kernels are specialised on nothing but their constants, the dtypes and the alignment of pointers (on
AMD also on whether 32 bits reach all of a storage); so the compiled kernel is kept under those and
called directly.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED: bool = triton.knobs.runtime.interpret
_compiled: dict[tuple[Any, ...], Any] = {}

# On AMD, Triton compiles for pointers into storages of at most so many bytes, or for any.
_ON_AMD = bool(torch.version.hip)
_SMALL_STORAGE = 2**31 - 1

# Shared memory of a multiprocessor that a tile of ``linear`` leaves room in for its neighbours.
_SHARED_BYTES_FOR_PRODUCT = 227 * 1024


@functools.cache
def has_copy_engine(device: int) -> bool:
    """Whether kernels may read and write through tensor descriptors (Hopper and newer)."""
    return INTERPRETED or _capability(device) >= 9


@functools.cache
def can_overlap(device: int) -> bool:
    """Whether a kernel may start while the one before it runs (programmatic dependent launch)."""
    return not INTERPRETED and _capability(device) >= 9


@functools.cache
def holds_product(device: int) -> bool:
    """Whether ``linear`` runs here: a copy engine, and the shared memory of a data-centre GPU."""
    if INTERPRETED:
        return True
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub lacks the attribute
    enough = properties.shared_memory_per_block_optin >= _SHARED_BYTES_FOR_PRODUCT
    return has_copy_engine(device) and enough


@functools.cache
def can_flatten(device: int) -> bool:
    """Whether Triton 3.6 compiles one loop over tiles and steps: not with Blackwell's accumulators."""
    return INTERPRETED or _capability(device) < 10


def _capability(device: int) -> int:
    return 0 if torch.version.hip else torch.cuda.get_device_capability(device)[0]


def current_device() -> int:
    """The current GPU; 0 in the interpreter."""
    return 0 if INTERPRETED else torch.cuda.current_device()


class _Descriptor(TensorDescriptor):
    """A host tensor descriptor, less the checks that :func:`describable` makes once a tensor."""

    def __init__(self, matrix: Tensor, block: list[int]) -> None:
        self.base = matrix
        self.shape = list(matrix.shape)
        self.strides = list(matrix.stride())
        self.block_shape = block
        self.padding = "zero"


def descriptor(matrix: Tensor, block: list[int]) -> TensorDescriptor:
    """Describe a matrix to the copy engine, in blocks of this shape, zero outside."""
    return _Descriptor(matrix, block)


def describable(matrix: Tensor) -> bool:
    """Whether the copy engine can read this matrix: rows of whole 16-byte units on such addresses.

    A unit is eight elements, in float32 too, so that one hint to the compiler serves all dtypes. The
    kernels take the distance between rows as an int32.
    """
    row, column = matrix.stride()
    return (
        column == 1
        and matrix.shape[1] <= row < 2**31
        and row % 8 == 0
        and matrix.shape[1] % 8 == 0
        and matrix.data_ptr() % 16 == 0
    )


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    arguments: Sequence[Any],
    constants: dict[str, Any],
    *,
    num_warps: int,
    num_stages: int,
    overlap: bool = False,
) -> None:
    """Launch ``kernel`` on the current stream of the current device.

    Args:
        arguments: the kernel's run-time arguments, in order.
        constants: its ``tl.constexpr`` arguments, in order.
        num_stages: how many steps of a loop are in flight; fewer where the GPU has no room for them.
        overlap: start when the kernel before it releases its dependents, not when it ends.
    """
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    device = torch.cuda.current_device()
    kinds: list[Any] = []
    raw = []  # addresses instead of tensors, which the launcher would look up one by one
    for argument in arguments:
        if isinstance(argument, Tensor):
            address = argument.data_ptr()
            kinds += (argument.dtype, address % 16 == 0)
            if _ON_AMD:
                kinds.append(argument.untyped_storage().nbytes() <= _SMALL_STORAGE)
            raw.append(address)
            continue
        if isinstance(argument, TensorDescriptor):
            kinds.append(argument.base.dtype)
        raw.append(argument)
    values = tuple(constants.values())
    key = (kernel.fn, device, num_warps, num_stages, overlap, *kinds, *values)
    compiled = _compiled.get(key)
    if compiled is None:
        options = {"num_warps": num_warps} | ({"launch_pdl": True} if overlap else {})
        _compiled[key] = _first_launch(kernel[grid], arguments, constants | options, num_stages)
        return
    stream = torch._C._cuda_getCurrentRawStream(device)
    compiled.run(
        *grid, stream, compiled.function, compiled.packed_metadata, None, None, None,
        *raw, *values,
    )  # fmt: skip


def _first_launch(
    run: Any, arguments: Sequence[Any], options: dict[str, Any], num_stages: int
) -> Any:
    """Compile and launch with as many stages as the GPU has room for; return what was compiled."""
    for stages in range(num_stages, 1, -1):
        with contextlib.suppress(OutOfResources):
            return run(*arguments, **options, num_stages=stages)
    return run(*arguments, **options, num_stages=1)
