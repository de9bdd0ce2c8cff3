"""What only a GPU shows: overlap, graphs, streams, large offsets, large shapes in bfloat16."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ilora_kernels import gated_lora, gated_lora_linear, use_backend
from ilora_kernels.graphs import capture

from .noting import noted
from .problems import (
    GATE_FORMS,
    TRAINABLE,
    Problem,
    assert_at_most_twice_the_error,
    assert_matches_float64,
    gradients,
    off_by_one,
    random_problem,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]

LARGE = {"instances": 8, "length": 512, "d_in": 4096, "d_out": 4096, "rank": 16, "experts": 4}
MIB = 2**20


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with use_backend("triton"):
        yield
    torch.cuda.empty_cache()


@pytest.fixture
def always_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = importlib.import_module("ilora_kernels.backends.triton.linear")
    if not linear.holds_product(torch.cuda.current_device()):
        pytest.skip("the fused product needs Hopper's copy engine")
    monkeypatch.setattr(linear, "fusing_pays", lambda *_: True)
    backend = importlib.import_module("ilora_kernels.backends.triton")
    monkeypatch.setattr(backend, "can_decode", lambda *_: False)


def on_gpu(gate_form: str, dtype: torch.dtype = torch.bfloat16, **size: Any) -> Problem:
    """A problem made on the GPU; packed, its instances have 0, 1, 2 … tokens."""
    if gate_form == "packed":
        size = size | {"instances": 64, "length": 63}
    return random_problem(gate_form, device="cuda", **size).to(dtype)


# ---- Hopper's own kernel


@pytest.fixture
def by_kernel(
    always_fused: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[bool], None]]:
    """Let the product be computed by Hopper's own kernel, or by the one for every GPU."""
    linear = importlib.import_module("ilora_kernels.backends.triton.linear")
    replay = importlib.import_module("ilora_kernels.backends.triton.replay")
    if not linear.has_hopper_kernels(torch.cuda.current_device()):
        pytest.skip("needs Hopper, and Triton 3.6")

    def switch(hopper: bool) -> None:
        monkeypatch.setattr(linear, "has_hopper_kernels", lambda _: hopper)
        linear._plan.cache_clear()
        replay.forget()

    yield switch
    switch(True)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        pytest.param({}, torch.bfloat16, id="whole tiles and half ones"),
        pytest.param({"length": 131, "d_in": 1000, "d_out": 3336}, torch.float16, id="ragged"),
        pytest.param(
            {"length": 40, "d_in": 72, "d_out": 136}, torch.bfloat16, id="half tiles alone"
        ),
        pytest.param({"rank": 48, "experts": 3}, torch.bfloat16, id="a rank less than its block"),
        pytest.param({"rank": 160}, torch.float16, id="three blocks of the rank"),
        pytest.param({"rank": 256}, torch.bfloat16, id="more blocks than slots"),
        pytest.param({"bias": False, "d_out": 11008}, torch.bfloat16, id="wide"),
    ],
)
def test_hoppers_own_kernel_gives_the_bits_of_the_kernel_for_every_gpu(
    by_kernel: Callable[[bool], None], size: dict[str, Any], dtype: torch.dtype, dropout_p: float
) -> None:
    problem = on_gpu("instance", dtype, **LARGE | size)
    results = []
    for hopper in (True, False):
        by_kernel(hopper)
        leaves = problem.leaves()
        torch.manual_seed(1)
        y = leaves.run(dropout_p=dropout_p)
        results.append([y.detach(), *gradients(leaves, y)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


# ---- Large shapes


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("gate_form", GATE_FORMS)
def test_large_layers_match_float64(always_fused: None, gate_form: str, dropout_p: float) -> None:
    assert_matches_float64(on_gpu(gate_form, **LARGE), torch.bfloat16, dropout_p=dropout_p)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("rank", [8, 48, 64, 160])
def test_large_layers_of_other_ranks_match_float64(
    always_fused: None, rank: int, dropout_p: float
) -> None:
    problem = on_gpu("instance", **LARGE | {"rank": rank, "d_out": 2048, "bias": False})
    assert_matches_float64(problem, torch.bfloat16, dropout_p=dropout_p)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "d_in", "d_out"), [(2000, 4096, 11008), (1030, 1000, 3336)])
