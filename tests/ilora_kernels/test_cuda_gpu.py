"""What only a GPU shows of the CUDA backend: large shapes and offsets, graphs, streams, the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ilora_kernels import gated_lora, use_backend
from ilora_kernels.graphs import capture

from .problems import GATE_FORMS, assert_matches_float64, gradients
from .test_triton_gpu import (
    GRAPH_GATES,
    GRAPH_SIZES,
    LARGE,
    assert_graph_replays_with_new_gates_and_inputs,
    on_gpu,
)
from .tf32 import assert_errs_as_tf32_does

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]


@pytest.fixture(autouse=True)
def _cuda() -> Iterator[None]:
    from ilora_kernels import backends

    if reason := backends()["cuda"]:
        pytest.skip(reason)
    with use_backend("cuda"):
        yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("gate_form", GATE_FORMS)
def test_large_layers_match_float64(gate_form: str, dropout_p: float) -> None:
    assert_matches_float64(on_gpu(gate_form, **LARGE), torch.bfloat16, dropout_p=dropout_p)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("gate_form", GATE_FORMS)
def test_large_layers_of_float32_err_as_tf32_does_where_it_is_allowed(
    paths: list[bool], gate_form: str, dropout_p: float
) -> None:
    assert_errs_as_tf32_does(on_gpu(gate_form, torch.float32, **LARGE), dropout_p)
    assert paths == 5 * [True]


@pytest.mark.parametrize("rank", [8, 48, 64, 160])
@pytest.mark.parametrize(("rows", "d_in", "d_out"), [(2000, 4096, 11008), (1030, 1000, 3336)])
def test_other_ranks_and_ragged_edges_match_float64(
    rank: int, rows: int, d_in: int, d_out: int
) -> None:
    size: dict[str, Any] = {"instances": 2, "length": rows // 2, "d_in": d_in, "d_out": d_out}
    problem = on_gpu("instance", **LARGE | size | {"rank": rank})
    assert_matches_float64(problem, torch.float16, dropout_p=0.1)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_the_same_inputs_give_the_same_bits_every_time(dropout_p: float) -> None:
    problem = on_gpu("instance", **LARGE)
    first: list[Tensor] = []
    for _ in range(20):
        leaves = problem.leaves()
        torch.manual_seed(1)
        y = leaves.run(dropout_p=dropout_p)
        results = [y.detach(), *gradients(leaves, y)]
        first = first or results
        assert all(torch.equal(a, b) for a, b in zip(first, results, strict=True))


@GRAPH_SIZES
@GRAPH_GATES
def test_a_graph_of_forward_and_backward_replays_with_new_gates_and_inputs(
    gate_form: str, size: dict[str, int]
) -> None:
    assert_graph_replays_with_new_gates_and_inputs(gate_form, size)


@pytest.mark.parametrize("rows", [8, 512])
def test_layers_chained_in_a_graph_give_the_bits_of_layers_one_by_one(rows: int) -> None:
    """Each kernel starts beside the end of the one whose results it reads."""
    size = {"instances": 8, "length": rows // 8, "d_in": 1024, "d_out": 1024}
    layers = [on_gpu("instance", **LARGE | size) for _ in range(12)]
    first = layers[0].x.requires_grad_()

    def chain(*, apart: bool) -> list[Tensor]:
        y = first
        for layer in layers:
            y = replace(layer, x=y, bias=None).run()
            if apart:
                torch.cuda.synchronize()
        (dx,) = torch.autograd.grad(y, first, torch.ones_like(y))
        return [y.detach(), dx]

    expected = chain(apart=True)
    assert all(tensor.isfinite().all() for tensor in expected)
    graph, outputs = capture(lambda: chain(apart=False))
    for _ in range(50):
        graph.replay()
        for found in (outputs, chain(apart=False)):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_side_stream_is_the_one_that_is_used() -> None:
    problem = on_gpu("instance", **LARGE)
    expected = problem.run()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late = problem.x * 2  # ready only after the sleep, on this stream alone
        y = gated_lora(late, problem.lora_A, problem.lora_B, problem.gate, scaling=0.5)
    side.synchronize()
    again = gated_lora(problem.x, problem.lora_A, problem.lora_B, problem.gate, scaling=1.0)
    assert torch.equal(y, again)
    assert expected.isfinite().all()


def test_offsets_beyond_32_bits_are_right() -> None:
    """2³¹ elements and more in x and y: the last rows are those of a small problem."""
    rows, width = 2**17 + 64, 2**14 + 8
    x = torch.zeros(rows, width, device="cuda", dtype=torch.bfloat16)
    A = torch.randn(8, width, device="cuda", dtype=torch.bfloat16) / 128
    B = torch.randn(width, 8, device="cuda", dtype=torch.bfloat16)
    gate = torch.ones(1, device="cuda")
    x[-64:].normal_()
    x.requires_grad_()
    y = gated_lora(x, A, B, gate)
    small = x.detach()[-64:].clone().requires_grad_()
    expected = gated_lora(small, A, B, gate)
    torch.testing.assert_close(y[-64:], expected)
    assert not y[:-64].any()
    direction = torch.zeros_like(y)
    direction[-64:].normal_()
    (dx,) = torch.autograd.grad(y, x, direction)
    (expected_dx,) = torch.autograd.grad(expected, small, direction[-64:])
    torch.testing.assert_close(dx[-64:], expected_dx)
    assert not dx[:-64].any()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_gpu_are_computed_there() -> None:
    problem = on_gpu("instance", **LARGE)
    tensors = {name: value for name, value in vars(problem).items() if isinstance(value, Tensor)}
    moved = replace(problem, **{name: value.to("cuda:1") for name, value in tensors.items()})
    before = torch.cuda.current_device()
    torch.testing.assert_close(moved.run().cpu(), problem.run().cpu())
    assert torch.cuda.current_device() == before
