"""Checkpoints that ``torch.save`` wrote, read for their tensors, without torch's unpickler.

A whole module, as LLaRA saves its recommenders, and a Lightning checkpoint with its settings are
pickles full of classes; ``torch.load(weights_only=True)`` refuses them, and without it anything in
them runs. Here the pickle inside goes through `ilora.pickle_reader`: classes of modules become hollow
shells that hold what the file says of them, storages become bytes of the file, and nothing else is
allowed. Both layouts are read: the zip archive of torch 1.6 and newer, and the older file of
several pickles.

Only `ilora import reference` uses this. Nothing that this package writes is such a file.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilora.errors import InputError
from ilora.pickle_reader import (
    MOST_BYTES,
    Built,
    Maker,
    Name,
    RefusalError,
    no_call,
    read_pickle,
    read_pickle_at,
)
from ilora.pickled_arrays import NUMBER_MAKERS

REMEDY = "take the file from the people who trained it, or save its state_dict alone"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ODD_ARCHIVE = (RuntimeError, ValueError)  # what zipfile makes of encryption and of bad names
DEEPEST = 20  # modules within modules
MOST_MODULES = 10_000
MOST_PARTS = 1_000_000  # parameters, buffers and modules of them all

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Classes of the reference code, wherever they were defined when the file was written.
REFERENCE_CLASSES = {"SASRec", "GRU", "Caser", "MultiHeadAttention", "PositionwiseFeedForward"}
_MODULE = re.compile(r"(torch\.nn\.modules\.[a-z_]+)")
_IDENTIFIERS = re.compile(r"\w+(\.\w+)*")


class Attributes(dict[Any, Any], Built):
    """A dict of a kind that has attributes too, which are read past."""

    def build(self, state: Any) -> None:
        return None


class Shell(Built):
    """An object of a class that was not looked up: the class's name and the object's state."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise RefusalError(f"the state of {self.kind} is no dict")
        self.state = state

    def part(self, name: str) -> Any:
        """The submodule, parameter or attribute of that name, or None."""
        for place in ("_modules", "_parameters", "_buffers"):
            found = self.state.get(place)
            if isinstance(found, dict) and name in found:
                return found[name]
        return self.state.get(name)


@dataclass(eq=False)
class Storage:
    """Numbers in the file: of which type, how many, and how to get at their bytes."""

    dtype: torch.dtype
    size: int
    read: Callable[[], bytes]


