"""CUDA C++: thin passes at the speed of memory around the library's product, for machines without Triton.

    forward     shrink(x) ── xa, h ──▶ expand: y = x Wᵀ + bias, then += h Bᵀ in place
    backward    shrink(dY) ── u, h, p ──▶ column_sums ──▶ finish: dA, dB, dG
                                     └──▶ expand: dX = dY W, then += mask ⊙ (u A) in place

The kernels are in ``csrc/``, one file each, and know addresses, sizes and a stream; everything that they
write is allocated here. 16-bit matrices whose rows are whole units of 16 bytes go to the tensor cores;
all others, and float32, to plain multiply-adds.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ilora_kernels import build_record
from ilora_kernels.dropout import threshold_and_scale

SUPPORTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_DTYPE_NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_RANK_UNIT = 16  # h and u have so many columns, or a multiple: a step of the tensor cores
_COLUMNS_OF_BLOCK = 64  # of column_sums
_ROWS_OF_STEP = 128  # of a block of column_sums
_BLOCKS_PER_MULTIPROCESSOR = 4  # of column_sums: two rounds of the two that fit


def why_unusable() -> str | None:
    """Needs a CUDA GPU, kernels that were built, and both of one generation."""
    if not build_record.extension_exists():
        return build_record.why_missing()
    if torch.version.hip or not torch.cuda.is_available():
        return "there is no CUDA GPU."
    if reason := _kernels().why_unusable(torch.cuda.current_device()):
        major, minor = torch.cuda.get_device_capability()
        return (
            f"the kernels do not run on this GPU of compute capability {major}.{minor}: {reason}; "
            f"install again with ILORA_CUDA=on and ILORA_CUDA_ARCHS={major}{minor}."
        )
    return None


def forward(
    x: Tensor,  # [T, d_in]
    weight: Tensor | None,  # [d_out, d_in]
    bias: Tensor | None,  # [d_out]
    base: Tensor | None,  # [T, d_out]
    lora_A: Tensor,  # [R, d_in]
    lora_B: Tensor,  # [d_out, R]
    gate: Tensor,  # [G, K]
    cu_seqlens: Tensor | None,  # [G + 1]
    rows_per_gate: int,
    scaling: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return ``y [T, d_out]`` and ``x̂ Aᵀ [T, R]`` before the gates."""
    _check_device(x)
    rows, rank = x.shape[0], lora_A.shape[0]
    xa = gate.new_empty((rows, rank))
    if rows == 0 or lora_B.shape[0] == 0:
        return x.new_empty((rows, lora_B.shape[0])), xa.zero_()
    place, gate, cu_seqlens = _place(x), gate.contiguous(), _offsets(cu_seqlens)
    gating = _gating(gate, cu_seqlens, rows_per_gate, rank, scaling)
    mask = _mask(dropout_p, seed)
    x, lora_A, lora_B = _rows(x), _factor(lora_A), _factor(lora_B)
    h = x.new_empty((rows, _padded(rank)))
    _shrink(place, x, lora_A, xa, h, None, None, rank, gating, mask)
    if weight is not None:
        y = base = F.linear(x, weight, bias)
    else:
        y = x.new_empty((rows, lora_B.shape[0]))
        base = None if base is None else _rows(base)
    _expand(place, base, h, lora_B, y, rank, mask, backward=False)
    return y, xa


