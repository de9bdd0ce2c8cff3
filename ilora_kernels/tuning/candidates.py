"""Which block sizes are tried for each role, beside those in use."""

from __future__ import annotations

from typing import Any

from ilora_kernels.backends.triton.adapter import power_of_two
from ilora_kernels.backends.triton.configs import DecodeConfig, LinearConfig, PassConfig

_LINEAR = [
    LinearConfig(128, 256, 64, parts, 16, flatten, 8, 3)
    for parts in (2, 4)
    for flatten in (True, False)
]
_SHRINK = [PassConfig(64, 64, 4, stages) for stages in (3, 4, 5)]
_MASKED = [
    PassConfig(16, 64, 4, 3),
    PassConfig(32, 64, 4, 4),
    PassConfig(64, 64, 4, 4),
    PassConfig(16, 128, 4, 4),
    PassConfig(32, 128, 4, 3),
]
_GRADIENTS = [PassConfig(64, 64, 4, 3), PassConfig(64, 64, 4, 4), PassConfig(128, 32, 4, 3)]
_ALONE = [  # nothing beside it to leave room for
    PassConfig(16, 128, 4, 5),
    PassConfig(32, 64, 4, 5),
    PassConfig(32, 128, 4, 5),
    PassConfig(64, 64, 4, 5),
    PassConfig(64, 128, 4, 4),
]
_DELTA = [  # no loop over the matrix, so no stages
    PassConfig(32, 128, 4, 1),
    PassConfig(64, 64, 4, 1),
    PassConfig(64, 128, 4, 1),
    PassConfig(64, 256, 8, 1),
    PassConfig(128, 128, 8, 1),
]
_FIXED: dict[str, list[Any]] = {
    "linear": _LINEAR,
    "linear backward": _LINEAR,
    "linear backward dropout": [c for c in _LINEAR if not c.flatten],
    "shrink": _SHRINK,
    "shrink dropout": _MASKED,
    "shrink backward": _SHRINK,
    "shrink alone": _ALONE,
    "gradients": _GRADIENTS,
    "gradients dropout": _GRADIENTS,
    "delta": _DELTA,
}

# block_n, block_k, blocks, prefetch, copy_engine, num_warps; the stages are as many as there is room for.
_DECODE = [
    (64, 128, 2, 4, True, 4),
    (64, 128, 2, 0, True, 4),
    (64, 128, 2, 8, True, 4),
    (64, 128, 2, 4, False, 4),
    (64, 64, 3, 4, True, 4),
    (64, 256, 1, 8, True, 4),
    (32, 128, 3, 4, True, 4),
    (128, 64, 2, 4, True, 4),
    (128, 64, 1, 8, True, 8),
    (128, 128, 1, 4, True, 4),
    (128, 128, 1, 8, True, 4),
    (128, 128, 1, 8, True, 8),
    (128, 128, 1, 16, True, 8),
    (64, 128, 1, 8, True, 4),
    (256, 64, 1, 4, True, 8),
]
_MOST_STAGES = 6
_RESERVED_BYTES = 1024  # of shared memory, for each block


def candidates(role: str, rows: int, shared_bytes: int, default: Any) -> list[Any]:
    """Return the configurations to try: ``default``, the one in use, and then others.

    Args:
        role: one of ``configs.ROLES``.
        rows: of the problem; how deep the loads of ``decode`` can be depends on it.
        shared_bytes: shared memory of a multiprocessor.
    """
    tried = _decode(rows, shared_bytes) if role == "decode" else _FIXED[role]
    return [default, *(config for config in tried if config != default)]


def _decode(rows: int, shared_bytes: int) -> list[DecodeConfig]:
    """Those whose blocks leave each other room for two steps of W and x in shared memory."""
    block_t = max(16, power_of_two(rows))
    found = []
    for block_n, block_k, blocks, prefetch, copy_engine, num_warps in _DECODE:
        step_bytes = 2 * (block_n + block_t) * block_k
        room = shared_bytes // blocks - _RESERVED_BYTES
        stages = min(_MOST_STAGES, room // step_bytes)
        if stages >= 2:
            found.append(
                DecodeConfig(block_n, block_k, blocks, prefetch, copy_engine, num_warps, stages)
            )
    return found
