"""A pickled pandas frame of numbers, texts and lists of them, read without pandas.

The pickle goes through `ilora.pickle_reader`; this file knows what pandas 0.25 to 3.0 writes into
one, `ilora.pickled_arrays` what numpy 1 and 2 does, and the columns are put together here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ilora.errors import InputError
from ilora.pickle_reader import (
    MISFITS,
    MOST_BYTES,
    MOST_OBJECTS,
    Built,
    Maker,
    Name,
    RefusalError,
    no_call,
    read_pickle,
)
from ilora.pickled_arrays import ARRAY_MAKERS, NUMBER_MAKERS, Array, weight_of

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


class Texts(Built):
    """pandas' array of texts: its state is ``(dtype, ndarray)``."""

    def __init__(self, kind: Any, *_: Any) -> None:
        if type(kind) is not Name or str(kind) not in TEXT_ARRAYS:
            raise RefusalError("an array of an unknown kind stands in the frame")
        self.values: np.ndarray = np.empty(0, dtype=object)

    @property
    def weight(self) -> int:
        return weight_of(self.values)

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
            places = range(num_columns)[place]
        else:
            raise RefusalError("a block of columns has no place")
        values = self.values[None] if self.values.ndim == 1 else self.values
        if len(places) != len(values):
            raise RefusalError("a block does not hold as many columns as it has places")
        if any(type(number) is not int or not 0 <= number < num_columns for number in places):
            raise RefusalError("a block of columns has a place outside of the frame")
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
        self.blocks = described["blocks"]


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
        left = MOST_OBJECTS
        for described in manager.blocks:
            block = described
            if isinstance(described, dict):  # before pandas 1.3
                block = Block(described["values"], described["mgr_locs"])
            if not isinstance(block, Block):
                raise RefusalError("the frame holds something that is no block of columns")
            for number, values in block.columns(len(names)):
                left -= weight_of(values)  # blocks may share one array
                if number in found or left < 0:
                    raise RefusalError("the frame's columns do not add up")
                found[number] = values.tolist()
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
    **ARRAY_MAKERS,
    **NUMBER_MAKERS,
    ("builtins", "slice"): make_slice,
    ("__builtin__", "slice"): make_slice,
}
