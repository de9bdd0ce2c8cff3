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


def switch_off_cudnn_attention() -> None:
    """Keep PyTorch from taking cuDNN's attention, in the whole process.

    Its gradients of the queries are NaN in rows that see no key, as padding on the left has them, when
    the length is an odd multiple of 64 (cuDNN of torch 2.11.0+cu130 on an H100: at 192, 320, 448 and
    576, not at 184, 200, 256 or 512; PyTorch's own kernels give numbers at all of them).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
