"""Launching a kernel for the price of a dictionary look-up, and describing matrices to it.

Triton's own launch binds and specialises every argument again, tens of microseconds a call. Here the
kernels are specialised on nothing but their constants, the dtypes and the alignment of pointers (on
AMD also on whether 32 bits reach all of a storage); so the compiled kernel is kept under those and
called directly.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from ilora_kernels.backends.triton.tensor_maps import (
    Descriptor,
    Layouts,
    layouts,
    maps_at,
)

INTERPRETED: bool = triton.knobs.runtime.interpret
TRITON_IS_KNOWN = triton.__version__.split(".")[:2] == ["3", "6"]

# On AMD, Triton compiles for pointers into storages of at most so many bytes, or for any.
_ON_AMD = bool(torch.version.hip)
_SMALL_STORAGE = 2**31 - 1

# Shared memory of a multiprocessor that a tile of ``linear`` leaves room in for its neighbours.
SHARED_BYTES_FOR_PRODUCT = 227 * 1024


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
    enough = properties.shared_memory_per_block_optin >= SHARED_BYTES_FOR_PRODUCT
    return has_copy_engine(device) and enough


@functools.cache
def can_flatten(device: int) -> bool:
    """Whether Triton 3.6 compiles one loop over tiles and steps: not with Blackwell's accumulators."""
    return INTERPRETED or _capability(device) < 10


@functools.cache
def has_hopper_kernels(device: int) -> bool:
    """Whether kernels written for Hopper alone run here, in the Gluon that comes with Triton 3.6."""
    return TRITON_IS_KNOWN and not INTERPRETED and _capability(device) == 9


def _capability(device: int) -> int:
    return 0 if torch.version.hip else torch.cuda.get_device_capability(device)[0]


def current_device() -> int:
    """The current GPU; 0 in the interpreter."""
    # Not torch.cuda.current_device, which makes sure that CUDA is there: the tensors came from it.
    return 0 if INTERPRETED else torch._C._cuda_getDevice()


def describable(matrix: Tensor) -> bool:
    """Whether the copy engine can read this matrix: rows of whole 16-byte units on such addresses.

    A unit is eight elements, in float32 too, so that one hint to the compiler serves all dtypes. The
    kernels take the distance between rows as an int32.
    """
    row, column = matrix.stride()
    width = matrix.shape[1]
    return (
        column == 1
        and not (row % 8 or width % 8 or matrix.data_ptr() % 16)
        and width <= row < 2**31
    )


# For each of the first tensors the shapes of its blocks.
Blocks = tuple[tuple[tuple[int, ...], ...], ...]


class _Compiled(NamedTuple):
    """A compiled kernel, ready to be launched again."""

    run: Callable[..., Any]
    head: tuple[Any, ...]  # what ``run`` takes between the stream and the kernel's own arguments
    # The layouts in which the first tensors are handed over; None: as Triton's descriptors.
    matrices: tuple[Layouts, ...] | None


@dataclass(eq=False)
class Settings:
    """A kernel with its constants, and what was compiled of it; see :func:`settings`."""

    kernel: Any
    constants: dict[str, Any]
    device: int
    num_warps: int
    num_stages: int
    blocks: Blocks
    overlap: bool
    registers: int | None
    describe: Callable[[Tensor, tuple[int, ...]], Any]
    values: tuple[Any, ...] = field(init=False)  # the constants'
    compiled: dict[tuple[Any, ...], _Compiled] = field(default_factory=dict)  # by dtypes, alignment

    def __post_init__(self) -> None:
        self.values = tuple(self.constants.values())

    def described(self, tensors: Sequence[Tensor]) -> list[Any]:
        """The arguments of a first launch: descriptors of the first tensors, then the other tensors."""
        pairs = zip(tensors, self.blocks, strict=False)
        matrices = [self.describe(matrix, block) for matrix, blocks in pairs for block in blocks]
        return [*matrices, *tensors[len(self.blocks) :]]


_settings: dict[tuple[Any, ...], Settings] = {}


def settings(
    kernel: Any,
    constants: dict[str, Any],
    device: int,
    *,
    num_warps: int,
    num_stages: int,
    blocks: Blocks = (),
    overlap: bool = False,
    registers: int | None = None,
    describe: Callable[[Tensor, tuple[int, ...]], Any] = Descriptor,
) -> Settings:
    """Return how to launch ``kernel``, the same object for the same settings.

    Args:
        constants: its ``tl.constexpr`` arguments, in order.
        device: the current GPU.
        num_stages: how many steps of a loop are in flight; fewer where the GPU has no room for them.
        blocks: for each of the first tensors, matrices that are :func:`describable` (or their rows cut
            in parts), the blocks in which the copy engine reads or writes it, a descriptor each; the
            other tensors are handed over as addresses.
        overlap: start when the kernel before it releases its dependents, not when it ends.
        registers: how many a thread may have at most; None leaves it to the compiler.
        describe: makes the descriptor of a matrix and a block that the kernel's language takes.
    """
    options = (device, num_warps, num_stages, blocks, overlap, registers, describe)
    key = (kernel.fn, *options, *constants.values())
    found = _settings.get(key)
    if found is None:
        found = _settings[key] = Settings(kernel, constants, *options)
    return found


