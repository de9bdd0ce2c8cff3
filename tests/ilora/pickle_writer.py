"""Pickles with any names in them, written without importing what the names stand for."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Named:
    """A class or function by name."""

    module: str
    name: str


@dataclass(eq=False)
class Made:
    """What ``target(*arguments)`` would be, given ``state`` where there is one."""

    target: Named
    arguments: tuple[Any, ...] = ()
    state: Any = None
    opcode: bytes = field(default=pickle.REDUCE)


@dataclass(eq=False)
class Outside:
    """A reference out of the file."""

    key: Any


class Writer(pickle._Pickler):  # type: ignore[name-defined]
    """Python's own writer, which also writes the three above."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_named(self, named: Named) -> None:
        self.save(named.module)
        self.save(named.name)
        self.write(pickle.STACK_GLOBAL)

    def save_made(self, made: Made) -> None:
        self.save(made.target)
        self.save(made.arguments)
        self.write(made.opcode)
        self.memoize(made)
        if made.state is not None:
            self.save(made.state)
            self.write(pickle.BUILD)

    def save_outside(self, outside: Outside) -> None:
        self.save(outside.key)
        self.write(pickle.BINPERSID)

    dispatch[Named] = save_named
    dispatch[Made] = save_made
    dispatch[Outside] = save_outside


def written(value: Any, protocol: int = 4) -> bytes:
    """The pickle of a value."""
    file = io.BytesIO()
    Writer(file, protocol).dump(value)
    return file.getvalue()


def frame(columns: dict[str, list[Any]]) -> Made:
    """A pandas frame of one block of objects."""
    object_type = Made(
        Named("numpy", "dtype"), ("O8", False, True), (3, "|", *[None] * 3, -1, -1, 63)
    )

    def array(shape: tuple[int, ...], values: list[Any]) -> Made:
        empty = (Named("numpy", "ndarray"), (0,), b"b")
        state = (1, shape, object_type, False, values)
        return Made(Named("numpy.core.multiarray", "_reconstruct"), empty, state)

    base = "pandas.core.indexes.base"
    names = array((len(columns),), list(columns))
    index = Made(Named(base, "_new_Index"), (Named(base, "Index"), {"data": names, "name": None}))
    rows = len(next(iter(columns.values())))
    values = array((len(columns), rows), [v for column in columns.values() for v in column])
    place = Made(Named("builtins", "slice"), (0, len(columns), 1))
    block = Made(Named("pandas._libs.internals", "_unpickle_block"), (values, place, 2))
    manager = Named("pandas.core.internals.managers", "BlockManager")
    state = {"_mgr": Made(manager, ((block,), [index, index])), "_typ": "dataframe"}
    return Made(Named("pandas.core.frame", "DataFrame"), (), state, pickle.NEWOBJ)