def test_ragged_last_tiles_match_float64(
    always_fused: None, rows: int, d_in: int, d_out: int, dropout_p: float
) -> None:
    size = {"instances": 2, "length": rows // 2, "d_in": d_in, "d_out": d_out}
    problem = on_gpu("instance", **LARGE | size)
    assert_matches_float64(problem, torch.float16, dropout_p=dropout_p)


@pytest.mark.parametrize("depth", [64, 128, 192, 256, 320])
def test_products_of_few_steps_wait_for_the_low_rank_factor(always_fused: None, depth: int) -> None:
    """Around as many steps as are fetched ahead, in both passes."""
    size = LARGE | {"length": 256, "d_in": depth, "d_out": depth}
    for _ in range(5):
        assert_matches_float64(on_gpu("instance", **size), torch.bfloat16)


def test_the_masked_pass_over_many_rows_matches_float64(always_fused: None) -> None:
    problem = on_gpu("instance", **LARGE | {"length": 1100, "d_in": 1024, "d_out": 512})
    assert_matches_float64(problem, torch.bfloat16, dropout_p=0.1)


def test_misaligned_inputs_match_float64() -> None:
    problem = on_gpu("token_2d", **LARGE | {"d_in": 1024, "d_out": 1024})
    assert_matches_float64(problem, torch.bfloat16, dropout_p=0.1, arrange=off_by_one)


@pytest.mark.parametrize("gate_form", ["instance", "packed", "token"])
def test_masks_and_gradients_are_those_of_the_torch_backend(
    always_fused: None, gate_form: str
) -> None:
    """Rank one and one expert: a mask that differed in one place would show in dX by its size."""
    size = {"rank": 1, "experts": 1, "d_in": 2048, "d_out": 1024}
    problem = on_gpu(gate_form, **LARGE | size)
    problem = replace(problem, weight=torch.zeros_like(problem.weight))
    found = []
    for name in ("torch", "triton"):
        leaves = problem.leaves()
        with use_backend(name):
            torch.manual_seed(3)
            y = leaves.run(dropout_p=0.3)
            found.append([y, *gradients(leaves, y)])
    dropped = [grads[1] == 0 for grads in found]
    assert torch.equal(*dropped)
    assert 0.29 < float(dropped[0].float().mean()) < 0.31
    for a, b in zip(*found, strict=True):
        assert float((a - b).float().norm() / b.float().norm()) < 4 * torch.finfo(a.dtype).eps


# ---- One process, several dtypes: a kernel compiled for one must not serve another


@pytest.mark.parametrize("width", [64, 1024])
def test_dtypes_one_after_another_each_match_float64(width: int) -> None:
    """Sums split over rows are float32 in every dtype; only x tells the kernels apart."""
    problem = on_gpu("instance", **LARGE | {"d_in": width, "d_out": width})
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.bfloat16):
        assert_matches_float64(problem, dtype)


# ---- Tensor maps are kept by address, shape and strides


@pytest.mark.parametrize("room", [8, 16384], ids=["more maps than are kept", "all are kept"])
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "as chosen"])
def test_addresses_that_change_are_freed_and_come_again_give_the_results_of_the_torch_backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, room: int, fuse: bool
) -> None:
    """One layer, its input elsewhere each time: at new addresses, and at old ones in other shapes."""
    if fuse:
        request.getfixturevalue("always_fused")
    maps = importlib.import_module("ilora_kernels.backends.triton.tensor_maps")
    monkeypatch.setattr(maps, "_maps", {})
    monkeypatch.setattr(maps, "MOST_ENTRIES", room)
    problem = on_gpu("shared", **LARGE | {"d_in": 512, "d_out": 1024})
    storage = torch.randn(4096 * 512, device="cuda").to(problem.x)
    kept: list[Tensor] = []
    for round_ in range(3):
        for i, tokens in enumerate((64, 192, 256, 1000, 2048)):  # the first one is decoded
            # A view somewhere in a storage that stays, and memory of its own that does not.
            offset = (round_ * 7 + i) * 64
            view = storage[offset : offset + tokens * 512].view(tokens, 512)
            for x in (view, view.clone(), view.clone()):
                found = []
                for name in ("triton", "torch"):
                    leaves = replace(problem.leaves(), x=x.detach().requires_grad_())
                    with use_backend(name):
                        y = leaves.run()
                        found.append([y.detach(), *gradients(leaves, y)])
                for a, b in zip(*found, strict=True):
                    error = (a - b).float().norm() / b.float().norm()
                    assert float(error) < 4 * torch.finfo(a.dtype).eps
            kept.append(view.clone())  # so that the next tensors lie elsewhere
        kept = kept[1::2]
        torch.cuda.empty_cache()
    assert 0 < len(maps._maps) <= room


