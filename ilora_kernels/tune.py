"""Measure block sizes on this GPU and write them where the Triton backend finds them.

    python -m ilora_kernels.tune                 # this GPU's file, beside the shipped ones
    python -m ilora_kernels.tune --out mine.json # use it with ILORA_TUNED=mine.json

Every candidate is measured inside a whole forward or backward pass, since the kernels of a pass run
beside one another: a block that is fast alone can leave its neighbour no room. One role is varied at
a time, from the default file on; the measurement is the median over rounds in which all
candidates take turns, with a cold cache.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from ilora_kernels.backends import triton as backend
from ilora_kernels.backends.triton import configs
from ilora_kernels.backends.triton.configs import LinearConfig, PassConfig, Table
from ilora_kernels.dropout import draw_seed

ROWS = (2048, 8192, 32768)  # a bucket ends at each; the last is open
RANKS = (16, 32, 64)
WIDTH = 4096
DROPOUT = 0.1

_LINEAR = [
    LinearConfig(128, 256, 64, parts, 16, flatten, 8, 3)
    for parts in (2, 4)
    for flatten in (True, False)
]
_SHRINK = [PassConfig(64, 64, 4, stages) for stages in (3, 4, 5)]
_MASKED = [PassConfig(16, 128, 4, 4), PassConfig(32, 128, 4, 3), PassConfig(64, 64, 4, 4)]
_GRADIENTS = [PassConfig(64, 64, 4, 3), PassConfig(64, 64, 4, 4), PassConfig(128, 32, 4, 3)]
# Role -> its candidates, whether the pass that is measured goes backward, and under dropout.
CANDIDATES: dict[str, tuple[list[Any], bool, bool]] = {
    "linear": (_LINEAR, False, False),
    "shrink": (_SHRINK, False, False),
    "linear backward": (_LINEAR, True, False),
    "shrink backward": (_SHRINK, True, False),
    "gradients": (_GRADIENTS, True, False),
    "shrink dropout": (_MASKED, False, True),
    "linear backward dropout": ([c for c in _LINEAR if not c.flatten], True, True),
    "gradients dropout": (_GRADIENTS, True, True),
}


def tune(rounds: int = 15, report: Callable[[str], None] = print) -> Table:
    """Return the best table found on the current GPU."""
    table = configs.load(configs.TUNED_FOLDER / "default.json")
    buckets: Table = {role: [] for role in CANDIDATES}
    for rank in RANKS:
        for rows in ROWS:
            chosen = _chosen(table, rows, rank)
            for role, (candidates, backward, masked) in CANDIDATES.items():
                run = _pass(rows, rank, backward=backward, masked=masked)
                times = _median_us(run, chosen, role, candidates, rounds)
                if not times:
                    report(f"rank {rank:3} rows {rows:6} {role:18} nothing fits; kept the default")
                    buckets[role].append(_bucket(rows, rank, chosen[role][0]["config"]))
                    continue
                best = min(times, key=lambda i: times[i])
                chosen[role] = [{"config": asdict(candidates[best])}]
                buckets[role].append(_bucket(rows, rank, chosen[role][0]["config"]))
                report(
                    f"rank {rank:3} rows {rows:6} {role:18} {times[best]:8.1f} us  {candidates[best]}"
                )
    return {**table, **{role: _merged(found) for role, found in buckets.items()}}


def _chosen(table: Table, rows: int, rank: int) -> Table:
    """The default configurations of one problem, each as the only bucket of its role."""
    with configs.using(table):
        return {role: [{"config": asdict(configs.choose(role, rows, rank, 0))}] for role in table}


def _bucket(rows: int, rank: int, config: dict[str, Any]) -> dict[str, Any]:
    bounds = {"max_rows": rows if rows < ROWS[-1] else None}
    bounds["max_rank"] = rank if rank < RANKS[-1] else None
    return {**{name: bound for name, bound in bounds.items() if bound}, "config": config}


def _merged(buckets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop a bucket that the next one, which takes more rows of the same rank, repeats."""
    kept: list[dict[str, Any]] = []
    for bucket in buckets:
        same_rank = kept and kept[-1].get("max_rank") == bucket.get("max_rank")
        if same_rank and kept[-1]["config"] == bucket["config"]:
            kept.pop()
        kept.append(bucket)
    return kept


def _pass(rows: int, rank: int, *, backward: bool, masked: bool) -> Callable[[], Any]:
    """One forward or backward pass over random data."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    x, dy, weight = random(rows, WIDTH), random(rows, WIDTH), random(WIDTH, WIDTH)
    lora_A, lora_B = random(rank, WIDTH), random(WIDTH, rank)
    gate = torch.rand(8, 4, device="cuda")
    seed = draw_seed(x.device) if masked else None
    p = DROPOUT if masked else 0.0
    each = rows // 8

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        return backend.forward(
            x, weight, None, None, lora_A, lora_B, gate, None, each, 1.0, p, seed
        )

    if not backward:
        return forward
    _, xa = forward()
    return lambda: backend.backward(
        dy, x, weight, lora_A, lora_B, gate, None, xa, each, 1.0, p, seed, [True] * 4
    )


def _median_us(
    run: Callable[[], Any], chosen: Table, role: str, candidates: list[Any], rounds: int
) -> dict[int, float]:
    """Candidate -> median device time; one that does not fit on this GPU is left out."""
    tables = {}
    for i, candidate in enumerate(candidates):
        tables[i] = copy.deepcopy(chosen) | {role: [{"config": asdict(candidate)}]}
        try:
            with configs.using(tables[i]):
                run()
        except OutOfResources:
            del tables[i]
    cache = torch.empty(
        2 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.uint8, device="cuda"
    )
    events: dict[int, list[Any]] = {i: [] for i in tables}
    for _ in range(rounds):
        for i, table in tables.items():
            with configs.using(table):
                cache.zero_()
                torch.cuda._sleep(1_000_000)  # the host runs ahead of the device
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                run()
                end.record()
                events[i].append((begin, end))
        torch.cuda.synchronize()
    return {
        i: 1e3 * statistics.median(begin.elapsed_time(end) for begin, end in pairs)
        for i, pairs in events.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ilora_kernels.tune", description=__doc__)
    parser.add_argument("--out", type=Path, help="the file to write; default: this GPU's own")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each candidate")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "There is no GPU here; run this on the GPU whose block sizes you want.\n")
    gpu = torch.cuda.get_device_name()
    out = arguments.out or configs.tuned_path(gpu)
    found = {"gpu": gpu, "note": f"python -m ilora_kernels.tune, torch {torch.__version__}"}
    text = json.dumps({**found, "roles": tune(arguments.rounds)}, indent=2)
    temporary = out.with_name(out.name + ".new")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(out)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
