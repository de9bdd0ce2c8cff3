"""Files of weights: safetensors, sound and exactly what is wanted; never a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ilora.errors import InputError

PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


def refuse_pickle(path: Path, argument: str) -> None:
    """Raise `InputError` for a file whose name says that it is a pickle; it is not opened."""
    if path.suffix.lower() in PICKLE_SUFFIXES and not path.is_dir():
        raise InputError(
            f"{argument}: {path} is a pickle, which can run any code when it is loaded, and is "
            "refused; give a folder with safetensors files"
        )


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU; raises `InputError` for one that is not sound."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a sound safetensors file ({error}); restore it") from None


def require_same_tensors(
    file: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Raise `InputError`, naming the first tensor of ``file`` that is missing, too many, or of another
    shape or type than the one wanted."""
    for name in sorted(wanted.keys() | found.keys()):
        got, want = _describe(found.get(name)), _describe(wanted.get(name))
        if got != want:
            raise InputError(
                f"{file} does not fit its config.yaml: {name} is {got} where {want} is wanted; "
                "restore the files of one run"
            )


def _describe(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
