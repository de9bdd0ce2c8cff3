"""What numpy 1 and 2 write into a pickle: types, numbers and arrays, for `ilora.pickle_reader`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ilora.pickle_reader import Built, Maker, Name, RefusalError, no_call

SIMPLE_TYPE = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248]|[US]\d{1,4}|O8?)")


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

    @property
    def weight(self) -> int:
        return weight_of(self.values)

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


def weight_of(values: np.ndarray) -> int:
    """About how many words ``values.tolist()`` makes."""
    return 1 + values.size + values.nbytes // 8


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


def make_bytes(text: Any, encoding: Any) -> bytes:
    """``_codecs.encode(text, 'latin1')``: how protocol 2 writes bytes."""
    if type(text) is not str or encoding != "latin1":
        raise RefusalError("bytes are written in an unknown way")
    return text.encode("latin1")


NUMBER_MAKERS: dict[tuple[str, str], Maker] = {
    ("numpy", "dtype"): Type,
    ("numpy.core.multiarray", "scalar"): make_scalar,
    ("numpy._core.multiarray", "scalar"): make_scalar,
    ("_codecs", "encode"): make_bytes,
}
ARRAY_MAKERS: dict[tuple[str, str], Maker] = {
    ("numpy", "ndarray"): no_call,
    ("numpy.core.multiarray", "_reconstruct"): make_array,
    ("numpy._core.multiarray", "_reconstruct"): make_array,
    ("numpy.core.numeric", "_frombuffer"): array_of_buffer,
    ("numpy._core.numeric", "_frombuffer"): array_of_buffer,
}
