from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import bench_linear, bench_model, bench_overhead, bench_peers, bench_variants
from benchmarks.cases import (
    COMPILED,
    DELTA,
    DELTA_ALONE,
    FORWARD,
    LINEAR,
    NARROW,
    ONTO,
    SHAPES,
    TOKENS,
    TRAINING,
    Case,
    is_narrow,
    plan_for,
)
from benchmarks.problems import Problems, necessary_bytes, necessary_flop

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CASE = Case(LINEAR, TRAINING, 6, 10, 72, "torch", rank=8, dtype="float32")
MODULES = (bench_linear, bench_variants, bench_peers, bench_overhead, bench_model)


def test_cases_of_one_baseline_share_x_and_the_weight_in_memory() -> None:
    problems = Problems(CASE, CPU)
    batched = problems.of(CASE)
    packed = problems.of(replace(CASE, gate="packed", rank=16))
    assert batched.x.shape == (8, 9, 10)
    assert packed.x.shape == (72, 10)
    assert batched.x.data_ptr() == packed.x.data_ptr()
    assert batched.weight is packed.weight
    assert batched.grad_y.data_ptr() == packed.grad_y.data_ptr()
    assert all(leaf.is_leaf and leaf.requires_grad for leaf in (batched.x, packed.x))


def test_packed_sequences_have_eight_different_lengths_that_fill_the_batch() -> None:
    offsets = Problems(CASE, CPU).of(replace(CASE, gate="packed")).cu_seqlens
    assert offsets is not None
    lengths = offsets.diff().tolist()
    assert sum(lengths) == CASE.tokens
    assert lengths == sorted(set(lengths))
    assert len(lengths) == 8


def test_tensors_do_not_depend_on_what_was_asked_for_before() -> None:
    alone = Problems(CASE, CPU).of(CASE)
    problems = Problems(CASE, CPU)
    problems.of(replace(CASE, rank=16, experts=16, gate="token"))
    after = problems.of(CASE)
    for name in ("x", "weight", "base", "grad_y", "lora_A", "lora_B", "gate"):
        assert torch.equal(getattr(alone, name), getattr(after, name)), name


def test_gates_are_mixtures_and_no_tensor_holds_zeros() -> None:
    problem = Problems(CASE, CPU).of(replace(CASE, gate="token", experts=4))
    assert problem.gate.shape == (8, 9, 4)
    torch.testing.assert_close(problem.gate.sum(-1), torch.ones(8, 9))
    tensors = (problem.x, problem.weight, problem.base, problem.lora_A, problem.lora_B)
    assert all(bool(tensor.all()) for tensor in tensors)


def test_the_work_of_a_call_is_counted_by_hand() -> None:
    # T = 72, d_in = 10, d_out = 6, R = 8, four bytes an element
    frozen, low_rank = 2 * 72 * 10 * 6, 2 * 72 * 8 * (10 + 6)
    assert necessary_flop(replace(CASE, mode=FORWARD)) == frozen + low_rank
    assert necessary_flop(CASE) == 2 * frozen + 3 * low_rank
    assert necessary_flop(replace(CASE, op=ONTO, mode=FORWARD)) == low_rank

    x, y, weight, adapter = 72 * 10, 72 * 6, 6 * 10, 8 * (10 + 6)
    assert necessary_bytes(replace(CASE, mode=FORWARD)) == 4 * (x + y + weight + adapter)
    assert necessary_bytes(replace(CASE, mode=FORWARD, op=ONTO)) == 4 * (x + 2 * y + adapter)
    assert necessary_bytes(replace(CASE, mode=FORWARD, op=DELTA_ALONE)) == 4 * (x + y + adapter)
    backward = y + 2 * x + weight + 2 * adapter
    assert necessary_bytes(CASE) == 4 * (x + y + weight + adapter + backward)


def test_a_gpu_gets_the_published_shapes_in_bf16_and_a_cpu_small_ones() -> None:
    gpu, cpu = plan_for(CUDA, "triton"), plan_for(CPU, "torch")
    table = bench_linear.cases(gpu)
    assert {(case.d_out, case.d_in) for case in table} == {*SHAPES, NARROW}
    assert {case.tokens for case in table} == set(TOKENS)
    assert len(table) == 5 * 5 * 3
    assert {case.dtype for case in table} == {"bfloat16"}
    assert max(case.d_out * case.d_in for case in bench_linear.cases(cpu)) < 2**20


def test_the_delta_onto_the_vendors_product_is_measured_wherever_the_fused_layer_is() -> None:
    gpu = plan_for(CUDA, "triton")
    peers = {replace(case, backend="") for case in bench_peers.cases(gpu) if case.backend == DELTA}
    assert {replace(case, backend="") for case in bench_linear.cases(gpu)} <= peers


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.split(".")[1])
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("quick", [False, True])
def test_no_two_cases_of_a_file_go_by_one_name(
    module: object, device: torch.device, quick: bool
) -> None:
    cases = module.cases(plan_for(device, "torch", quick=quick))  # type: ignore[attr-defined]
    assert cases
    assert len({str(case) for case in cases}) == len(cases)


def test_a_cpu_compiles_nothing() -> None:
    cases = [case for module in MODULES for case in module.cases(plan_for(CPU, "torch"))]
    assert {case.launch for case in cases} == {"eager"}
    assert COMPILED not in {case.backend for case in cases}


def test_what_is_given_overrides_the_plan() -> None:
    plan = plan_for(CPU, "torch", shapes=((8, 32),), tokens=(16,), rounds=2, layers=3)
    assert (plan.shapes, plan.tokens, plan.rounds, plan.layers) == (((8, 32),), (16,), 2, 3)
    assert is_narrow(8, 32)
    assert not is_narrow(9, 32)