class Launched(NamedTuple):
    """A launch that was made."""

    how: Settings
    grid: tuple[int, int, int]
    compiled: _Compiled
    tensors: tuple[Tensor, ...]
    numbers: tuple[int | float, ...]


_notes = threading.local()


@contextlib.contextmanager
def noting_launches() -> Iterator[list[Launched]]:
    """List the launches that this thread makes inside the block."""
    before = getattr(_notes, "launches", None)
    launches: list[Launched] = []
    _notes.launches = launches
    try:
        yield launches
    finally:
        _notes.launches = before


def launch(
    how: Settings,
    grid: tuple[int, int, int],
    tensors: tuple[Tensor, ...],
    numbers: tuple[int | float, ...],
) -> None:
    """Launch a kernel on the current stream of the current device.

    Args:
        tensors: the kernel's first arguments, in order.
        numbers: its other run-time arguments, in order.
    """
    if INTERPRETED:
        how.kernel[grid](*how.described(tensors), *numbers, **how.constants)
        return
    addresses: list[Any] = [*map(_address_of, tensors)]
    key = (_alignment(addresses), *map(_dtype_of, tensors))
    if _ON_AMD:
        key += tuple(t.untyped_storage().nbytes() <= _SMALL_STORAGE for t in tensors)
    compiled = how.compiled.get(key)
    if compiled is None:
        compiled = _first_launch(how, grid, (*how.described(tensors), *numbers))
        how.compiled[key] = compiled
    else:
        _launch_again(how, grid, compiled, tensors, addresses, numbers)
    notes: list[Launched] | None = getattr(_notes, "launches", None)
    if notes is not None:
        notes.append(Launched(how, grid, compiled, tensors, numbers))


def _launch_again(
    how: Settings,
    grid: tuple[int, int, int],
    compiled: _Compiled,
    tensors: tuple[Tensor, ...],
    addresses: list[Any],
    numbers: tuple[int | float, ...],
) -> None:
    run, head, matrices = compiled
    if matrices is None:
        addresses[: len(how.blocks)] = how.described(tensors[: len(how.blocks)])
    elif matrices:
        maps: list[Any] = []
        for matrix, address, its_layouts in zip(tensors, addresses, matrices, strict=False):
            maps += maps_at(address, matrix.shape, matrix.stride(), its_layouts)
        addresses[: len(matrices)] = maps
    stream = torch._C._cuda_getCurrentRawStream(how.device)
    run(*grid, stream, *head, *addresses, *numbers, *how.values)


def _first_launch(
    how: Settings, grid: tuple[int, int, int], arguments: tuple[Any, ...]
) -> _Compiled:
    options: dict[str, Any] = {"num_warps": how.num_warps}
    if how.overlap:
        options["launch_pdl"] = True
    if how.registers is not None:
        options["maxnreg"] = how.registers
    run = how.kernel[grid]
    return _prepared(_compile(run, arguments, how.constants | options, how.num_stages), how.blocks)


_address_of = Tensor.data_ptr
_dtype_of: Callable[[Tensor], torch.dtype] = Tensor.dtype.__get__  # type: ignore[attr-defined]


def _alignment(addresses: list[int]) -> Any:
    """Which addresses are multiples of 16; True where, as nearly always, all of them are."""
    all_bits = functools.reduce(operator.or_, addresses)
    return all_bits % 16 == 0 or tuple(address % 16 == 0 for address in addresses)


def _prepared(compiled: Any, blocks: Blocks) -> _Compiled:
    """How to launch a compiled kernel again.

    Triton's launcher is a Python function around a C one: it looks for scratch memory to allocate and
    encodes the map of every descriptor. Where there is no scratch memory, and the launcher is built as
    that of Triton 3.6 for Nvidia's GPUs, whose arguments are known, the C function is called with maps
    that are kept. Elsewhere the launcher is, which is slower and as right.
    """
    launcher = compiled.run
    packed, hooks = compiled.packed_metadata, (None, None, None)
    ordinary = _Compiled(launcher, (compiled.function, packed, *hooks), None)
    known = TRITON_IS_KNOWN and type(launcher).__name__ == "CudaLauncher"
    if not known or launcher.global_scratch_size or launcher.profile_scratch_size:
        return ordinary
    entry, metas = launcher.launch, []
    if blocks and isinstance(entry, types.FunctionType):
        captured = inspect.getclosurevars(entry).nonlocals
        entry, metas = captured.get("launcher"), captured.get("tensordesc_meta", [])
    # None among them: there the kernel takes no map, but the matrix itself.
    if not isinstance(entry, types.BuiltinFunctionType) or not all(metas):
        return ordinary
    if len(metas) != sum(map(len, blocks)):
        return ordinary
    attributes = (launcher.launch_cooperative_grid, launcher.launch_pdl)
    head = (compiled.function, *attributes, None, None, packed, *hooks)
    in_order = iter(metas)
    matrices = tuple(layouts([next(in_order) for _ in its_blocks]) for its_blocks in blocks)
    return _Compiled(entry, head, matrices)


def _compile(run: Any, arguments: Sequence[Any], options: dict[str, Any], num_stages: int) -> Any:
    """Compile and launch with as many stages as the GPU has room for; return what was compiled."""
    for stages in range(num_stages, 1, -1):
        with contextlib.suppress(OutOfResources):
            return run(*arguments, **options, num_stages=stages)
    return run(*arguments, **options, num_stages=1)
