"""The holder of the gates: whose turn it is, in recomputations and a layer at a time too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ilora_kernels import FusedILoRALinear, InstanceGates

from .small_layers import D_IN, D_OUT, mixtures, outcome, random_layer

# ---- The holder


def test_a_layer_without_gates_raises() -> None:
    x = torch.randn(2, 3, D_IN)
    with pytest.raises(RuntimeError, match="No gates are set"):
        random_layer()(x)
    with pytest.raises(RuntimeError, match="This layer has no gates"):
        random_layer(gates=None)(x)


def test_the_gates_are_gone_after_their_block() -> None:
    layer = random_layer()
    x = torch.randn(2, 3, D_IN)
    with layer.gates.set(mixtures(2)):
        layer(x)
    with pytest.raises(RuntimeError, match="No gates are set"):
        layer(x)


def test_the_gates_are_gone_after_an_exception() -> None:
    layer = random_layer()
    with pytest.raises(KeyError), layer.gates.set(mixtures(2)):
        raise KeyError
    with pytest.raises(RuntimeError, match="No gates are set"):
        layer(torch.randn(2, 3, D_IN))


def test_an_inner_block_gives_the_outer_gates_back() -> None:
    layer = random_layer()
    x, outer, inner = torch.randn(2, 3, D_IN), mixtures(2), mixtures(2)
    with layer.gates.set(outer):
        with layer.gates.set(inner):
            assert torch.equal(layer(x), layer(x, gate=inner))
        assert torch.equal(layer(x), layer(x, gate=outer))


def test_a_gate_handed_in_wins_over_the_set_ones() -> None:
    layer = random_layer()
    x, gate = torch.randn(2, 3, D_IN), mixtures(2)
    expected = layer(x, gate=gate)
    with layer.gates.set(mixtures(2)):
        assert torch.equal(layer(x, gate=gate), expected)


@pytest.mark.parametrize("shape", [(6, 4, D_IN), (6, D_IN), (6, 2, 2, D_IN)])
def test_beams_repeat_every_gate_in_place(device: torch.device, shape: tuple[int, ...]) -> None:
    layer = random_layer().to(device)
    x, gate = torch.randn(shape, device=device), mixtures(2).to(device)
    with layer.gates.set(gate):
        y = layer(x)
    torch.testing.assert_close(y, layer(x, gate=gate.repeat_interleave(3, dim=0)))


def test_rows_that_no_number_of_beams_explains_are_refused() -> None:
    layer = random_layer()
    with (
        layer.gates.set(mixtures(2)),
        pytest.raises(ValueError, match="2 gates are set, but 5 rows"),
    ):
        layer(torch.randn(5, 3, D_IN))


def test_no_rows_at_all_work_with_any_number_of_gates() -> None:
    layer = random_layer()
    for instances in (0, 2):
        with layer.gates.set(mixtures(instances)):
            assert layer(torch.randn(0, 3, D_IN)).shape == (0, 3, D_OUT)


def test_beams_keep_the_gradient_of_gates_first_used_without_one() -> None:
    layer = random_layer()
    x, gate = torch.randn(4, 3, D_IN), mixtures(2, requires_grad=True)
    with layer.gates.set(gate):
        with torch.no_grad():
            layer(x)
        layer(x).sum().backward()
    assert gate.grad is not None


def test_beams_read_a_gate_that_changes_in_place() -> None:
    layer = random_layer()
    x, gate = torch.randn(4, 3, D_IN), mixtures(2)
    with layer.gates.set(gate):
        layer(x)
        gate.copy_(mixtures(2))
        assert torch.equal(layer(x), layer(x, gate=gate.repeat_interleave(2, dim=0)))


# ---- Gradient checkpointing


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputation_after_the_block_uses_the_gates_of_its_own_forward(dropout: float) -> None:
    layer = random_layer(dropout=dropout)
    inputs = [torch.randn(2, 3, D_IN, requires_grad=True) for _ in range(2)]
    gates = [mixtures(2, requires_grad=True) for _ in range(2)]

    def run(block: Callable[[Tensor], Tensor]) -> Tensor:
        outputs = []
        for x, gate in zip(inputs, gates, strict=True):
            with layer.gates.set(gate):
                outputs.append(block(x))
        return torch.stack(outputs)

    context_fn = layer.gates.checkpoint_contexts
    recomputed = partial(checkpoint, layer, use_reentrant=False, context_fn=context_fn)
    results = []
    for block in (layer, recomputed):
        for leaf in (*inputs, *gates):
            leaf.grad = None
        results.append(outcome(layer, lambda block=block: run(block)))  # type: ignore[misc]
        results[-1] += [leaf.grad for leaf in (*inputs, *gates)]
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)
    with pytest.raises(RuntimeError, match="No gates are set"):
        layer(inputs[0])


def test_two_losses_of_one_checkpoint_recompute_twice() -> None:
    layer = random_layer()
    x, gate = torch.randn(2, 3, D_IN), mixtures(2)
    with layer.gates.set(gate):
        y = checkpoint(layer, x, use_reentrant=False, context_fn=layer.gates.checkpoint_contexts)
    first, second = y.sum(), y.square().sum()
    first.backward(retain_graph=True)
    second.backward()
    grad = layer.lora_A.grad.clone()
    layer.zero_grad()
    y = layer(x, gate=gate)
    (y.sum() + y.square().sum()).backward()
    torch.testing.assert_close(grad, layer.lora_A.grad)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("inside", [False, True], ids=["after the block", "inside a block"])
def test_recomputation_without_its_gates_is_refused(use_reentrant: bool, inside: bool) -> None:
    layer = random_layer()
    x = torch.randn(2, 3, D_IN, requires_grad=True)
    with layer.gates.set(mixtures(2)):
        y = checkpoint(layer, x, use_reentrant=use_reentrant)
    if not inside:
        with pytest.raises(RuntimeError, match="No gates are set"):
            y.sum().backward()
        return
    sentence = r"context_fn=gates\.checkpoint_contexts \(use_reentrant=True is not supported"
    with layer.gates.set(mixtures(2)), pytest.raises(RuntimeError, match=sentence):
        y.sum().backward()


def test_a_recomputed_function_that_sets_its_own_gates_needs_no_context() -> None:
    layer = random_layer()
    x, gate = torch.randn(2, 3, D_IN), mixtures(2, requires_grad=True)

    def block(x: Tensor, gate: Tensor) -> Tensor:
        with layer.gates.set(gate):
            return layer(x)

    checkpoint(block, x, gate, use_reentrant=False).square().sum().backward()
    expected = torch.autograd.grad(block(x, gate).square().sum(), gate)[0]
    torch.testing.assert_close(gate.grad, expected)


def test_checkpoint_contexts_without_gates_leave_the_base_model_alone() -> None:
    x = torch.randn(2, 3, D_IN, requires_grad=True)
    contexts = InstanceGates().checkpoint_contexts
    checkpoint(nn.Linear(D_IN, D_OUT), x, use_reentrant=False, context_fn=contexts).sum().backward()
    assert x.grad is not None


# ---- A mixture for each layer


def numbered_layers(count: int = 3) -> tuple[InstanceGates, list[FusedILoRALinear]]:
    """Layers that share one holder and know their numbers."""
    holder = InstanceGates()
    return holder, [random_layer(gates=holder, gate_index=index) for index in range(count)]


@pytest.mark.parametrize("instances", [(), (2,)], ids=["shared", "instance"])
def test_with_gates_per_layer_every_layer_takes_its_own(instances: tuple[int, ...]) -> None:
    holder, layers = numbered_layers()
    x, gate = torch.randn(2, 4, D_IN), mixtures(*instances, 3, requires_grad=True)
    with holder.set(gate, per_layer=True):
        together = [layer(x) for layer in layers]
    for index, (layer, y) in enumerate(zip(layers, together, strict=True)):
        assert torch.equal(y, layer(x, gate=gate[..., index, :]))
    (grad,) = torch.autograd.grad(together[1].sum(), gate)
    reached = grad.any(-1).reshape(-1, 3).any(0)
    assert reached.tolist() == [False, True, False]


def test_gates_per_layer_grow_to_the_beams_of_their_instance() -> None:
    holder, layers = numbered_layers()
    x, gate = torch.randn(6, 4, D_IN), mixtures(2, 3)
    with holder.set(gate, per_layer=True):
        y = layers[2](x)
    expected = layers[2](x, gate=gate[:, 2].repeat_interleave(3, dim=0))
    torch.testing.assert_close(y, expected)


def test_checkpointing_recomputes_with_each_layers_own_gate() -> None:
    holder, layers = numbered_layers(2)
    layers[1] = random_layer(nn.Linear(D_OUT, D_IN), gates=holder, gate_index=1)
    x, gate = torch.randn(2, 4, D_IN), mixtures(2, 2, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        return layers[1](layers[0](x)).square()

    def gradient(through: Callable[[Tensor], Tensor]) -> Tensor:
        with holder.set(gate, per_layer=True):
            y = through(x)
        return torch.autograd.grad(y.sum(), gate)[0]

    kept = partial(
        checkpoint, run, use_reentrant=False, context_fn=lambda: holder.checkpoint_contexts()
    )
    torch.testing.assert_close(gradient(kept), gradient(run))


@pytest.mark.parametrize("index", [None, 3])
def test_a_layer_that_has_no_mixture_among_those_per_layer_is_told(index: int | None) -> None:
    layer = random_layer(gate_index=index)
    with (
        layer.gates.set(mixtures(2, 3), per_layer=True),
        pytest.raises(ValueError, match=rf"3 layers.*gate_index is {index}"),
    ):
        layer(torch.randn(2, 4, D_IN))


def test_one_mixture_alone_is_none_per_layer() -> None:
    with (
        pytest.raises(ValueError, match=r"per layer it is \[layers, K\]"),
        InstanceGates().set(mixtures(), per_layer=True),
    ):
        pass
