"""The models that are compared are one model: same loss, same gradients, whoever adapts it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.cases import LAYER, MODEL, PEFT, REFERENCE, TRAINING, Case
from benchmarks.models import (
    PROJECTIONS,
    ReferenceLinear,
    adapted_copy,
    llama_config,
    model_contest,
    model_flop,
    new_adapters,
)
from ilora_kernels import FusedILoRALinear

CPU = torch.device("cpu")
CASE = Case(MODEL, TRAINING, 32, 32, 24, "torch", dtype="float64", layers=2, checkpointing=True)


def outcome(case: Case) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    result: Any = model_contest([case], CPU).makers[case]()()
    return result


@pytest.mark.parametrize("op", [LAYER, MODEL])
def test_the_fused_and_the_reference_layer_train_alike(op: str) -> None:
    case = replace(CASE, op=op, checkpointing=op == MODEL)
    y, gradients = outcome(case)
    expected, wanted = outcome(replace(case, backend=REFERENCE))
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    assert len(gradients) == 1 + 2 * 7 * (1 if op == LAYER else 2) + 1  # x, A and B, gate
    for gradient, expected_gradient in zip(gradients, wanted, strict=True):
        assert gradient.any()
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9)


def test_pefts_layer_trains_as_one_expert_of_the_whole_rank() -> None:
    case = replace(CASE, experts=1)  # a softmax over one expert is one
    y, gradients = outcome(case)
    expected, wanted = outcome(replace(case, backend=PEFT))
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    for gradient, expected_gradient in zip(gradients[:-1], wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9)


def test_recomputing_changes_no_gradient() -> None:
    _, gradients = outcome(CASE)
    _, wanted = outcome(replace(CASE, checkpointing=False))
    for gradient, expected_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9)


def test_all_contenders_recompute_where_the_case_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    contest = model_contest([replace(CASE, backend=b) for b in ("torch", PEFT, REFERENCE)], CPU)
    steps = [contest.frozen, *(make() for make in contest.makers.values())]
    products: list[torch.Size] = []
    linear = torch.nn.functional.linear

    def watched(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        products.append(weight.shape)
        return linear(x, weight, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    for step in steps:
        products.clear()
        step()
        layers, projections, passes = 2, 2, 2  # gate and up have this shape; forward and again
        assert products.count(torch.Size((96, 32))) == layers * projections * passes


@pytest.mark.parametrize(
    ("backend", "kind"), [("torch", FusedILoRALinear), (REFERENCE, ReferenceLinear)]
)
def test_every_projection_is_adapted_on_the_frozen_models_own_memory(
    backend: str, kind: type[Any]
) -> None:
    case = replace(CASE, backend=backend)
    base = AutoModelForCausalLM.from_config(llama_config(case), dtype=torch.float64)
    adapters = new_adapters(base, case, CPU)
    adapted, _ = adapted_copy(base, adapters, case)
    layers = [module for module in adapted.modules() if isinstance(module, kind)]
    assert len(layers) == 2 * len(PROJECTIONS) == len(adapters.by_layer)
    frozen = {base.get_submodule(name).weight.data_ptr() for name in adapters.by_layer}
    assert {layer.base_layer.weight.data_ptr() for layer in layers} == frozen
    assert not any(isinstance(module, kind) for module in base.modules())


def test_the_work_of_a_model_is_that_of_its_projections() -> None:
    case = Case(MODEL, TRAINING, 4096, 4096, 4096, "triton", layers=32)
    parameters = 4 * 4096**2 + 3 * 4096 * 11008
    assert model_flop(case) == pytest.approx(32 * 2 * 2 * 4096 * parameters, rel=0.02)
    assert model_flop(replace(case, op=LAYER, layers=1)) == model_flop(case) / 32
