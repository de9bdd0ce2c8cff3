"""What every kernel of one call shares: the gates and the dropout of the adapter."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ilora_kernels.dropout import threshold_and_scale


class Gating(NamedTuple):
    """``G[t, j] = scaling · gate[b(t), j // r]`` (see :mod:`ilora_kernels.ops` for b)."""

    gate: Tensor  # [G, K] float32
    cu_seqlens: Tensor | None  # [G + 1]
    rows_per_gate: int
    scaling: float

    @property
    def per_token(self) -> bool:
        return self.cu_seqlens is None and self.rows_per_gate == 1


def gating_of(
    gate: Tensor, cu_seqlens: Tensor | None, rows_per_gate: int, scaling: float
) -> Gating:
    """Return the gates as the kernels read them, without gaps in memory."""
    offsets = None if cu_seqlens is None else cu_seqlens.contiguous()
    return Gating(gate.contiguous(), offsets, rows_per_gate, scaling)


class Dropout(NamedTuple):
    """The mask's seed and threshold, and the factor of what it keeps."""

    seed: Tensor  # [1] int64
    threshold: int
    keep_scale: float


def dropout(dropout_p: float, seed: Tensor | None) -> Dropout | None:
    """Return the dropout of a call, or None where there is none."""
    if seed is None or dropout_p == 0.0:
        return None
    return Dropout(seed, *threshold_and_scale(dropout_p))


def padded_rank(rank: int) -> int:
    """Columns of h and u: whole steps of the tensor cores, zeros after the rank."""
    return -(-rank // 16) * 16


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``; Triton's own takes microseconds."""
    return 1 << (number - 1).bit_length()


def rank_block(rank: int, limit: int = 128) -> int:
    """The power of two in which a kernel takes the rank."""
    return min(limit, max(16, power_of_two(rank)))
