"""Decoding as served: large layers in bfloat16, one after another in a graph, one user or many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ilora_kernels import use_backend
from ilora_kernels.graphs import capture

from .problems import Problem, assert_at_most_twice_the_error, random_problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]

SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008), (14336, 4096), (1000, 1032)]
ROWS = [1, 2, 5, 16, 17, 33, 64, 128]


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with use_backend("triton"), torch.no_grad():
        yield
    torch.cuda.empty_cache()


def served(rows: int, d_out: int, d_in: int, dtype: torch.dtype = torch.bfloat16) -> Problem:
    """One token a user, every user with a gate of their own."""
    size = {"instances": rows, "length": 1, "rank": 16, "experts": 4}
    problem = random_problem("instance", device="cuda", d_in=d_in, d_out=d_out, **size)
    return problem.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("d_out", "d_in"), SHAPES)
@pytest.mark.parametrize("rows", ROWS)
def test_large_layers_match_float64(rows: int, d_out: int, d_in: int, dtype: torch.dtype) -> None:
    problem = served(rows, d_out, d_in, dtype)
    oracle = problem.to(torch.float64).run_reference()
    assert_at_most_twice_the_error(problem.run(), problem.run_reference(), oracle)


@pytest.mark.parametrize("rows", [1, 8, 64, 128])
def test_layers_that_start_early_in_a_graph_give_the_bits_of_layers_one_by_one(rows: int) -> None:
    """Each layer reads what the one before has just written, while that one is still ending."""
    width = 2048
    layers = [served(rows, width, width) for _ in range(12)]
    x = layers[0].x

    def chain(*, apart: bool) -> Tensor:
        y = x
        for layer in layers:
            y = replace(layer, x=y, bias=None).run()
            if apart:
                torch.cuda.synchronize()
        return y

    expected = chain(apart=True)
    assert expected.isfinite().all()
    torch.cuda.synchronize()
    graph, captured = capture(lambda: chain(apart=False))
    for _ in range(100):
        graph.replay()
        assert torch.equal(captured, expected)
        assert torch.equal(chain(apart=False), expected)


def test_a_replay_reads_the_gates_and_rows_that_stand_there_now() -> None:
    problem = served(16, 4096, 4096)
    gate, x = problem.gate.float(), problem.x.clone()
    static = replace(problem, gate=gate.clone(), x=x.clone())
    graph, y = capture(static.run)
    for _ in range(5):
        static.gate.copy_(torch.rand_like(gate))
        static.x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(y, static.run())


@pytest.mark.parametrize(("d_out", "d_in"), SHAPES)
def test_a_user_gets_the_same_bits_in_every_batch_of_a_bucket(d_out: int, d_in: int) -> None:
    for bucket, numbers in ((64, (64, 40, 32, 17, 16, 5, 1)), (128, (128, 65))):
        problem = served(bucket, d_out, d_in)
        together = problem.run()
        for rows in numbers:
            x, gate = problem.x[-rows:].flip(0), problem.gate[-rows:].flip(0)
            y = replace(problem, x=x, gate=gate).run()
            assert torch.equal(y.flip(0), together[-rows:]), (bucket, rows)


def test_calls_on_two_streams_do_not_disturb_each_other() -> None:
    problems = [served(8, 4096, 4096) for _ in range(2)]
    expected = [problem.run() for problem in problems]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in problems]
    for _ in range(50):
        found = []
        for problem, stream in zip(problems, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(problem.run())
        torch.cuda.synchronize()
        assert all(torch.equal(y, e) for y, e in zip(found, expected, strict=True))
