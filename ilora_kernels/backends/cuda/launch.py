"""Calling the kernels: addresses of tensors, how they lie in memory, block counts, workspaces."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ilora_kernels import build_record
from ilora_kernels.dropout import threshold_and_scale

_DTYPE_NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_RANK_UNIT = 16  # h and u have so many columns, or a multiple: a step of the tensor cores
_COLUMNS_OF_BLOCK = 64  # of column_sums
_ROWS_OF_STEP = 128  # of a block of column_sums
_BLOCKS_PER_MULTIPROCESSOR = 4  # of column_sums: two rounds of the two that fit


def shrink(
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
    """Write xa and h, or from xa in the backward pass h, u and p; see ``Shrink`` in csrc/problems.h."""
    backward = u is not None
    kernels().shrink(
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


def expand(
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
    """Write ``y = base + h factorᵀ``, masked in the backward pass; y may be the base itself."""
    rows, columns = y.shape
    matrices = (factor, y) if base is None else (factor, y, base)
    kernels().expand(
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
        y.data_ptr(),
        rows,
        columns,
        h.shape[1],
        mask,
    )


def gradients(
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
        kernels().column_sums(
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
    kernels().finish(
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
def kernels() -> Any:
    """Return the compiled module."""
    return importlib.import_module(build_record.MODULE)


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _compiled_for(device: int) -> int:
    """The capability of the code that runs there, as in 90: the GPU's own, or an older one."""
    return int(kernels().compiled_for(device))


def place_of(x: Tensor) -> Any:
    """Return where the kernels run: x's GPU, and the stream that is current there."""
    device = x.get_device()
    stream = torch._C._cuda_getCurrentRawStream(device)
    can_chain = _compiled_for(device) >= 90
    return kernels().Place(device, stream, _multiprocessors(device), can_chain)


def gating_of(
    gate: Tensor, cu_seqlens: Tensor | None, rows_per_gate: int, rank: int, scaling: float
) -> Any:
    """Return the gates as the kernels read them; gate and cu_seqlens lie without gaps."""
    num_gates, experts = gate.shape
    of_expert = rank // experts
    offsets = _address(cu_seqlens)
    rows = max(rows_per_gate, 1)
    return kernels().Gating(gate.data_ptr(), offsets, num_gates, rows, experts, of_expert, scaling)


def mask_of(dropout_p: float, seed: Tensor | None) -> Any:
    """Return the dropout of a call, which may be none."""
    if seed is None or dropout_p == 0.0:
        return kernels().Mask(0, 0, 1.0)
    return kernels().Mask(seed.data_ptr(), *threshold_and_scale(dropout_p))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def offsets_of(cu_seqlens: Tensor | None) -> Tensor | None:
    """Return cu_seqlens as the kernels read it: int32, without gaps."""
    return None if cu_seqlens is None else cu_seqlens.to(torch.int32).contiguous()


def padded(rank: int) -> int:
    """Return the columns of h and u: whole steps of the tensor cores, zeros after the rank."""
    return -(-rank // _RANK_UNIT) * _RANK_UNIT


def rows_of(matrix: Tensor) -> Tensor:
    """The matrix with its rows one after another in memory, as the kernels walk them."""
    in_rows = matrix.stride(1) == 1 and matrix.shape[1] <= matrix.stride(0)
    return matrix if in_rows else matrix.clone(memory_format=torch.contiguous_format)


def _in_units(matrix: Tensor) -> bool:
    """Whether the rows are whole units of 16 bytes, each at a multiple of 16 bytes."""
    columns, stride, unit = matrix.shape[1], matrix.stride(0), 16 // matrix.dtype.itemsize
    return columns % unit == 0 and stride % unit == 0 and matrix.data_ptr() % 16 == 0


def _may_round(dtype: torch.dtype) -> bool:
    """Whether tensor cores may see the numbers: of float32 they see TF32, which torch allows or not."""
    # The one name of the setting that answers whichever of its names it was set by, and never warns.
    return dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision == "tf32"


def _for_tensor_cores(*matrices: Tensor) -> bool:
    first = matrices[0]
    if not _may_round(first.dtype) or _compiled_for(first.get_device()) < 80:
        return False
    return all(_in_units(matrix) for matrix in matrices)


def factor_of(matrix: Tensor) -> Tensor:
    """A thin factor; where tensor cores may take it, zeros fill its rows to whole units of 16 bytes."""
    matrix = rows_of(matrix)
    if not _may_round(matrix.dtype) or _in_units(matrix):
        return matrix
    unit = 16 // matrix.dtype.itemsize
    padded = matrix.new_zeros((matrix.shape[0], -(-matrix.shape[1] // unit) * unit))
    padded[:, : matrix.shape[1]] = matrix
    return padded
