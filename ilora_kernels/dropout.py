"""The dropout mask as a pure function of (seed, row, column), so that nobody has to store it.

Every backend computes the same bits: the forward pass, the backward pass and the recomputation
under gradient checkpointing drop the same elements, and no mask is kept from one to the other.

    key        = mix(mix(seed_low) ^ seed_high)
    key[t]     = mix(mix(t) ^ key)                         neighbouring seeds share no rows
    bits[t, c] = scramble(key[t] + c · 0x9E3779B9)         32 bits for the columns 2c and 2c + 1
    keep[t, j] = (low half of bits[t, j // 2] for even j, high for odd) >= round(p · 2¹⁶)

A hash serves two elements rather than one, because in the kernels the hash is what dropout costs.
What stays is divided by the exact share that stays, so that the mask is unbiased for every p.

``mix`` is the 32-bit finaliser with two multiplications and three shifts found by the "hash
prospector" search of Wellons (2018); ``scramble`` is ``mix`` without its last shift, which the mask
does not need: means, lags, neighbourhoods and spectra of the masks show no trace of it (see the
tests), and with one multiplication less they do. All arithmetic is modulo 2³².
"""

from __future__ import annotations

import functools
import threading

import torch
from torch import Tensor

_MULTIPLIER_1 = 0x7FEB352D
_MULTIPLIER_2 = 0x846CA68B - (1 << 32)  # as the signed integer with the same bits
_GOLDEN_RATIO = 0x9E3779B9 - (1 << 32)
_GOLDEN_RATIO_64 = 0x9E3779B97F4A7C15

_LARGEST = 2**63 - 1
_SEEDS_AT_ONCE = 1024
_APART = 2  # of these numbers every other one is a seed: on addresses of whole 16 bytes
_OFFSETS_A_SEED = 4  # what torch counts draws in
_one_at_a_time = threading.Lock()


def draw_seed(device: torch.device) -> Tensor:
    """Return one int64 seed ``[1]`` on ``device`` from torch's generator, without a synchronisation.

    On a GPU that generator is a seed and an offset, which a draw moves on, and which
    ``torch.manual_seed`` and gradient checkpointing set. The result is a function of the two, and one of
    many that were drawn together: to launch a kernel for each would cost the CPU as much as one of the
    layer's own. In a CUDA graph, of which every replay is to draw anew, and where torch traces or
    transforms the call, it is drawn by itself.
    """
    if device.type != "cuda" or _recorded() or torch.cuda.is_current_stream_capturing():
        return torch.randint(0, _LARGEST, (1,), dtype=torch.int64, device=device)
    index = torch.cuda.current_device() if device.index is None else device.index
    stream = torch._C._cuda_getCurrentRawStream(index)
    return _next_seed(torch.cuda.default_generators[index], device, stream)


def _next_seed(generator: torch.Generator, device: torch.device, stream: int) -> Tensor:
    with _one_at_a_time:
        offset = generator.get_offset()
        generator.set_offset(offset + _OFFSETS_A_SEED)
    number, place = divmod(offset // _OFFSETS_A_SEED, _SEEDS_AT_ONCE)
    # What a mode makes of the seeds is not kept for those after it.
    watched = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    draw = _seeds.__wrapped__ if watched else _seeds
    return draw(device, stream, generator.initial_seed(), number).narrow(0, place * _APART, 1)


@functools.lru_cache(maxsize=16)
def _seeds(device: torch.device, stream: int, seed: int, number: int) -> Tensor:
    """The seeds of a stretch of offsets, drawn on a stream, on which alone they may be used."""
    mixed = seed ^ (number + 1) * _GOLDEN_RATIO_64 % 2**63
    generator = torch.Generator(device).manual_seed(mixed)
    shape = (_SEEDS_AT_ONCE * _APART,)
    with torch.inference_mode(False):  # a later call may have to save them for its backward pass
        return torch.randint(
            0, _LARGEST, shape, generator=generator, dtype=torch.int64, device=device
        )


def _recorded() -> bool:
    """Whether what is called now is traced, to be called again later, or transformed."""
    c = torch._C
    modes = c._TorchDispatchModeKey
    return (
        torch.compiler.is_compiling()
        or c._are_functorch_transforms_active()
        or c._is_tracing()
        or any(c._get_dispatch_mode(m) for m in (modes.FAKE, modes.PROXY, modes.FUNCTIONAL))
    )


@functools.lru_cache(maxsize=64)
def threshold_and_scale(dropout_p: float) -> tuple[int, float]:
    """Return round(p · 2¹⁶) and the factor 1 / (1 - p) of what stays, for that rounded p < 1."""
    threshold = min(round(dropout_p * 2**16), 2**16 - 1)
    return threshold, 2**16 / (2**16 - threshold)


def keep_mask(seed: Tensor, num_rows: int, num_columns: int, dropout_p: float) -> Tensor:
    """Return the boolean mask ``[num_rows, num_columns]`` of the elements that stay.

    Args:
        seed: int64 ``[1]``, from :func:`draw_seed`.
        num_rows: tokens, T.
        num_columns: features, d_in.
        dropout_p: the probability of dropping an element, resolved to 2⁻¹⁶.
    """
    threshold, _ = threshold_and_scale(dropout_p)
    rows = torch.arange(num_rows, dtype=torch.int32, device=seed.device)
    pairs = torch.arange((num_columns + 1) // 2, dtype=torch.int32, device=seed.device)
    low, high = _low_32_bits(seed), _low_32_bits(seed >> 32)
    row_key = _mix(_mix(rows) ^ _mix(_mix(low) ^ high))
    bits = _scramble(row_key[:, None] + (pairs * _GOLDEN_RATIO)[None, :])
    halves = torch.stack([bits & 0xFFFF, (bits >> 16) & 0xFFFF], dim=-1)
    return halves.flatten(1)[:, :num_columns] >= threshold


def _low_32_bits(value: Tensor) -> Tensor:
    low = value & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)


def _mix(z: Tensor) -> Tensor:
    z = _scramble(z)
    z ^= (z >> 16) & 0xFFFF
    return z


def _scramble(z: Tensor) -> Tensor:
    # A right shift of a signed tensor copies the sign; the mask makes it the unsigned shift.
    z = z ^ ((z >> 16) & 0xFFFF)
    z *= _MULTIPLIER_1
    z ^= (z >> 15) & 0x1FFFF
    z *= _MULTIPLIER_2
    return z
