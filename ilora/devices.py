"""Where to compute: what the user asked for, or a GPU if there is one."""

from __future__ import annotations

import torch

from ilora.errors import InputError


def choose_device(device: str | torch.device | None) -> torch.device:
    """``device``, or where it is None CUDA if there is one, else the CPU.

    Raises:
        InputError: no ``cpu``, ``cuda`` or ``cuda:N``, or a GPU that is not here.
    """
    count = torch.cuda.device_count()
    try:
        place = torch.device(device or ("cuda" if count else "cpu"))
    except RuntimeError:
        raise InputError(f"device: {device!r} is no device; choose cpu, cuda or cuda:N") from None
    if place.type not in ("cpu", "cuda"):
        raise InputError(f"device: {device!r} is not supported; choose cpu, cuda or cuda:N")
    if place.type == "cuda" and (place.index or 0) >= count:
        raise InputError(
            f"device: {str(place)!r} is not on this machine, which has {count} CUDA devices; choose "
            "cpu or one of them"
        )
    return place
