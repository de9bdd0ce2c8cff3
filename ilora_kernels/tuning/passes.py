"""The passes in which a role's kernels are measured, on random data in bfloat16.

A kernel is never timed by itself: those of a pass run beside one another, and a block that is fast alone
can leave its neighbour no room. Decoding is measured as it is served, through many layers, and through
those of narrow weights apart from those of wide ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ilora_kernels.backends import triton as backend
from ilora_kernels.dropout import draw_seed

Pass = Callable[[], Sequence[Tensor]]

DTYPE = torch.bfloat16
WIDTH, INSTANCES, EXPERTS = 4096, 8, 4
DROPOUT = 0.1
LAYERS = 16  # of decoding; their weights are distinct, and together larger than any L2
DECODE_SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008), (14336, 4096))  # of Llama's weights
NARROW = 8192  # d_out of a narrow weight, at most: an H100 holds all its blocks of 64 rows at once


class Grid(NamedTuple):
    """The problems that a role is measured on; a bucket ends at each, and the last is open."""

    rows: tuple[int, ...]
    ranks: tuple[int, ...]
    columns: tuple[int, ...] = (0,)  # d_out of the weight; 0 where the role does not tell it


def grid(role: str) -> Grid:
    """Return the problems of a role."""
    if role == "decode":  # the rank is a few rows beside those of W
        return Grid(rows=(16, 32, 64, 128), ranks=(16,), columns=(NARROW, 14336))
    return Grid(rows=(2048, 8192, 32768), ranks=(16, 32, 64))


def passes(role: str, rows: int, rank: int, columns: int = 0) -> list[Pass]:
    """Return what to measure for a role: one pass, or for ``decode`` one a shape of the weight.

    Those are the narrow ones of ``DECODE_SHAPES`` for ``columns`` up to ``NARROW``, else the others.
    """
    if role == "decode":
        narrow = columns <= NARROW
        shapes = [shape for shape in DECODE_SHAPES if (shape[0] <= NARROW) == narrow]
        return [decoding(rows, rank, *shape) for shape in shapes]
    if role in ("shrink alone", "delta"):
        return [alone(rows, rank)]
    backward = "backward" in role or "gradients" in role
    return [layer(rows, rank, backward=backward, masked="dropout" in role)]


def layer(rows: int, rank: int, *, backward: bool, masked: bool) -> Pass:
    """A pass through one adapted layer, forward or backward."""
    x, dy, weight = random(rows, WIDTH), random(rows, WIDTH), random(WIDTH, WIDTH)
    low_rank = random(rank, WIDTH), random(WIDTH, rank), random_gate(INSTANCES)
    each = rows // INSTANCES
    seed = draw_seed(x.device) if masked else None
    p = DROPOUT if masked else 0.0

    def forward() -> Sequence[Tensor]:
        return backend.forward(x, weight, None, None, *low_rank, None, each, 1.0, p, seed)

    if not backward:
        return forward
    _, xa = forward()
    return lambda: backend.backward(
        dy, x, weight, *low_rank, None, xa, each, 1.0, p, seed, [True] * 4
    )


def alone(rows: int, rank: int) -> Pass:
    """The low-rank path where no product is fused: onto a base, and back to the gradient of x."""
    x, dy, base = (random(rows, WIDTH) for _ in range(3))
    low_rank = random(rank, WIDTH), random(WIDTH, rank), random_gate(INSTANCES)
    each = rows // INSTANCES

    def both() -> Sequence[Tensor]:
        y, xa = backend.forward(x, None, None, base, *low_rank, None, each, 1.0, 0.0, None)
        dx, *_ = backend.backward(
            dy, x, None, *low_rank, None, xa, each, 1.0, 0.0, None, [True, False, False, False]
        )
        return y, xa, dx

    return both


def decoding(rows: int, rank: int, d_out: int, d_in: int) -> Pass:
    """A token a row through layers with weights of their own, so that each is read from memory."""
    layers = [
        (random(rows, d_in), random(d_out, d_in), random(rank, d_in), random(d_out, rank))
        for _ in range(LAYERS)
    ]
    gate = random_gate(rows)

    def forward() -> Sequence[Tensor]:
        return [
            backend.forward(x, weight, None, None, A, B, gate, None, 1, 1.0, 0.0, None)[0]
            for x, weight, A, B in layers
        ]

    return forward


def random(*shape: int) -> Tensor:
    """Standard normal, in ``DTYPE``, on the current GPU."""
    return torch.randn(*shape, device="cuda", dtype=DTYPE)


def random_gate(instances: int) -> Tensor:
    """Gates ``[instances, EXPERTS]`` that add up to one."""
    return torch.rand(instances, EXPERTS, device="cuda").softmax(-1)
