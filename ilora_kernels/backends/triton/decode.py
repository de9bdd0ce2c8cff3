"""A handful of rows, as in serving: ``y = x Wᵀ + bias + h Bᵀ``, with W read once.

With T tokens of up to 128, perhaps one a user, the product is bound by reading the weight, and a tile of
``linear`` would leave most multiprocessors idle (see ``decode_split``).

How d_in is cut and summed follows from the shape of W and the bucket alone, so that a row of y has the
same bits in every batch of that bucket. Nothing is kept between calls: calls on several streams,
and graphs, are independent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ilora_kernels.backends.triton.adapter import Dropout, Gating
from ilora_kernels.backends.triton.configs import DecodeConfig, choose
from ilora_kernels.backends.triton.decode_split import decode_split
from ilora_kernels.backends.triton.launch import current_device, describable

MOST_ROWS, MOST_RANK = 128, 128


def can_decode(x: Tensor, weight: Tensor, lora_A: Tensor, dropout: Dropout | None) -> bool:
    """Whether these kernels take the call: few rows in 16 bits, laid out in units of 16 bytes."""
    return (
        x.shape[0] <= MOST_ROWS
        and (weight.shape[0] + MOST_RANK) * MOST_ROWS < 2**31  # offsets of partial sums are int32
        and lora_A.shape[0] <= MOST_RANK
        and dropout is None
        and x.dtype != torch.float32
        and torch.version.hip is None
        and describable(x)
        and describable(weight)
        and describable(lora_A)
    )


def decode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gating: Gating,
    xa: Tensor,
    y: Tensor,
) -> None:
    """Write ``y [T, d_out]`` and, in float32, ``xa = x Aᵀ [T, R]``."""
    config: DecodeConfig = choose("decode", x.shape[0], lora_A.shape[0], current_device())
    decode_split(x, weight, bias, lora_A, lora_B, gating, xa, y, config)