@pytest.mark.skipif(torch.version.hip is not None, reason="Triton's launcher for Nvidia's GPUs")
def test_the_known_launcher_is_reached_and_called_directly() -> None:
    launching = importlib.import_module("ilora_kernels.backends.triton.launch")
    if not launching.TRITON_IS_KNOWN:
        pytest.skip("Triton's launcher is called itself in other versions than 3.6")
    problem = on_gpu("instance", **LARGE).leaves()
    gradients(problem, problem.run())
    compiled = [c for how in launching._settings.values() for c in how.compiled.values()]
    assert compiled
    assert all(type(c.run).__name__ == "builtin_function_or_method" for c in compiled)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_later_passes_are_replayed_and_give_what_the_first_gives(
    always_fused: None, monkeypatch: pytest.MonkeyPatch, dropout_p: float
) -> None:
    if not importlib.import_module("ilora_kernels.backends.triton.launch").TRITON_IS_KNOWN:
        pytest.skip("Triton's launcher is called itself in other versions than 3.6")
    backend = importlib.import_module("ilora_kernels.backends.triton")
    computed = [noted(monkeypatch, backend, name) for name in ("_forward", "_backward")]
    problem = on_gpu("instance", **LARGE)
    results = []
    for _ in range(3):
        leaves = problem.leaves()  # at other addresses
        torch.manual_seed(1)
        y = leaves.run(dropout_p=dropout_p)
        results.append([y.detach(), *gradients(leaves, y)])
    for later in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], later, strict=True))
    assert [len(answers) for answers in computed] == [1, 1]


# ---- Determinism, with kernels that run beside each other


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_overlapping_kernels_give_the_same_bits_every_time(
    always_fused: None, dropout_p: float
) -> None:
    problem = on_gpu("instance", **LARGE)
    first: list[Tensor] = []
    for _ in range(20):
        leaves = problem.leaves()
        torch.manual_seed(1)
        y = leaves.run(dropout_p=dropout_p)
        results = [y.detach(), *gradients(leaves, y)]
        first = first or results
        assert all(torch.equal(a, b) for a, b in zip(first, results, strict=True))


# ---- CUDA graphs and streams


def assert_graph_replays_with_new_gates_and_inputs(gate_form: str, size: dict[str, int]) -> None:
    """Of forward and backward, to the bit, with the backend in use."""
    problem = on_gpu(gate_form, **LARGE | {"d_out": 2048} | size).leaves()
    direction = torch.randn(*problem.x.shape[:-1], problem.lora_B.shape[0], device="cuda")
    direction = direction.to(problem.x)

    def run(p: Problem = problem) -> list[Tensor]:
        y = p.run()
        return [y.detach(), *torch.autograd.grad(y, [getattr(p, n) for n in TRAINABLE], direction)]

    graph, outputs = capture(run)
    for _ in range(3):
        with torch.no_grad():
            problem.x.normal_()
            problem.gate.copy_(torch.rand_like(problem.gate))
        direction.normal_()
        graph.replay()
        for replayed, expected in zip(outputs, run(problem.leaves()), strict=True):
            assert torch.equal(replayed, expected)


GRAPH_SIZES = pytest.mark.parametrize(
    "size", [{}, {"d_in": 72, "d_out": 77}], ids=["large", "small"]
)
GRAPH_GATES = pytest.mark.parametrize("gate_form", ["instance", "token", "packed"])


@GRAPH_SIZES
@GRAPH_GATES
def test_a_graph_of_forward_and_backward_replays_with_new_gates_and_inputs(
    gate_form: str, size: dict[str, int]
) -> None:
    assert_graph_replays_with_new_gates_and_inputs(gate_form, size)


def test_every_replay_of_a_graph_draws_a_new_mask_for_forward_and_backward() -> None:
    x = torch.ones(256, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    ones = torch.ones(1, 1024, device="cuda", dtype=torch.bfloat16)
    gate = torch.ones(1, device="cuda")

    def run() -> list[Tensor]:
        y = gated_lora(x, ones, ones[:, :8].T.contiguous(), gate, dropout_p=0.5)
        return [y.detach(), *torch.autograd.grad(y, x, torch.ones_like(y))]

    graph, (y, dx) = capture(run)
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append(dx != 0)
        kept = masks[-1].sum(1)[:, None].expand_as(y)
        torch.testing.assert_close(y.float(), 2.0 * kept.float(), rtol=2**-8, atol=0.0)
    assert not torch.equal(*masks)


def test_two_streams_at_once_give_what_they_give_one_after_another(always_fused: None) -> None:
    problems = [
        on_gpu("instance", **LARGE),
        on_gpu("token", **LARGE | {"d_in": 2048, "d_out": 11008, "rank": 32}),
    ]
    leaves = [problem.leaves() for problem in problems]

    def run(p: Problem) -> list[Tensor]:
        y = p.run()
        return [y.detach(), *gradients(p, y)]

    expected = [run(p) for p in leaves]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in problems]
    for _ in range(5):
        found = []
        for stream, p in zip(streams, leaves, strict=True):
            with torch.cuda.stream(stream):
                found.append(run(p))
        torch.cuda.synchronize()
        for a, b in zip(found, expected, strict=True):
            assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