@dataclass(eq=False)
class StoredTensor:
    """A view on a storage, checked and made into a tensor when asked for."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def check(self) -> StoredTensor:
        """Return itself; raise `RefusalError` if it reaches beyond its storage or is larger than it."""
        numbers = (self.offset, *self.shape, *self.stride)
        if any(type(number) is not int or not 0 <= number < 1 << 48 for number in numbers):
            raise RefusalError("a tensor has a shape that is none")
        if len(self.shape) != len(self.stride) or len(self.shape) > 8:
            raise RefusalError("a tensor has a shape that is none")
        count, last = 1, self.offset
        for length, step in zip(self.shape, self.stride, strict=True):
            count *= length
            last += max(0, length - 1) * step
        if count > self.storage.size or (count and last >= self.storage.size):
            raise RefusalError("a tensor is larger than its storage")
        return self

    def tensor(self) -> Tensor:
        """The tensor, in memory of its own; raises `RefusalError` if the file does not hold it."""
        self.check()
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        content = self.storage.read()
        if len(content) != self.storage.size * self.storage.dtype.itemsize:
            raise RefusalError("a storage does not hold as many numbers as its tensor says")
        flat = torch.frombuffer(bytearray(content), dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.stride, self.offset).clone()


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors by name, the module they were in (if whole), and settings."""

    path: Path
    tensors: dict[str, StoredTensor]
    module: Shell | None
    settings: dict[str, Any]

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, read now; raises `InputError` if the file does not hold it."""
        with _sentences(self.path):
            return self.tensors[name].tensor()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file that ``torch.save`` wrote: a module, a dict of tensors, or a Lightning checkpoint.

    Raises:
        InputError: no such file, not such a file, or one that needs anything else; nothing is run.
    """
    with _sentences(path):
        with path.open("rb") as file:
            packed = file.read(4) == b"PK\x03\x04"
        value = _read_zip(path) if packed else _read_legacy(path)
        return _checkpoint(path, value)


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """Make one sentence of whatever a file that is none can lead to."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"checkpoint: {path} does not exist; give a .ckpt or .pt file") from None
    except IsADirectoryError:
        raise InputError(f"checkpoint: {path} is a folder; give a .ckpt or .pt file") from None
    except InputError:
        raise
    except (RefusalError, zipfile.BadZipFile, struct.error, EOFError, *ODD_ARCHIVE) as error:
        raise InputError(f"{path} is refused: {error}; {REMEDY}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _checkpoint(path: Path, value: Any) -> Checkpoint:
    settings: dict[str, Any] = {}
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):  # Lightning
        found = value.get("hyper_parameters")
        settings = dict(found) if isinstance(found, dict) else {}
        value = value["state_dict"]
    if isinstance(value, Shell):
        return Checkpoint(path, _tensors_of(value), value, settings)
    if isinstance(value, dict):
        tensors = {
            name: tensor.check()
            for name, tensor in value.items()
            if isinstance(tensor, StoredTensor)
        }
        if tensors and all(type(name) is str for name in tensors):
            return Checkpoint(path, tensors, None, settings)
    raise InputError(
        f"checkpoint: {path} holds neither a module nor tensors by name; give a file that LLaRA or "
        "iLoRA saved"
    )


def _tensors_of(root: Shell) -> dict[str, StoredTensor]:
    """Parameters and buffers by the names, and in the order, that a state dict would have."""
    tensors: dict[str, StoredTensor] = {}
    left = MOST_PARTS
    waiting = [("", root)]
    for _ in range(MOST_MODULES):
        if not waiting:
            return tensors
        prefix, module = waiting.pop()
        if prefix.count(".") > DEEPEST:
            raise RefusalError("modules are nested too deeply")
        places = [module.state.get(place) for place in ("_parameters", "_buffers", "_modules")]
        left -= sum(len(place) for place in places if isinstance(place, dict))
        if left < 0:
            raise RefusalError(f"its modules have more than {MOST_PARTS:,} parts")
        for place in ("_parameters", "_buffers"):
            found = module.state.get(place)
            for name, tensor in found.items() if isinstance(found, dict) else ():
                if isinstance(tensor, StoredTensor):
                    tensors[f"{prefix}{name}"] = tensor.check()
        inner = module.state.get("_modules")
        parts = list(inner.items()) if isinstance(inner, dict) else []
        waiting += [(f"{prefix}{n}.", part) for n, part in parts[::-1] if isinstance(part, Shell)]
    raise RefusalError(f"it has more than {MOST_MODULES:,} modules")


def _read_zip(path: Path) -> Any:
    """``<root>/data.pkl`` and one entry ``<root>/data/<key>`` a storage, none of them compressed."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise RefusalError("it is not an archive that torch.save wrote")

    def read(name: str) -> bytes:
        entry = entries.get(f"{roots[0]}{name}")
        if entry is None:
            raise RefusalError(f"its entry {name[:60]!r} is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise RefusalError(f"its entry {name[:60]!r} is compressed, which torch never does")
        with zipfile.ZipFile(path) as archive:
            return archive.read(entry)

    if f"{roots[0]}byteorder" in entries and read("byteorder") != b"little":
        raise RefusalError("its numbers are in the byte order of another machine")

    def persistent(reference: Any) -> Storage:
        kind, dtype, key, _location, count = reference
        if kind != "storage" or type(key) is not str or type(count) is not int:
            raise RefusalError("it refers to something that is no storage")
        if not 0 <= count * _dtype_of(dtype).itemsize <= size:
            raise RefusalError("a storage is larger than the file")
        return Storage(_dtype_of(dtype), count, lambda: read(f"data/{key}"))

    return read_pickle(read("data.pkl"), str(path), allow, _safely(persistent), REMEDY)


def _read_legacy(path: Path) -> Any:
    """Pickles of a magic number, a version, the machine, the object and its keys; then storages."""
    if path.stat().st_size > MOST_BYTES:
        raise RefusalError("it is neither an archive that torch.save wrote nor a small old file")
    data, where = path.read_bytes(), str(path)
    contents: dict[str, bytes] = {}
    itemsizes: dict[str, int] = {}

    def persistent(reference: Any) -> Any:
        kind, *rest = reference
        if kind == "module":  # with its source code, which nobody needs
            return rest[0]
        dtype, key, _location, count, view = rest
        if kind != "storage" or type(key) is not str or type(count) is not int or view is not None:
            raise RefusalError("it refers to something that is no storage")
        itemsizes[key] = _dtype_of(dtype).itemsize
        if not 0 <= count * itemsizes[key] <= len(data):
            raise RefusalError("a storage is larger than the file")
        return Storage(_dtype_of(dtype), count, lambda: contents[key])

    values, at = [], 0
    for _ in range(5):
        value, at = read_pickle_at(data, at, where, allow, _safely(persistent), REMEDY)
        values.append(value)
        if values[0] != LEGACY_MAGIC:
            raise RefusalError("it is not a file that torch.save wrote")
    *_, value, keys = values
    for key in keys if type(keys) is list else ():
        (count,) = struct.unpack_from("<q", data, at)
        end = at + 8 + count * itemsizes.get(key, 0)
        if key not in itemsizes or count < 0 or end > len(data):
            raise RefusalError("its storages do not add up")
        contents[key] = data[at + 8 : end]
        at = end
    return value


def _dtype_of(name: Any) -> torch.dtype:
    if type(name) is not Name or name.name not in STORAGES:
        raise RefusalError("a storage has an unknown type")
    return STORAGES[name.name]


def _safely(persistent: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same, refusing what does not unpack as a reference of torch does."""

    def call(reference: Any) -> Any:
        try:
            return persistent(reference)
        except (TypeError, ValueError, IndexError):
            raise RefusalError("it refers to something that is no storage") from None

    return call


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``."""
    if type(storage) is not Storage or type(shape) is not tuple or type(stride) is not tuple:
        raise RefusalError("a tensor is described in an unknown way")
    return StoredTensor(storage, offset, shape, stride)


def _parameter(data: Any, *_: Any) -> StoredTensor:
    """``_rebuild_parameter(tensor, requires_grad, hooks)``."""
    if type(data) is not StoredTensor:
        raise RefusalError("a parameter holds no tensor")
    return data


def _set(values: Any = ()) -> set[Any]:
    if any(type(value) is not str for value in values):
        raise RefusalError("a set holds more than texts")
    return set(values)


def _dict() -> Attributes:
    return Attributes()


def _plain(*arguments: Any) -> tuple[Any, ...]:
    """Something that is read past: a device, a size, a path."""
    return arguments


MAKERS: dict[tuple[str, str], Maker] = {
    **{("torch", name): no_call for name in STORAGES},
    **{("torch", str(dtype).removeprefix("torch.")): no_call for dtype in STORAGES.values()},
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "device"): _plain,
    ("torch", "Size"): _plain,
    ("collections", "OrderedDict"): _dict,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    **NUMBER_MAKERS,  # sizes that were counted with numpy stay its numbers
    # Settings that Lightning puts into its checkpoints.
    ("pytorch_lightning.utilities.parsing", "AttributeDict"): _dict,
    ("lightning_fabric.utilities.data", "AttributeDict"): _dict,
    ("lightning.fabric.utilities.data", "AttributeDict"): _dict,
    ("argparse", "Namespace"): lambda: Shell("argparse.Namespace"),
    ("pathlib", "PosixPath"): _plain,
}


def allow(module: str, name: str) -> Maker | None:
    """Tensors, plain containers, and shells for modules of torch and of the reference code."""
    if (module, name) in MAKERS:
        return MAKERS[module, name]
    if _MODULE.fullmatch(module) and name.isidentifier():
        return lambda: Shell(name)
    if name in REFERENCE_CLASSES and _IDENTIFIERS.fullmatch(module):
        return lambda: Shell(name)
    return None
