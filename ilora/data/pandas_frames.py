"""A pickled pandas frame of numbers, texts and lists of them, read without pandas.

The pickle goes through `ilora.pickle_reader`; this file knows what pandas and numpy write into one
(pandas 0.25 to 3.0, numpy 1 and 2) and puts the columns together itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ilora.errors import InputError
from ilora.pickle_reader import (
    MISFITS,
    MOST_BYTES,
    Built,
    Maker,
    Name,
    RefusalError,
    no_call,
    read_pickle,
)

SIMPLE_TYPE = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248]|[US]\d{1,4}|O8?)")
NESTING = 3  # a column holds cells, a cell may hold entries, an entry may be a pair
CELLS = (int, float, str, bool, type(None))


def read_frame(path: Path) -> dict[str, list[Any]]:
    """The columns of a pickled ``DataFrame`` by name, top to bottom, as plain Python values.

    Cells are numbers, texts, None, or (nested) lists and tuples of them.

    Raises:
        InputError: no such file, or a pickle that needs anything else; nothing in it is run.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(
                f"{path} is refused: it is larger than {MOST_BYTES >> 20} MiB; bring the data as CSV"
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing; give the folder that holds it") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    frame = read_pickle(data, str(path), lambda module, name: MAKERS.get((module, name)))
    if not isinstance(frame, Frame):
        raise InputError(f"{path} holds no pandas frame; give a frame that to_pickle wrote")
    try:
        return frame.columns()
    except (RefusalError, *MISFITS) as error:
        raise InputError(f"{path} is refused: {error}; bring the data as CSV") from None


class Type(Built):
    """``numpy.dtype``: the text of a simple type and, as state, its byte order."""

    def __init__(self, text: Any, *_: Any) -> None:
        if type(text) is not str or not SIMPLE_TYPE.fullmatch(text):
            raise RefusalError("an array is neither of numbers nor of texts")
        self.text = text.lstrip("<>=|")

    def build(self, state: Any) -> None:
        _version, order, *rest = state
        if order not in ("<", ">", "=", "|") or any(part is not None for part in rest[:3]):
            raise RefusalError("an array has a compound type")
        self.text = order + self.text

    @property
    def holds_objects(self) -> bool:
        return "O" in self.text


class Array(Built):
    """``numpy.ndarray``, made empty and filled by its state, or made of a buffer at once."""

    def __init__(self) -> None:
        self.values: np.ndarray = np.empty(0)

    def build(self, state: Any) -> None:
        _version, shape, kind, fortran, content = state
        self.fill(content, kind, shape, "F" if fortran is True else "C")

    def fill(self, content: Any, kind: Any, shape: Any, order: Any) -> None:
        if type(kind) is not Type or order not in ("C", "F") or len(shape) > 2:
            raise RefusalError("an array is described in an unknown way")
        flat = _object_array(content) if kind.holds_objects else _number_array(content, kind)
        size = 1
        for length in shape:
            if type(length) is not int or length < 0:
                raise RefusalError("an array has a shape that is none")
            size *= length
        if size != len(flat):
            raise RefusalError("an array does not hold as many values as its shape says")
        self.values = flat.reshape(shape, order=order)


def _object_array(content: Any) -> np.ndarray:
    if type(content) is not list:
        raise RefusalError("an array of objects is not a list")
    flat = np.empty(len(content), dtype=object)
    for index, value in enumerate(content):
        flat[index] = value  # one by one: numpy would take lists for further dimensions
    return flat


def _number_array(content: Any, kind: Type) -> np.ndarray:
    if type(content) is not bytes:
        raise RefusalError("an array of numbers is not bytes")
    return np.frombuffer(content, dtype=np.dtype(kind.text))


def make_array(kind: Any, shape: Any, first: Any) -> Array:
    """``_reconstruct(ndarray, (0,), b'b')``: an empty array that the state fills."""
    if (
        type(kind) is not Name
        or str(kind) != "numpy.ndarray"
        or shape != (0,)
        or first not in (b"b", "b")
    ):
        raise RefusalError("an array begins in an unknown way")
    return Array()


def array_of_buffer(content: Any, kind: Any, shape: Any, order: Any) -> Array:
    """``_frombuffer(buffer, dtype, shape, order)``, of protocol 5."""
    array = Array()
    array.fill(content, kind, shape, order)
    return array


def make_scalar(kind: Any, content: Any) -> Any:
    """``scalar(dtype, bytes)``: a single number of numpy's, as Python has it."""
    if type(kind) is not Type or kind.holds_objects:
        raise RefusalError("a number is described in an unknown way")
    (value,) = _number_array(content, kind).tolist()
    return value


class Texts(Built):
    """pandas' array of texts: its state is ``(dtype, ndarray)``."""

    def __init__(self, kind: Any, *_: Any) -> None:
        if type(kind) is not Name or str(kind) not in TEXT_ARRAYS:
            raise RefusalError("an array of an unknown kind stands in the frame")
        self.values: np.ndarray = np.empty(0, dtype=object)

    def build(self, state: Any) -> None:
        arrays = [part for part in state if type(part) is Array]
        if len(arrays) != 1 or arrays[0].values.ndim != 1:
            raise RefusalError("an array of texts is described in an unknown way")
        self.values = arrays[0].values


def make_index(kind: Any, parts: Any) -> list[Any]:
    """``_new_Index(cls, {...})``: labels of rows or columns; a range stays empty (nobody asks)."""
    if type(kind) is not Name or type(parts) is not dict:
        raise RefusalError("an index is described in an unknown way")
    data = parts.get("data")
    return data.values.tolist() if isinstance(data, Array | Texts) else []


class Block:
    """Columns of one type: ``values [columns, rows]`` or one column, and which columns they are."""

    def __init__(self, values: Any, placement: Any, *_: Any) -> None:
        if not isinstance(values, Array | Texts):
            raise RefusalError("a block of columns holds no array")
        self.values = values.values
        self.placement = placement

    def columns(self, num_columns: int) -> Iterator[tuple[int, np.ndarray]]:
        """Number and values of each column."""
        place = self.placement
        if isinstance(place, Array):
            places = place.values.tolist()
        elif isinstance(place, slice):
            places = list(range(num_columns))[place]
        else:
            raise RefusalError("a block of columns has no place")
        values = self.values[None] if self.values.ndim == 1 else self.values
        if len(places) != len(values):
            raise RefusalError("a block does not hold as many columns as it has places")
        yield from zip(places, values, strict=True)


class Manager(Built):
    """``BlockManager(blocks, axes)``, or, before pandas 1.3, made by its state."""

    def __init__(self, blocks: Any = (), axes: Any = ()) -> None:
        self.blocks = blocks
        self.axes = axes

    def build(self, state: Any) -> None:
        if not state:  # pandas 1.3 and newer gave everything to the constructor
            return
        described = state[3]["0.14.1"]
        self.axes = described["axes"]
        self.blocks = [Block(block["values"], block["mgr_locs"]) for block in described["blocks"]]


class Frame(Built):
    """``DataFrame``: its state holds the manager of its blocks."""

    def __init__(self) -> None:
        self.manager: Any = None

    def build(self, state: Any) -> None:
        self.manager = state.get("_mgr", state.get("_data"))

    def columns(self) -> dict[str, list[Any]]:
        """Values by column; raises `RefusalError` for a frame that does not add up."""
        manager = self.manager
        if not isinstance(manager, Manager) or len(manager.axes) != 2:
            raise RefusalError("the frame has no columns and rows")
        names = manager.axes[0]
        if not all(type(name) is str for name in names) or len(set(names)) < len(names):
            raise RefusalError("the frame's columns have no names of their own")
        found: dict[int, list[Any]] = {}
        for block in manager.blocks:
            if not isinstance(block, Block):
                raise RefusalError("the frame holds something that is no block of columns")
            found.update({n: v.tolist() for n, v in block.columns(len(names))})
        if sorted(found) != list(range(len(names))) or len({len(v) for v in found.values()}) > 1:
            raise RefusalError("the frame's columns do not add up")
        _require_cells(list(found.values()))
        return {name: found[number] for number, name in enumerate(names)}


def _require_cells(columns: list[list[Any]]) -> None:
    """Cells are plain values, lists of them, or lists of tuples of them: nothing deeper, no names."""
    level: list[Any] = columns
    for _ in range(NESTING):
        inner: dict[int, Any] = {}  # a list may stand in many places, and is looked at once
        for value in chain.from_iterable(level):
            if type(value) in (list, tuple):
                inner[id(value)] = value
            elif type(value) not in CELLS:
                raise RefusalError("a cell is neither a number nor a text nor a list of them")
        level = list(inner.values())
    if level:
        raise RefusalError("a cell holds lists in lists in lists")


def make_bytes(text: Any, encoding: Any) -> bytes:
    """``_codecs.encode(text, 'latin1')``: how protocol 2 writes bytes."""
    if type(text) is not str or encoding != "latin1":
        raise RefusalError("bytes are written in an unknown way")
    return text.encode("latin1")


def make_slice(start: Any, stop: Any, step: Any) -> slice:
    """``slice(start, stop, step)`` of integers."""
    if any(type(part) not in (int, type(None)) for part in (start, stop, step)):
        raise RefusalError("a slice is not of integers")
    return slice(start, stop, step)


def make_text_type(*_: Any) -> None:
    """``StringDtype(storage, na_value)``: nothing of it is needed."""


TEXT_ARRAYS = ("pandas.arrays.StringArray", "pandas.core.arrays.string_.StringArray")
_INDEXES = (
    ("pandas", "Index"),
    ("pandas", "RangeIndex"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.core.indexes.numeric", "Int64Index"),
)
MAKERS: dict[tuple[str, str], Maker] = {
    **dict.fromkeys(_INDEXES, no_call),
    **{(name.rpartition(".")[0], "StringArray"): no_call for name in TEXT_ARRAYS},
    ("pandas", "DataFrame"): Frame,
    ("pandas.core.frame", "DataFrame"): Frame,
    ("pandas.core.internals.managers", "BlockManager"): Manager,
    ("pandas._libs.internals", "_unpickle_block"): Block,
    ("pandas.core.indexes.base", "_new_Index"): make_index,
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"): Texts,
    ("pandas", "StringDtype"): make_text_type,
    ("pandas.core.arrays.string_", "StringDtype"): make_text_type,
    ("numpy", "ndarray"): no_call,
    ("numpy", "dtype"): Type,
    ("numpy.core.multiarray", "_reconstruct"): make_array,
    ("numpy._core.multiarray", "_reconstruct"): make_array,
    ("numpy.core.numeric", "_frombuffer"): array_of_buffer,
    ("numpy._core.numeric", "_frombuffer"): array_of_buffer,
    ("numpy.core.multiarray", "scalar"): make_scalar,
    ("numpy._core.multiarray", "scalar"): make_scalar,
    ("builtins", "slice"): make_slice,
    ("__builtin__", "slice"): make_slice,
    ("_codecs", "encode"): make_bytes,
}
