"""Capturing a CUDA graph of a call, on the current GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Outputs = TypeVar("Outputs")


def capture(call: Callable[[], Outputs], warm_ups: int = 1) -> tuple[torch.cuda.CUDAGraph, Outputs]:
    """Run a call beside the current stream, which compiles kernels and makes workspaces; capture it.

    Args:
        call: launches on the current stream of the current GPU and asks the host nothing.
        warm_ups: how often it runs before it is captured.

    Returns:
        The graph, and the captured call's outputs, which each replay writes anew.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_ups):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Named, because torch's own stream for captures belongs to whichever GPU captured first.
    with torch.cuda.graph(graph, stream=stream):
        outputs = call()
    return graph, outputs