def backward(
    grad_y: Tensor,  # [T, d_out]
    x: Tensor,
    weight: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    cu_seqlens: Tensor | None,
    xa: Tensor,  # [T, R]
    rows_per_gate: int,
    scaling: float,
    dropout_p: float,
    seed: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dx, dA, dB and dgate; an empty tensor where ``needs`` says nobody asks."""
    _check_device(x)
    inputs = (x, lora_A, lora_B, gate)
    dx, dA, dB, dgate = (
        t.new_empty(t.shape) if n else x.new_empty((0,)) for t, n in zip(inputs, needs, strict=True)
    )
    if grad_y.numel() == 0 or x.numel() == 0:
        return dx.zero_(), dA.zero_(), dB.zero_(), dgate.zero_()
    rows, rank = xa.shape
    place, gate, cu_seqlens = _place(x), gate.contiguous(), _offsets(cu_seqlens)
    gating = _gating(gate, cu_seqlens, rows_per_gate, rank, scaling)
    mask = _mask(dropout_p, seed)
    x, dy, lora_A, lora_B = _rows(x), _rows(grad_y), _factor(lora_A), _factor(lora_B)
    h, u = (dy.new_empty((rows, _padded(rank))) for _ in range(2))
    p = torch.empty_like(xa)
    _shrink(place, dy, lora_B, xa.contiguous(), h, u, p, rank, gating, mask)
    # dY again at once, while part of it is still in the cache; dX when nobody needs it any more.
    _gradients(place, dy, h, dB, x, u, dA, p, dgate, gating, mask)
    if needs[0]:
        base = None
        if weight is not None:
            del dx  # before the library allocates its own
            dx = base = dy @ weight
        _expand(place, base, u, lora_A, dx, rank, mask, backward=True)
    return dx, dA, dB, dgate


def _shrink(
    place: Any,
    matrix: Tensor,  # x, or dY in the backward pass
    factor: Tensor,  # lora_A, or lora_B in the backward pass
    xa: Tensor,
    h: Tensor,
    u: Tensor | None,  # backward pass, as p
    p: Tensor | None,
    rank: int,
    gating: Any,
    mask: Any,
) -> None:
    backward = u is not None
    _kernels().shrink(
        place,
        _DTYPE_NUMBERS[matrix.dtype],
        backward,
        _for_tensor_cores(matrix, factor),
        matrix.data_ptr(),
        matrix.stride(0),
        factor.data_ptr(),
        factor.stride(0),
        factor.shape[1] if backward else rank,
        xa.data_ptr(),
        h.data_ptr(),
        _address(u),
        _address(p),
        *matrix.shape,
        rank,
        h.shape[1],
        gating,
        mask,
    )


def _expand(
    place: Any,
    base: Tensor | None,
    h: Tensor,  # or u in the backward pass
    factor: Tensor,  # lora_B, or lora_A in the backward pass
    y: Tensor,
    rank: int,
    mask: Any,
    *,
    backward: bool,
) -> None:
    rows, columns = y.shape
    matrices = (factor, y) if base is None else (factor, y, base)
    _kernels().expand(
        place,
        _DTYPE_NUMBERS[y.dtype],
        backward,
        _for_tensor_cores(*matrices),
        _address(base),
        columns if base is None else base.stride(0),
        h.data_ptr(),
        factor.data_ptr(),
        factor.stride(0),
        rank if backward else factor.shape[1],
        factor.shape[1] if backward else columns,
        y.data_ptr(),
        rows,
        columns,
        h.shape[1],
        mask,
    )


def _gradients(
    place: Any,
    dy: Tensor,
    h: Tensor,
    dB: Tensor,  # empty where nobody asks, as dA and dgate
    x: Tensor,
    u: Tensor,
    dA: Tensor,
    p: Tensor,
    dgate: Tensor,
    gating: Any,
    mask: Any,
) -> None:
    """Sums over parts of the rows, then their sums in order: the same bits every time."""
    rows, rank = p.shape
    number = _DTYPE_NUMBERS[x.dtype]
    columns_dB, columns_dA = (m.shape[1] if d.numel() else 0 for m, d in ((dy, dB), (x, dA)))
    splits, rows_per_split = _splits(rows, columns_dB, columns_dA, _multiprocessors(x.get_device()))
    partial_dB, partial_dA = (p.new_empty((splits, d.numel())) for d in (dB, dA))
    if columns_dB or columns_dA:
        _kernels().column_sums(
            place,
            number,
            _for_tensor_cores(dy, x),
            dy.data_ptr(),
            dy.stride(0),
            columns_dB,
            h.data_ptr(),
            partial_dB.data_ptr(),
            x.data_ptr(),
            x.stride(0),
            columns_dA,
            u.data_ptr(),
            partial_dA.data_ptr(),
            mask,
            rows,
            rows_per_split,
            splits,
            rank,
            h.shape[1],
        )
    _kernels().finish(
        place,
        number,
        partial_dB.data_ptr(),
        partial_dA.data_ptr(),
        dB.data_ptr(),
        dA.data_ptr(),
        dB.numel(),
        dA.numel(),
        splits,
        p.data_ptr(),
        dgate.data_ptr() if dgate.numel() else 0,
        rows,
        rank,
        gating,
    )


def _splits(rows: int, columns_dB: int, columns_dA: int, multiprocessors: int) -> tuple[int, int]:
    """In how many parts the rows are summed, so that every multiprocessor is busy; rows of a part."""
    blocks = -(-columns_dB // _COLUMNS_OF_BLOCK) + -(-columns_dA // _COLUMNS_OF_BLOCK)
    wanted = _BLOCKS_PER_MULTIPROCESSOR * multiprocessors // max(blocks, 1)
    steps = -(-rows // _ROWS_OF_STEP)
    steps_per_split = -(-steps // max(1, min(wanted, steps)))
    return -(-steps // steps_per_split), steps_per_split * _ROWS_OF_STEP


@functools.cache
def _kernels() -> Any:
    return importlib.import_module(build_record.MODULE)


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _can_chain(device: int) -> bool:
    return bool(_kernels().can_chain(device))


@functools.cache
def _has_tensor_cores(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _place(x: Tensor) -> Any:
    device = x.get_device()
    stream = torch._C._cuda_getCurrentRawStream(device)
    return _kernels().Place(device, stream, _multiprocessors(device), _can_chain(device))


def _gating(
    gate: Tensor, cu_seqlens: Tensor | None, rows_per_gate: int, rank: int, scaling: float
) -> Any:
    num_gates, experts = gate.shape
    of_expert = rank // experts
    offsets = _address(cu_seqlens)
    rows = max(rows_per_gate, 1)
    return _kernels().Gating(gate.data_ptr(), offsets, num_gates, rows, experts, of_expert, scaling)


def _mask(dropout_p: float, seed: Tensor | None) -> Any:
    if seed is None or dropout_p == 0.0:
        return _kernels().Mask(0, 0, 1.0)
    return _kernels().Mask(seed.data_ptr(), *threshold_and_scale(dropout_p))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _offsets(cu_seqlens: Tensor | None) -> Tensor | None:
    return None if cu_seqlens is None else cu_seqlens.to(torch.int32).contiguous()


def _padded(rank: int) -> int:
    return -(-rank // _RANK_UNIT) * _RANK_UNIT


def _rows(matrix: Tensor) -> Tensor:
    """The matrix with its rows one after another in memory, as the kernels walk them."""
    in_rows = matrix.stride(1) == 1 and matrix.shape[1] <= matrix.stride(0)
    return matrix if in_rows else matrix.clone(memory_format=torch.contiguous_format)


def _in_units(matrix: Tensor) -> bool:
    """Whether the rows are whole units of 16 bytes, each at a multiple of 16 bytes."""
    columns, stride = matrix.shape[1], matrix.stride(0)
    return columns % 8 == 0 and stride % 8 == 0 and matrix.data_ptr() % 16 == 0


def _for_tensor_cores(*matrices: Tensor) -> bool:
    first = matrices[0]
    if first.dtype == torch.float32 or not _has_tensor_cores(first.get_device()):
        return False
    return all(_in_units(matrix) for matrix in matrices)


def _factor(matrix: Tensor) -> Tensor:
    """A thin factor, in 16-bit dtypes with rows in whole units of 16 bytes: zeros fill them."""
    matrix = _rows(matrix)
    if matrix.dtype == torch.float32 or _in_units(matrix):
        return matrix
    padded = matrix.new_zeros((matrix.shape[0], -(-matrix.shape[1] // 8) * 8))
    padded[:, : matrix.shape[1]] = matrix
    return padded


def _check_device(x: Tensor) -> None:
    # Kernels are handed addresses, and nothing after this would notice one of the CPU's.
    if not x.is_cuda:
        raise RuntimeError(
            f"x is on {x.device}, where the cuda backend does not compute; move it to a GPU, or use "
            "the torch backend."
        )
