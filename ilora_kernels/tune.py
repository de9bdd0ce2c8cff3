"""Measure block sizes on this GPU and write them where the Triton backend finds them.

    python -m ilora_kernels.tune                       # this GPU's file, beside the shipped ones
    python -m ilora_kernels.tune --out mine.json       # use it with ILORA_TUNED=mine.json
    python -m ilora_kernels.tune --roles decode,delta  # the default's for all other roles

Every candidate is measured inside a whole pass, captured in a CUDA graph, with a cold cache (see
``tuning.passes`` and ``tuning.measuring``). One role is varied at a time, from the default file on.
What is in use stays, unless another candidate computes the same and takes over 1 % less time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ilora_kernels.backends.triton import configs
from ilora_kernels.backends.triton.configs import Table
from ilora_kernels.tuning.candidates import candidates
from ilora_kernels.tuning.measuring import measure
from ilora_kernels.tuning.passes import Grid, grid, passes

LEAST_GAIN = 0.01  # below it lies the noise of a measurement
DEFAULT = configs.TUNED_FOLDER / "default.json"

Report = Callable[[str], object]


def tune(
    roles: Sequence[str] = configs.ROLES,
    rounds: int = 15,
    report: Report = partial(print, flush=True),
) -> Table:
    """Return the best table found on the current GPU; roles not named keep the default's buckets."""
    table = configs.load(DEFAULT)
    began = time.perf_counter()
    total = sum(math.prod(map(len, problems)) for problems in map(grid, roles))
    done = 0
    for role in roles:
        problems, buckets = grid(role), []
        for rank, columns, rows in product(problems.ranks, problems.columns, problems.rows):
            config, outcome = best(table, role, rows, rank, columns, rounds, report)
            buckets.append(bucket(problems, rows, rank, columns, asdict(config)))
            done += 1
            report(
                f"{done:3}/{total} {time.perf_counter() - began:4.0f} s  "
                f"{named(role, rows, rank, columns)}: {outcome} {config}"
            )
        table[role] = merged(buckets)
    return table


def best(
    table: Table, role: str, rows: int, rank: int, columns: int, rounds: int, report: Report
) -> tuple[Any, str]:
    """Return the configuration for one problem, and in words what it takes."""
    with configs.using(table):
        default = configs.choose(role, rows, rank, 0, columns)
    properties: Any = torch.cuda.get_device_properties()  # torch's stub lacks the attribute
    tried = candidates(role, rows, properties.shared_memory_per_multiprocessor, default)
    tables = [{**table, role: [{"config": asdict(config)}]} for config in tried]
    outcomes = measure(passes(role, rows, rank, columns), tables, rounds)
    torch.cuda.empty_cache()  # the graphs' memory, which nothing else takes
    for config, outcome in zip(tried, outcomes, strict=True):
        if isinstance(outcome, str):
            report(f"Left out for {named(role, rows, rank, columns)}: {config}; {outcome}.")
    times = {i: outcome for i, outcome in enumerate(outcomes) if not isinstance(outcome, str)}
    if not times:
        return default, "not measured, kept"
    fastest = min(times, key=lambda i: times[i])
    if times[fastest] >= (1 - LEAST_GAIN) * times[0]:
        return default, f"{times[0]:.1f} us, kept"
    return tried[fastest], f"{times[fastest]:.1f} us instead of {times[0]:.1f},"


def named(role: str, rows: int, rank: int, columns: int) -> str:
    """What a report calls a problem."""
    return f"{role}, rows {rows}, rank {rank}" + (f", columns {columns}" if columns else "")


def bucket(
    problems: Grid, rows: int, rank: int, columns: int, config: dict[str, Any]
) -> dict[str, Any]:
    """Return the bucket that ends at this problem; the last rows, rank and columns do not end."""
    found: dict[str, Any] = {}
    if rows < problems.rows[-1]:
        found["max_rows"] = rows
    if rank < problems.ranks[-1]:
        found["max_rank"] = rank
    if columns < problems.columns[-1]:
        found["max_columns"] = columns
    return {**found, "config": config}


def merged(buckets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop a bucket that the next one, which differs in taking more rows alone, repeats."""
    kept: list[dict[str, Any]] = []
    for bucket in buckets:
        alike = ("max_rank", "max_columns", "config")
        if kept and all(kept[-1].get(key) == bucket.get(key) for key in alike):
            kept.pop()
        kept.append(bucket)
    return kept


def write(out: Path, gpu: str, note: str, table: Table) -> None:
    """Write a file that ``configs.load`` reads; it appears complete or not at all."""
    text = json.dumps({"gpu": gpu, "note": note, "roles": table}, indent=2)
    temporary = out.with_name(out.name + ".new")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(out)


def named_roles(text: str) -> list[str]:
    """Read ``decode,shrink alone`` into roles, in the order of ``configs.ROLES``."""
    named = {name.strip() for name in text.split(",")}
    if unknown := sorted(named - set(configs.ROLES)):
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is no role; name some of: {', '.join(configs.ROLES)}."
        )
    return [role for role in configs.ROLES if role in named]


def number_of_rounds(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds; give 1 or more.")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; it refuses what it cannot write before it measures anything."""
    parser = argparse.ArgumentParser(
        prog="python -m ilora_kernels.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="the file to write; default: this GPU's own")
    parser.add_argument(
        "--rounds", type=number_of_rounds, default=15, help="measurements of each candidate"
    )
    parser.add_argument(
        "--roles",
        type=named_roles,
        default=list(configs.ROLES),
        help="what to measure, with commas between; default: all",
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.exit(1, "There is no GPU here; run this on the GPU whose block sizes you want.\n")
    gpu = torch.cuda.get_device_name()
    out = options.out or configs.tuned_path(gpu)
    if not os.access(out.parent, os.W_OK):
        parser.error(f"{out.parent} is no folder to write into; name a file elsewhere with --out.")
    note = "python -m ilora_kernels.tune"
    if len(options.roles) < len(configs.ROLES):
        note += f' --roles "{",".join(options.roles)}"'
    table = tune(options.roles, options.rounds)
    write(out, gpu, f"{note}, torch {torch.__version__}", table)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