# ---- Offsets beyond 2^31


@pytest.mark.parametrize(("d_in", "d_out"), [(4096, 64), (64, 4096)], ids=["x", "y"])
@pytest.mark.parametrize("layout", ["aligned", "odd stride"])
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "delta"])
def test_more_than_two_to_the_31_elements_are_read_and_written_rightly(
    d_in: int, d_out: int, layout: str, linear: bool
) -> None:
    rows = 600_000
    assert rows * max(d_in, d_out) > 2**31
    if (free := torch.cuda.mem_get_info()[0]) < 40 * 1024 * MIB:
        pytest.skip(f"needs 40 GiB of free GPU memory; {free // MIB} MiB are free")
    bf16 = {"device": "cuda", "dtype": torch.bfloat16}
    storage = torch.empty(rows, d_in + (layout == "odd stride"), **bf16).normal_()
    x = storage[:, :d_in].requires_grad_()
    weight = torch.randn(d_out, d_in, **bf16) / d_in**0.5 if linear else None
    lora_A = (torch.randn(16, d_in, **bf16) / d_in**0.5).requires_grad_()
    lora_B = (torch.randn(d_out, 16, **bf16) / 4).requires_grad_()
    gate = torch.rand(rows, 4, device="cuda", requires_grad=True)
    low_rank = (lora_A, lora_B, gate)
    y = gated_lora_linear(x, weight, None, *low_rank) if linear else gated_lora(x, *low_rank)
    # A gradient of y in the last rows alone: dA and dB are then theirs, and cheap to check.
    dy = torch.zeros_like(y)
    tail = slice(rows - 64, rows)
    dy[tail].normal_()
    dx, dA, dB, dgate = torch.autograd.grad(y, (x, *low_rank), dy)

    sampled = torch.tensor([0, 1, 131_071, 524_287, 524_288, rows - 64, rows - 1], device="cuda")
    for chosen in (sampled, torch.arange(rows - 64, rows, device="cuda")):
        results = []
        for dtype in (torch.float64, torch.bfloat16):
            parts = (x.detach()[chosen], weight, None, lora_A, lora_B, gate.detach()[chosen])
            whole = [None if t is None else t.detach().to(dtype) for t in parts]
            p = Problem(*whole, scaling=1.0).leaves()  # type: ignore[arg-type]
            value = p.run_reference()
            wanted = [getattr(p, name) for name in TRAINABLE]
            results.append([value, *torch.autograd.grad(value, wanted, dy[chosen].to(dtype))])
        found = [y.detach()[chosen], dx[chosen], dA, dB, dgate[chosen]]
        compared = range(5) if chosen is not sampled else (0, 1, 4)
        for i in compared:
            assert_at_most_twice_the_error(found[i], results[1][i], results[0][i].detach())


# ---- Compilation, and other devices


@pytest.mark.parametrize(
    ("gate_form", "backend"),
    [
        ("instance", "aot_eager"),
        ("token", "aot_eager"),
        ("packed", "aot_eager"),
        ("instance", "inductor"),
    ],
)
def test_a_compiled_function_has_no_graph_break_and_the_same_result(
    gate_form: str, backend: str
) -> None:
    torch._dynamo.reset()
    problem = on_gpu(gate_form, **LARGE | {"d_in": 1024, "d_out": 2048}).leaves()
    compiled = torch.compile(gated_lora_linear, fullgraph=True, backend=backend)
    results = []
    for function in (compiled, gated_lora_linear):
        y = problem.run(function)
        results.append([y.detach(), *gradients(problem, y)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("size", [{}, {"d_in": 72, "d_out": 77}], ids=["large", "small"])
def test_tensors_on_another_gpu_than_the_current_one_are_computed_there(
    size: dict[str, int],
) -> None:
    problem = on_gpu("instance", **LARGE | size)
    elsewhere = replace(
        problem, **{n: t.to("cuda:1") for n, t in vars(problem).items() if isinstance(t, Tensor)}
    )
    results = []
    for p in (problem.leaves(), elsewhere.leaves()):
        y = p.run()
        results.append([y.detach(), *gradients(p, y)])
    assert torch.cuda.current_device() == 0
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b.to(a.device))


def test_tensors_of_the_cpu_are_refused_before_a_kernel_reads_their_addresses() -> None:
    """In a process of its own: an illegal address would end every later test too."""
    program = """
import torch
from ilora_kernels import gated_lora, use_backend
with use_backend("triton"):
    for device in ("cuda", "cuda", "cpu"):
        x = torch.ones(64, 64, device=device)
        gated_lora(x, x[:4], x[:, :4], x[0, :1]).sum().item()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    last_line = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0
    assert "cpu" in last_line.lower(), last_line
