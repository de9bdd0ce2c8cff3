"""Mixtures of experts from a user's representation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ilora.gate import LinearGate, OneExpert, build_gate


def test_the_linear_gate_is_the_softmax_of_one_matrix() -> None:
    torch.manual_seed(0)
    gate, z = LinearGate(6, 3), torch.randn(5, 6)
    weight = gate.projection.weight.detach().double()
    told = (z.double() @ weight.T).exp()
    expected = told / told.sum(-1, keepdim=True)
    torch.testing.assert_close(gate(z).double(), expected, rtol=1e-6, atol=1e-7)
    assert [name for name, _ in gate.named_parameters()] == ["projection.weight"]


def test_a_mixture_sums_to_one_in_float32_even_from_a_half_precision_gate() -> None:
    gate = LinearGate(6, 4).bfloat16()
    mixture = gate(30 * torch.randn(100, 6).bfloat16())
    assert mixture.dtype == torch.float32
    torch.testing.assert_close(mixture.sum(-1), torch.ones(100))


def test_one_expert_gets_everything_and_learns_nothing() -> None:
    gate = build_gate("linear", 6, 1)
    assert isinstance(gate, OneExpert)
    assert not list(gate.parameters())
    assert torch.equal(gate(torch.randn(3, 6)), torch.ones(3, 1))


@pytest.mark.parametrize("num_experts", [2, 4, 8])
def test_a_gate_has_a_weight_for_each_expert(num_experts: int) -> None:
    gate: nn.Module = build_gate("linear", 6, num_experts)
    assert gate(torch.randn(3, 6)).shape == (3, num_experts)
