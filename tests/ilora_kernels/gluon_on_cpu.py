"""Hopper's own kernel without a GPU: its code, run in Python with stand-ins for Gluon's words.

Gluon has no interpreter. Here programs run one after another on tensors of torch, and what an author can
get wrong who waits by hand is an error: a slot filled while it is read, or read before it has arrived, or
filled and never read; a barrier that never turns; h read before it is there; a part of y that is
overwritten on its way out. What this cannot show is what a GPU does in parallel.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ilora_kernels.backends.triton.launch import Settings
from ilora_kernels.dropout import keep_mask

WARPS = 8


def launching(others: Callable[..., None]) -> Callable[..., None]:
    """``launch`` for this kernel, and for the others what they are launched by."""

    def launch(how: Settings, grid: Any, tensors: Any, numbers: Any) -> None:
        by = run if how.kernel.fn.__name__ == "linear_hopper_kernel" else others
        by(how, grid, tensors, numbers)

    return launch


def run(
    how: Settings, grid: tuple[int, int, int], tensors: tuple[Tensor, ...], numbers: Any
) -> None:
    """What ``launch`` does, for the kernel of ``linear_hopper``."""
    pairs = zip(tensors, how.blocks, strict=False)
    matrices = [Matrix(matrix, block) for matrix, blocks in pairs for block in blocks]
    pointers = [Pointer(tensor) for tensor in tensors[len(how.blocks) :]]
    for program in range(grid[0]):
        with playing(program, h=tensors[2]) as (kernel, played):
            kernel(*matrices, *pointers, *map(Scalar, numbers), **how.constants)
            played.end()


@contextmanager
def playing(program: int, h: Tensor) -> Iterator[tuple[Callable[..., None], Program]]:
    """Let the kernel's functions be plain ones, and what they call the program's stand-ins."""
    played = Program(program, h)
    kernel, tiles = (
        importlib.import_module(f"ilora_kernels.backends.triton.{name}")
        for name in ("linear_hopper", "tiles")
    )
    plain, shared = (
        {name: value.fn for name, value in vars(module).items() if hasattr(value, "fn")}
        for module in (kernel, tiles)
    )
    with patch.multiple(kernel, **plain | played.words()), patch.multiple(tiles, **shared):
        yield plain["linear_hopper_kernel"], played


class Scalar(int):
    """A number of the kernel: an int whose results are such numbers, and which has dtypes."""

    def to(self, _: torch.dtype) -> Scalar:
        return self


def _of_scalars(name: str) -> Callable[[Scalar, Any], Any]:
    def operator(self: Scalar, other: Any) -> Any:
        result = getattr(int, name)(self, other)
        return result if result is NotImplemented else Scalar(result)

    return operator


for _name in (
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "floordiv",
    "mod",
    "xor",
    "eq",
    "lt",
    "ge",
):
    setattr(Scalar, f"__{_name}__", _of_scalars(f"__{_name}__"))
Scalar.__hash__ = int.__hash__  # type: ignore[method-assign]


class Registers(Tensor):
    """A tile in registers."""

    def split(self, *_: Any) -> Any:  # type: ignore[override]
        return self.unbind(-1)


class Matrix:
    """A descriptor: a matrix that is read and written in blocks, zeros around it."""

    def __init__(self, matrix: Tensor, block: tuple[int, ...]) -> None:
        self.matrix, self.dtype, self.layout = matrix, matrix.dtype, None
        nbytes = math.prod(block) * matrix.element_size()
        self.block_type = SimpleNamespace(shape=list(block), nbytes=nbytes)

    def read(self, row: int, column: int) -> Tensor:
        inside = self._inside(row, column)
        block = inside.new_zeros(self.block_type.shape)
        block[: inside.shape[0], : inside.shape[1]] = inside
        return block

    def write(self, row: int, column: int, block: Tensor) -> None:
        inside = self._inside(row, column)
        inside.copy_(block[: inside.shape[0], : inside.shape[1]])

    def _inside(self, row: int, column: int) -> Tensor:
        height, width = self.block_type.shape
        return self.matrix[row : row + height, column : column + width]


class Pointer:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __add__(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        return self.tensor, offsets


class Slot:
    """A piece of shared memory, and who is busy with it."""

    def __init__(self) -> None:
        self.content: Tensor | None = None
        self.awaited = self.unread = (
            False  # a copy is on its way; has arrived and nobody has read it
        )
        self.readers = 0  # matrix instructions that may not have ended
        self.fenced = True  # what was stored is seen by the copy engine


class View:
    """A slot as a block of some shape, or a part or the transpose of that."""

    def __init__(self, slot: Slot, looks: tuple[Callable[[Tensor], Tensor], ...] = ()) -> None:
        self.slot, self._looks = slot, looks

    def _reinterpret(self, dtype: torch.dtype, shape: list[int], _: None) -> View:
        def checked(content: Tensor) -> Tensor:
            assert (content.dtype, list(content.shape)) == (dtype, shape), (
                "a block of another shape"
            )
            return content

        return View(self.slot, (checked,))

    def permute(self, order: tuple[int, ...]) -> View:
        return View(self.slot, (*self._looks, lambda content: content.permute(order)))

    def slice(self, start: int, length: int, dim: int) -> View:
        return View(self.slot, (*self._looks, lambda content: content.narrow(dim, start, length)))

    def read(self) -> Tensor:
        assert self.slot.content is not None, "a slot is read before its copy has arrived"
        self.slot.unread = False
        content = self.slot.content
        for look in self._looks:
            content = look(content)
        return content.float()

    def store(self, value: Tensor) -> None:
        assert not self.slot.readers, "a buffer is written while it is copied out"
        self.slot.content, self.slot.fenced = value, False


class Barrier:
    """Turns when as many bytes have been copied as it was told to expect."""

    def __init__(self) -> None:
        self.expected = self.announced = self.turns = 0
        self.copies: list[tuple[Slot, Tensor]] = []

    def wait(self, phase: int) -> None:
        if self.turns % 2 != phase:
            return
        assert self.expected == self.announced > 0, "a barrier never turns"
        for slot, block in self.copies:
            slot.content, slot.awaited, slot.unread = block, False, True
        self.expected = self.announced = 0
        self.copies.clear()
        self.turns += 1


class Program:
    """One program of a launch, and the stand-ins for what it calls."""

    def __init__(self, number: int, h: Tensor) -> None:
        self.number, self.h = number, h
        self.memory: list[Slot] = []
        self.products: list[tuple[Slot, ...]] = []  # not waited for
        self.leaving: list[Slot] = []  # buffers on their way out
        self.h_is_there = self.released = False

    def end(self) -> None:
        assert self.released, "the gradients are never let go"
        assert not self.products, "products are never waited for"
        assert not self.leaving, "a part of y is still on its way"
        assert not any(slot.awaited or slot.unread for slot in self.memory), (
            "a slot is filled for nobody"
        )

    def words(self) -> dict[str, Any]:
        """Gluon's words in the kernel's module, by name."""
        language = {
            "float32": torch.float32, "int32": torch.int32, "int64": torch.int64,
            "maximum": lambda a, b: Scalar(max(a, b)), "minimum": lambda a, b: Scalar(min(a, b)),
            "cdiv": lambda a, b: Scalar(-(-int(a) // int(b))), "where": where,
            "static_range": range, "to_tensor": Scalar, "num_warps": lambda: WARPS,
            "program_id": lambda _: Scalar(self.number), "load": load,
            "arange": lambda start, end, _: torch.arange(start, end),
            "zeros": lambda shape, dtype, _: torch.zeros(shape, dtype=dtype).as_subclass(Registers),
            "convert_layout": lambda tile, _: tile, "NVMMADistributedLayout": lambda *_: None,
            "SliceLayout": lambda *_: None, "allocate_shared_memory": self._allocate,
        }  # fmt: skip
        barriers = {
            "MBarrierLayout": lambda: Barrier,
            "init": lambda barrier, count: None,
            "expect": self._expect,
            "wait": Barrier.wait,
        }
        copies = {
            "async_copy_global_to_shared": self._fill,
            "async_copy_shared_to_global": self._leave,
            "store_wait": self._wait_for_leaving,
        }
        return {
            "gl": SimpleNamespace(**language),
            "mbarrier": SimpleNamespace(**barriers),
            "tma": SimpleNamespace(**copies),
            "warpgroup_mma": self._multiply,
            "warpgroup_mma_wait": self._wait_for_products,
            "fence_async_shared": self._fence,
            "gdc_wait": self._wait_for_h,
            "gdc_launch_dependents": self._release,
            "keep_tile": keep_tile,
        }

    def _allocate(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Any:
        if layout is Barrier:
            pieces: list[Any] = [Barrier() for _ in range(shape[0])]
        else:
            slots = [Slot() for _ in range(shape[0])]
            self.memory += slots
            pieces = [View(slot) for slot in slots]
        return SimpleNamespace(shape=shape, index=lambda i: pieces[int(i)])

    def _expect(self, barrier: Barrier, nbytes: int) -> None:
        assert not barrier.announced, "a barrier is told to expect more before it has turned"
        barrier.announced = nbytes

    def _fill(self, matrix: Matrix, place: list[int], barrier: Barrier, view: View) -> None:
        slot = view.slot
        assert not slot.readers, "a slot is filled while it is read"
        assert not slot.unread, "a slot is filled before it was read"
        assert matrix.matrix is not self.h or self.h_is_there, "h is copied before it is there"
        slot.content, slot.awaited = None, True
        barrier.copies.append((slot, matrix.read(*place)))
        barrier.expected += matrix.block_type.nbytes

    def _multiply(self, a: View, b: View, accumulator: Tensor, is_async: bool) -> Tensor:
        product = a.read() @ b.read()
        self.products.append((a.slot, b.slot))
        for slot in self.products[-1]:
            slot.readers += 1
        return accumulator + product

    def _wait_for_products(self, pending: int, deps: tuple[Tensor]) -> Tensor:
        while len(self.products) > pending:
            for slot in self.products.pop(0):
                slot.readers -= 1
        return deps[0]

    def _fence(self) -> None:
        for slot in self.memory:
            slot.fenced = True

    def _leave(self, matrix: Matrix, place: list[int], buffer: View) -> None:
        assert buffer.slot.fenced, "a part of y is copied before the copy engine sees it"
        assert buffer.slot.content is not None
        matrix.write(*place, buffer.slot.content)
        buffer.slot.readers += 1
        self.leaving.append(buffer.slot)

    def _wait_for_leaving(self, pending: int) -> None:
        while len(self.leaving) > pending:
            self.leaving.pop(0).readers -= 1

    def _wait_for_h(self) -> None:
        self.h_is_there = True

    def _release(self) -> None:
        assert self.h_is_there, "the gradients are let go before h is there"
        self.released = True


def where(condition: Any, a: Any, b: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, a, b)
    return Scalar(a if condition else b)


def load(place: tuple[Tensor, Tensor], mask: Tensor, other: float) -> Tensor:
    tensor, offsets = place
    values = tensor[torch.where(mask, offsets, 0)]
    return torch.where(mask, values, other).to(tensor.dtype)


def keep_tile(seed: Pointer, rows: Tensor, first: int, columns: Tensor, threshold: int) -> Tensor:
    """The mask as ``dropout`` defines it."""
    last = int(rows.max()) + 1, int(first + columns.max()) + 1
    return keep_mask(seed.tensor, *last, threshold / 2**16)[rows, first + columns]
