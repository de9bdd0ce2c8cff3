"""Device time of candidates: each in CUDA graphs, checked against the one in use, taking turns.

A replayed graph costs the host one call, so choosing block sizes and launching take no part in the time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from triton import TritonError

from ilora_kernels.backends.triton import configs
from ilora_kernels.backends.triton.configs import Table
from ilora_kernels.graphs import capture
from ilora_kernels.tuning.passes import DTYPE, Pass

# What the rounding of inputs and outputs costs: the floor of the tests' rule for errors.
LARGEST_ERROR = 2 * torch.finfo(DTYPE).eps
_HEAD_START_CYCLES = 1_000_000  # half a millisecond, in which the host enqueues a replay


class Captured(NamedTuple):
    """A pass in a graph, with the tensors that a replay writes."""

    graph: torch.cuda.CUDAGraph
    outputs: Sequence[Tensor]


def measure(passes: Sequence[Pass], tables: Sequence[Table], rounds: int) -> list[float | str]:
    """Return for each table the geometric mean over the passes of median microseconds.

    The first table is the one in use. In the place of one that does not run here, or computes
    something else than the first, stands why; without the first there is nothing to compare with.
    """
    outcomes: list[float | str] = ["there is nothing to compare it with"] * len(tables)
    captured: dict[int, list[Captured]] = {}
    for number, table in enumerate(tables):
        try:
            with configs.using(table):
                graphs = [replayed(run) for run in passes]
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # no compiler's words on a candidate
        except (TritonError, RuntimeError) as error:
            outcomes[number] = f"it does not run here: {error}"
            if number == 0:
                return outcomes
            continue
        error_of = largest_error(graphs, captured.get(0, graphs))
        if error_of <= LARGEST_ERROR:
            captured[number] = graphs
        else:
            outcomes[number] = f"its relative error is {error_of:.2g}"
    medians = iter(
        medians_us([one.graph for graphs in captured.values() for one in graphs], rounds)
    )
    for number in captured:
        outcomes[number] = statistics.geometric_mean(next(medians) for _ in passes)
    return outcomes


def replayed(run: Pass) -> Captured:
    """Capture a pass; the outputs hold what one replay wrote."""
    graph, outputs = capture(run)
    graph.replay()
    return Captured(graph, outputs)


def largest_error(actual: Sequence[Captured], expected: Sequence[Captured]) -> float:
    """The largest root mean square error of an output, relative to the output that is expected."""
    pairs = [
        pair
        for mine, true in zip(actual, expected, strict=True)
        for pair in zip(mine.outputs, true.outputs, strict=True)
    ]
    return max(relative_error(mine, true) for mine, true in pairs)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """``‖actual - expected‖ / ‖expected‖`` of floating-point tensors; infinite where one is no number."""
    true = expected.float()
    difference = actual.float() - true
    error = float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(true))
    return error if math.isfinite(error) else math.inf


def medians_us(graphs: Sequence[torch.cuda.CUDAGraph], rounds: int) -> list[float]:
    """The median device time of a replay of each graph, in rounds in which all take their turn."""
    num_bytes = 2 * torch.cuda.get_device_properties().L2_cache_size
    flush = torch.ones(num_bytes // 4, device="cuda")
    total = torch.empty((), device="cuda")
    laps: list[list[float]] = [[] for _ in graphs]
    for _ in range(rounds):
        events = []
        for graph in graphs:
            torch.sum(flush, dim=0, out=total)  # reading it leaves nothing else in L2
            torch.cuda._sleep(_HEAD_START_CYCLES)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        for of_graph, (begin, end) in zip(laps, events, strict=True):
            of_graph.append(1e3 * begin.elapsed_time(end))
    return [statistics.median(of_graph) for of_graph in laps]
