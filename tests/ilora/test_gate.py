"""Mixtures of experts from a user's representation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ilora.gate_config as options
from ilora.encoders import build_encoder, pad_histories
from ilora.errors import InputError
from ilora.gate import (
    GATES,
    DropoutGate,
    Gate,
    LinearGate,
    NoisyGate,
    OneExpert,
    ResidualGate,
    TokenCollapsedGate,
    TopKGate,
    build_gate,
    softmax_of_largest,
    stored_gate,
)

SIZES = {"num_layers": 3, "num_items": 5, "title_width": 6}


def a_gate(name: str, num_experts: int = 4) -> Gate:
    """A gate over representations (or titles) of width 6, with random weights and titles."""
    torch.manual_seed(0)
    gate = build_gate(name, 6, num_experts, **SIZES)
    if isinstance(gate, TokenCollapsedGate):
        gate.read_titles([[1], [2, 3], [4], [5, 5], [0]], nn.Embedding(8, 6))
    return gate


def seeded(gate: Gate, z: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return gate(z)


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


@pytest.mark.parametrize("num_experts", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("training", [True, False])
def test_every_gate_shares_out_exactly_one_whole(
    name: str, num_experts: int, training: bool
) -> None:
    gate = a_gate(name, num_experts).train(training)
    mixture = gate(torch.randn(7, 6))
    layers = (3,) if name == "per-layer" and num_experts > 1 else ()
    assert mixture.shape == (7, *layers, num_experts)
    assert mixture.dtype == torch.float32
    assert bool((mixture >= 0).all())
    torch.testing.assert_close(mixture.sum(-1), torch.ones(7, *layers))


@pytest.mark.parametrize("name", GATES)
def test_in_eval_mode_every_gate_gives_the_same_bits_twice(name: str) -> None:
    gate, z = a_gate(name).eval(), torch.randn(7, 6)
    assert torch.equal(seeded(gate, z, 1), seeded(gate, z, 2))


@pytest.mark.parametrize("name", GATES)
def test_every_gate_but_the_fixed_ones_learns_with_all_its_parameters(name: str) -> None:
    gate = a_gate(name)
    mixture = gate(torch.randn(64, 6))
    if name in ("uniform", "random-init"):
        assert not list(gate.parameters())
        assert not mixture.requires_grad
        return
    (mixture * torch.randn_like(mixture)).sum().backward()
    for key, parameter in gate.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.any()), key


@pytest.mark.parametrize("name", GATES)
def test_a_stored_gate_is_built_from_its_tensors_and_gives_the_same_mixtures(name: str) -> None:
    gate, z = a_gate(name), torch.randn(9, 6)
    gate(z)  # batch statistics move
    state = gate.state_dict()
    other = stored_gate(options.BY_NAME[name](), 6, 4, state)
    other.load_state_dict(state)
    assert torch.equal(gate.eval()(z), other.eval()(z))


def test_of_top_k_the_others_get_exactly_nothing_and_the_chosen_a_softmax() -> None:
    torch.manual_seed(0)
    gate, z = TopKGate(6, 5, k=2), torch.randn(8, 6)
    mixture, values = gate(z), gate.projection(z)
    assert bool(((mixture > 0).sum(-1) == 2).all())
    chosen = values.topk(2).indices
    expected = values.gather(1, chosen).softmax(-1)
    torch.testing.assert_close(mixture.gather(1, chosen), expected)
    mixture[0, chosen[0, 0]].backward()
    reached = gate.projection.weight.grad.any(-1).nonzero().flatten().tolist()
    assert reached == sorted(chosen[0].tolist())


def test_more_than_there_are_is_all_of_them() -> None:
    values = torch.randn(3, 4)
    torch.testing.assert_close(softmax_of_largest(values, 9), values.softmax(-1))


def test_noise_is_drawn_in_training_alone_and_its_size_is_learned() -> None:
    torch.manual_seed(0)
    gate, z = NoisyGate(6, 4), torch.randn(50, 6)
    assert not torch.allclose(seeded(gate, z, 1), seeded(gate, z, 2))
    torch.testing.assert_close(gate.eval()(z), gate.projection(z).softmax(-1))
    gate.train()
    with torch.no_grad():
        gate.noise.weight.fill_(-100.0)
        z = z.abs()  # softplus of something very negative: no noise is left
    torch.testing.assert_close(gate(z), gate.projection(z).softmax(-1))


def test_the_noisy_gate_can_choose_the_largest_of_its_noisy_values() -> None:
    gate = build_gate(options.Noisy(k=1), 6, 4)
    assert set(gate(torch.randn(20, 6)).unique().tolist()) == {0.0, 1.0}


def test_dropped_experts_get_nothing_at_about_the_rate_asked_for() -> None:
    torch.manual_seed(0)
    gate = DropoutGate(6, 4, p=0.25)
    dropped = (gate(torch.randn(4000, 6)) == 0).float().mean()
    assert dropped == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(
        gate.eval()(torch.ones(1, 6)), gate.projection(torch.ones(1, 6)).softmax(-1)
    )


def test_even_if_all_experts_were_dropped_some_are_left() -> None:
    torch.manual_seed(0)
    mixture = DropoutGate(6, 2, p=0.99)(torch.randn(500, 6))
    assert bool(mixture.isfinite().all())


def test_the_residual_gate_keeps_its_batch_statistics_in_its_state() -> None:
    gate = build_gate(options.Residual(blocks=1), 6, 4)
    assert isinstance(gate, ResidualGate)
    before = gate.state_dict()["network.bn1.running_mean"].clone()
    gate.train()(5 + torch.randn(9, 6))
    after = gate.state_dict()
    assert not torch.equal(after["network.bn1.running_mean"], before)
    assert int(after["network.layer3.0.bn2.num_batches_tracked"]) == 1


def test_the_residual_network_has_the_layout_of_the_released_code() -> None:
    gate = build_gate("residual", 64, 4)
    state = gate.state_dict()
    assert state["network.conv1.weight"].shape == (16, 1, 3)
    assert state["network.layer2.0.conv1.weight"].shape == (32, 16, 3)
    assert state["network.layer3.2.conv2.weight"].shape == (64, 64, 3)
    assert state["projection.weight"].shape == (4, 64)
    assert state["projection.bias"].shape == (4,)


def test_a_block_that_narrows_passes_its_input_on_between_channels_of_zeros() -> None:
    block = build_gate("residual", 8, 4).network.layer2[0].eval()  # type: ignore[union-attr]
    with torch.no_grad():
        block.bn2.weight.zero_()  # nothing but the short cut is left
    x = torch.rand(2, 16, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_the_token_collapsed_gate_reads_the_mean_token_of_the_titles_and_no_order() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("sasrec", 3, 16).eval()
    gate = TokenCollapsedGate(16, 4, num_items=3, width=6)
    table = nn.Embedding(9, 6)
    gate.read_titles([[1, 2], [3], [4, 5, 6]], table)
    forth, back, empty = pad_histories([[0, 2], [2, 0], []], 10, 3)
    mixture = gate.mixture(encoder, torch.stack([forth, back, empty]))
    mean = table(torch.tensor([1, 2, 4, 5, 6])).mean(0)
    told = nn.functional.layer_norm(mean, (6,)) @ gate.projection.weight.T
    torch.testing.assert_close(mixture[0], told.softmax(-1))
    torch.testing.assert_close(mixture[1], mixture[0])
    torch.testing.assert_close(mixture[2], torch.full((4,), 0.25))


def test_an_unknown_gate_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'router'.*linear, mlp, top-k"):
        build_gate("router", 6, 4)


def test_every_gate_of_the_settings_is_there_and_the_other_way_round() -> None:
    assert set(options.BY_NAME) == set(GATES)
