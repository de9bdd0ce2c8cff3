"""Block sizes by GPU and shape bucket: shipped as files, never searched for at run time.

A configuration file is JSON: for each role, buckets in order, the first that fits counts.

    {"shrink": [{"max_rows": 8192, "max_rank": 32, "config": {"block_t": 64, ...}}, ...], ...}

Those of ``decode`` may also say ``max_columns``, the largest d_out: whether few large blocks or many
small ones read a weight faster depends on how many rows it has for the multiprocessors to share.

``tuned/default.json`` serves every GPU without a file of its own. ``python -m ilora_kernels.tune``
measures and writes one; the environment variable ``ILORA_TUNED`` names a file to use instead.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROLES = (
    "linear",  # the frozen product
    "linear backward",
    "linear backward dropout",  # the mask stands between the two sums of dX
    "shrink",
    "shrink dropout",  # over x, masked
    "shrink backward",
    "shrink alone",  # forward or backward, where no product follows that it could run beside
    "gradients",
    "gradients dropout",
    "delta",
    "decode",
)
TUNED_FOLDER = Path(__file__).parent / "tuned"


@dataclass(frozen=True)
class LinearConfig:
    """The tile of the frozen product (see ``linear``)."""

    block_m: int
    block_n: int
    block_k: int
    parts: int  # the tile leaves in so many parts, so that shared memory has room for more stages
    group: int  # rows of tiles in a band
    flatten: bool  # one loop over tiles and steps: loads run on across tiles, as Hopper's always do
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        if self.parts not in (2, 4):  # a half tile has half as many
            raise ValueError(f"parts is {self.parts}; a tile leaves in 2 or 4 parts.")


@dataclass(frozen=True)
class PassConfig:
    """The tile of a pass over a tall matrix (see ``shrink``, ``gradients`` and ``delta``)."""

    block_t: int
    block_d: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class DecodeConfig:
    """How few rows meet a weight (see ``decode``)."""

    block_n: int  # rows of the weight
    block_k: int
    blocks: int  # programs a multiprocessor that the cuts of d_in aim at
    prefetch: int  # 128-byte lines of each row that are fetched before the kernel before has ended
    copy_engine: bool  # tensor descriptors, where the GPU has them
    num_warps: int
    num_stages: int


Table = dict[str, list[dict[str, Any]]]


@functools.lru_cache(maxsize=4096)
def choose(role: str, rows: int, rank: int, device: int, columns: int = 0) -> Any:
    """Return the configuration of a role for ``rows`` rows and total rank ``rank``.

    Args:
        columns: d_out, which only ``decode`` tells.

    Raises:
        LookupError: no bucket of the role takes them.
    """
    for bucket in _table(device)[role]:
        if (
            rows <= bucket.get("max_rows", rows)
            and rank <= bucket.get("max_rank", rank)
            and columns <= bucket.get("max_columns", columns)
        ):
            return _kind(role)(**bucket["config"])
    wide = f" for {columns} columns" if columns else ""
    raise LookupError(
        f"No bucket of role {role!r} takes {rows} rows and rank {rank}{wide}; write the file of block "
        "sizes anew with python -m ilora_kernels.tune, or unset ILORA_TUNED."
    )


def _kind(role: str) -> type[Any]:
    if role.startswith("linear"):
        return LinearConfig
    return DecodeConfig if role == "decode" else PassConfig


@contextmanager
def using(table: Table) -> Iterator[None]:
    """Choose from ``table`` inside the block; for measurements and tests."""
    global _in_use, _table_number
    before, _in_use = _in_use, table
    _table_number += 1
    choose.cache_clear()
    try:
        yield
    finally:
        _in_use = before
        _table_number += 1
        choose.cache_clear()


def table_number() -> int:
    """A number that changes whenever another table is in use."""
    return _table_number


def tuned_path(gpu: str) -> Path:
    """Where the configurations of a GPU of this name are kept."""
    return TUNED_FOLDER / (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")


_in_use: Table | None = None
_table_number = 0


def _table(device: int) -> Table:
    return _loaded(_path(device)) if _in_use is None else _in_use


@functools.cache
def _loaded(path: Path) -> Table:
    return load(path)


@functools.cache
def _path(device: int) -> Path:
    if named := os.environ.get("ILORA_TUNED"):
        return Path(named)
    if torch.cuda.is_available():
        path = tuned_path(torch.cuda.get_device_name(device))
        if path.exists():
            return path
    return TUNED_FOLDER / "default.json"


def load(path: Path) -> Table:
    """Read a configuration file.

    Raises:
        ValueError: the file does not hold buckets for every role.
    """
    try:
        table: Table = json.loads(path.read_text(encoding="utf-8"))["roles"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a file of block sizes ({error!r}); write one with "
            "python -m ilora_kernels.tune, or unset ILORA_TUNED."
        ) from error
    if missing := set(ROLES) - set(table):
        raise ValueError(
            f"{path} lacks the roles {', '.join(sorted(missing))}; write it anew with "
            "python -m ilora_kernels.tune."
        )
    return table


@functools.cache
def multiprocessors(device: int) -> int:
    """How many programs of the product run at once."""
    if not torch.cuda.is_available():
        return 4  # the interpreter: enough for a program to own several tiles
    return torch.cuda.get_device_properties(device).multi_processor_count


def tile_counts(rows: int, columns: int, height: int, width: int, programs: int) -> tuple[int, int]:
    """How many whole tiles ``linear`` computes on ``[rows, columns]``, and how many half ones after.

    A last round that occupies at most half of the programs is computed in half tiles, by twice as
    many of them.
    """
    tiles = math.ceil(rows / height) * math.ceil(columns / width)
    last_round = tiles % programs
    if 2 * last_round <= programs:
        return tiles - last_round, 2 * last_round
    return tiles, 0


def decode_splits(columns: int, depth: int, config: DecodeConfig, programs: int) -> int:
    """Into how many parts d_in is cut: the tiles, that of A among them, fill the GPU at most once.

    One part where the whole tiles do already.
    """
    tiles = math.ceil(columns / config.block_n) + 1
    steps = math.ceil(depth / config.block_k)
    return max(1, min(programs * config.blocks // tiles, steps // _LEAST_STEPS))


_LEAST_STEPS = 4  # of a part; fewer leave the loads no time to run ahead


# What the choice between the two ways rests on, measured on an H200 in bf16 (docs/performance.md); the
# launches such that 1024×4096 at T = 1024, on an H100 5 % faster with the library's product, is left to
# that. Only their ratios matter, so they serve other GPUs too.
_FLOP_PER_US = 7e8  # of the product, all multiprocessors busy
_HALF_TILE_RATE = 0.88  # what tiles of half the width reach of that
_BYTES_PER_US = 3e6  # of shrink and delta where nothing hides them
_LAUNCHES_US = 10.0  # what they take however little there is to do


@functools.lru_cache(maxsize=4096)
def fusing_pays(rows: int, columns: int, depth: int, tile: tuple[int, int], device: int) -> bool:
    """Whether ``linear`` beats the library's product with ``shrink`` and ``delta`` around it.

    A last round of tiles that leaves multiprocessors idle costs as much as a full one. The library
    has smaller tiles for small products, but then x is read and y written once more, and nothing
    hides it.
    """
    height, width = tile
    programs = multiprocessors(device)
    round_us = programs * height * width * 2 * depth / _FLOP_PER_US
    whole, half = tile_counts(rows, columns, height, width, programs)
    rounds = math.ceil(whole / programs) + (0.5 / _HALF_TILE_RATE if half else 0)
    in_small_tiles = rows * columns / (programs * height * width) / _HALF_TILE_RATE
    moved_bytes = 2 * rows * depth + 4 * rows * columns
    around_us = moved_bytes / _BYTES_PER_US + _LAUNCHES_US
    return rounds * round_us <= min(rounds, in_small_tiles) * round_us + around_us
