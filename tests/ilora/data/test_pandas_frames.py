"""Frames that pandas pickled, read without pandas."""

from __future__ import annotations

import base64
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilora.data import pandas_frames
from ilora.data.pandas_frames import read_frame
from ilora.errors import InputError
from tests.ilora.data.pandas_pickles import PICKLES
from tests.ilora.pickle_writer import Made, Named, frame, written

COLUMNS = {
    "seq": [[1, 2, 9, 9], [3, 9, 9, 9], [4, 5, 6, 7]],
    "len_seq": [2, 1, 4],
    "next": [5, 6, 0],
    "title": ["a", "b", "c"],
    "score": [0.5, 1.5, 2.0],
}


@pytest.mark.parametrize("text", PICKLES.values(), ids=PICKLES)
def test_frames_of_every_pandas_read_the_same(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.df").write_bytes(zlib.decompress(base64.b85decode(text)))
    assert read_frame(tmp_path / "x.df") == COLUMNS
    assert "pandas" not in sys.modules


def read(value: Any, path: Path) -> dict[str, list[Any]]:
    (path / "x.df").write_bytes(written(value))
    return read_frame(path / "x.df")


def test_the_writer_of_these_tests_writes_what_pandas_does(tmp_path: Path) -> None:
    assert read(frame(COLUMNS), tmp_path) == COLUMNS


def swapped(value: Any, old: Any, new: Any) -> Any:
    """``value`` with something inside it replaced, wherever it stands."""
    if type(value) is type(old) and value == old:
        return new
    if isinstance(value, Made):
        return Made(
            *(swapped(part, old, new) for part in (value.target, value.arguments, value.state)),
            value.opcode,
        )
    if isinstance(value, list | tuple):
        return type(value)(swapped(part, old, new) for part in value)
    if isinstance(value, dict):
        return {key: swapped(part, old, new) for key, part in value.items()}
    return value


WHOLE = frame({"seq": [[1], [2]], "next": [3, 4]})
BROKEN = {
    "a shape of a terabyte": ((2, 2), (1 << 20, 1 << 20)),
    "a shape that is negative": ((2, 2), (-2, -2)),
    "a shape of floats": ((2, 2), (2.0, 2.0)),
    "three dimensions": ((2, 2), (1, 2, 2)),
    "a structured type": ("O8", "i4,i4"),
    "a type that is code": ("O8", "O8;import os"),
    "a type of the file's own": ("O8", [("a", "i4")]),
    "dates": ("O8", "M8"),
    "numbers in a list": ("O8", "i8"),
    "a compound state": (
        (3, "|", None, None, None, -1, -1, 63),
        (3, "|", ("x",), None, None, 0, 0, 0),
    ),
    "a block too many places": ((0, 2, 1), (0, 1, 1)),
    "a step of nothing": ((0, 2, 1), (0, 2, 0)),
    "a slice of texts": ((0, 2, 1), ("0", "2", "1")),
    "no manager": ("_mgr", "_other"),
    "a name among the cells": ([1], Named("numpy", "ndarray")),
    "an array among the cells": ([1], Made(Named("numpy", "dtype"), ("i8",))),
    "a number that is an object": (
        [1],
        Made(
            Named("numpy.core.multiarray", "scalar"),
            (Made(Named("numpy", "dtype"), ("O8",)), [1]),
        ),
    ),
    "a number of too many bytes": (
        [1],
        Made(
            Named("numpy.core.multiarray", "scalar"),
            (Made(Named("numpy", "dtype"), ("i8",)), bytes(16)),
        ),
    ),
    "two columns of one name": ("next", "seq"),
    "a column without a name": ("next", 7),
    "another class of array": (Named("numpy", "ndarray"), Named("numpy", "dtype")),
}


@pytest.mark.parametrize(("old", "new"), BROKEN.values(), ids=BROKEN)
def test_a_frame_that_does_not_add_up_is_refused(old: Any, new: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read(_with_keys(swapped(WHOLE, old, new), old, new), tmp_path)
    assert "\n" not in str(refused.value)


def _with_keys(value: Any, old: Any, new: Any) -> Any:
    if old == "_mgr":
        value.state = {new: value.state[old]}
    return value


def test_arrays_of_numpy_itself_are_read_in_either_order(tmp_path: Path) -> None:
    for array in (
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    ):
        value = swapped(frame({"a": [0, 0, 0], "b": [0, 0, 0]}), None, None)
        block = value.state["_mgr"].arguments[0][0]
        block.arguments = (array, *block.arguments[1:])
        assert read(value, tmp_path) == {"a": array[0].tolist(), "b": array[1].tolist()}


@pytest.mark.parametrize("protocol", [2, 4])
def test_numbers_of_numpys_among_the_cells_are_numbers(protocol: int, tmp_path: Path) -> None:
    cells = [[np.int64(3), np.float32(0.5)], [True]]
    (tmp_path / "x.df").write_bytes(written(frame({"a": cells}), protocol))
    found = read_frame(tmp_path / "x.df")["a"]
    assert found == [[3, 0.5], [True]]
    assert [type(value) for value in found[0]] == [int, float]


@pytest.mark.parametrize("value", [3, [1], {"a": [1]}, "text", None])
def test_a_pickle_of_something_else_is_no_frame(value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pandas frame"):
        read(value, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.df is missing"):
        read_frame(tmp_path / "x.df")


def test_blocks_that_share_one_array_are_counted_by_what_they_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pandas_frames, "MOST_OBJECTS", 10_000)
    whole = frame({f"column {n}": [0] * 100 for n in range(40)})
    assert len(read(whole, tmp_path)) == 40
    monkeypatch.setattr(pandas_frames, "MOST_OBJECTS", 7_000)  # a value and its 8 bytes: 8,000
    with pytest.raises(InputError, match="do not add up"):
        read(whole, tmp_path)
