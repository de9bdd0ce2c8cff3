"""Which implementation computes: a module of this package with four names.

    SUPPORTED_DTYPES                                     the dtypes of x it takes
    why_unusable() -> str | None                         one sentence, None when it runs on this machine
    forward(x, weight, …, seed) -> (y, xa)
    backward(grad_y, x, …, needs) -> (dx, dA, dB, dgate)

Arguments and results are those of the operators in :mod:`ilora_kernels.ops`; the results are the
backend's own, without gaps in memory. To add a backend is
to add its file and to name it in ``_PREFERENCE``; nothing above this package changes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# Not `import torch`: once loaded, the submodule of that name stands in this namespace.
from torch import Tensor, dtype

AUTOMATIC = ""
_PREFERENCE = ("triton", "cuda", "torch")  # on a GPU; a CPU always gets torch


def _checked(name: str, source: str) -> str:
    if name not in (AUTOMATIC, *_PREFERENCE):
        raise ValueError(f"{source} is {name!r}; it must be one of {', '.join(_PREFERENCE)}.")
    return name


_requested = _checked(os.environ.get("ILORA_BACKEND", AUTOMATIC), "ILORA_BACKEND")


def backends() -> dict[str, str | None]:
    """Return for each backend ``None`` if it is usable here, else one sentence that says why not."""
    return {name: _why_unusable(name) for name in _PREFERENCE}


def drawbacks() -> dict[str, str]:
    """Return for each usable backend that could do more elsewhere one sentence that says why."""
    if _why_unusable("triton"):
        return {}
    reason = _module("triton").drawback()
    return {} if reason is None else {"triton": reason}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute everything inside the block with one backend: ``"torch"``, ``"triton"`` or ``"cuda"``.

    The choice holds for the whole process, not for one thread. The environment variable
    ``ILORA_BACKEND`` sets it from outside.

    Raises:
        ValueError: no backend has that name.
        RuntimeError: the backend does not run on this machine.
    """
    global _requested
    _checked(name, "use_backend's name")
    if reason := _why_unusable(name):
        raise RuntimeError(f"The {name} backend cannot be used here: {reason}")
    previous, _requested = _requested, name
    try:
        yield
    finally:
        _requested = previous


def requested() -> str:
    """Return the name asked for by ``use_backend`` or ``ILORA_BACKEND``, or ``AUTOMATIC``."""
    return _requested


def select(name: str, x: Tensor) -> ModuleType:
    """Return the backend module for ``x``: the one named, or the best that takes it."""
    if name == AUTOMATIC:
        return _module(_best_for(x.device.type, x.dtype))
    if reason := _why_unusable(name):
        raise RuntimeError(f"ILORA_BACKEND={name} cannot be used here: {reason}")
    if x.dtype not in _module(name).SUPPORTED_DTYPES:
        raise TypeError(f"The {name} backend does not take x of dtype {x.dtype}; use torch's.")
    return _module(name)


@functools.cache
def _best_for(device_type: str, x_dtype: dtype) -> str:
    if device_type != "cuda":
        return "torch"
    takes = (
        n for n in _PREFERENCE if not _why_unusable(n) and x_dtype in _module(n).SUPPORTED_DTYPES
    )
    return next(takes)


@functools.cache
def _why_unusable(name: str) -> str | None:
    if importlib.util.find_spec(f"{__name__}.{name}") is None:
        return f"this version of ilora_kernels has no {name} backend."
    try:
        module = _module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ilora_kernels"):
            raise
        return f"the package {error.name} is not installed."
    return module.why_unusable()


@functools.cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
