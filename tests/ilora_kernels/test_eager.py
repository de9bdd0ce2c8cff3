"""The way past torch's dispatcher: only where nobody watches, and then with the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from ilora_kernels import gated_lora
from ilora_kernels.functional import gated_lora_onto
from ilora_kernels.ops import _nobody_watches

from .problems import GATE_FORMS, TRAINABLE, gradients, random_problem


class Seen(TorchDispatchMode):
    """Notes the operators that pass the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("gate_form", GATE_FORMS)
def test_both_ways_give_the_same_bits(device: torch.device, gate_form: str) -> None:
    problem = random_problem(gate_form, device=device).to(torch.float32)
    results = []
    for watched in (False, True):
        leaves = problem.leaves()
        torch.manual_seed(5)
        if watched:
            with Seen() as seen:
                y = leaves.run(dropout_p=0.2)
                found = [y, *gradients(leaves, y)]
            assert "ilora.gated_lora.default" in seen.names
            assert "ilora.gated_lora_backward.default" in seen.names
        else:
            y = leaves.run(dropout_p=0.2)
            found = [y, *gradients(leaves, y)]
        results.append(found)
    for direct, dispatched in zip(*results, strict=True):
        assert torch.equal(direct, dispatched)


@pytest.mark.parametrize("name", ["x", "weight", "lora_A", "lora_B", "gate", "cu_seqlens"])
def test_an_argument_that_changes_before_the_backward_pass_is_refused(name: str) -> None:
    problem = random_problem("packed").to(torch.float32).leaves()
    y = problem.run()
    with torch.no_grad():
        getattr(problem, name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(problem, y)


def test_a_checkpoint_may_drop_all_that_the_backward_pass_needs() -> None:
    """Under autocast it is copies of the parameters, that of the weight as large as the weight."""
    problem = random_problem("instance").to(torch.float32).leaves()
    names = {getattr(problem, name).data_ptr(): name for name in ("weight", *TRAINABLE)}
    packed: list[str] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(names.get(tensor.data_ptr(), "xa"))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        problem.run()
    assert sorted(packed) == sorted(["weight", "xa", *TRAINABLE])


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_an_output_onto_columns_first_is_in_order(
    device: torch.device, batch: int, recorded: bool
) -> None:
    problem = random_problem("instance", device=device, instances=batch, linear=False)
    problem = problem.to(torch.float32).leaves()
    x = problem.x if recorded else problem.x.detach()
    base = torch.randn(batch, 13, 5, device=device).transpose(1, 2)
    y = gated_lora_onto(base, x, problem.lora_A, problem.lora_B, problem.gate)
    expected = base + gated_lora(x, problem.lora_A, problem.lora_B, problem.gate)
    torch.testing.assert_close(y, expected)


def test_nothing_is_recorded_where_no_gradient_is() -> None:
    problem = random_problem("instance").to(torch.float32).leaves()
    expected = problem.run()
    assert expected.grad_fn is not None
    with torch.no_grad():
        y = problem.run()
    assert y.grad_fn is None
    assert torch.equal(y, expected)
    with torch.inference_mode():
        assert torch.equal(problem.run(), expected)


@pytest.mark.parametrize("onto", [False, True], ids=["linear", "onto"])
def test_an_output_may_be_changed_in_place(device: torch.device, onto: bool) -> None:
    """As models add a residual; autograd forbids it for a view that a Function returns."""
    problem = random_problem("instance", device=device).to(torch.float32)

    def run(in_place: bool) -> list[Tensor]:
        p = problem.leaves()
        if onto:
            base = torch.ones(*p.x.shape[:-1], p.lora_B.shape[0], device=device)
            y = gated_lora_onto(base.requires_grad_(), p.x, p.lora_A, p.lora_B, p.gate)
        else:
            y = p.run()
        if in_place:
            y *= 3.0
        else:
            y = y * 3.0
        return [y.detach(), *gradients(p, y)]

    for changed, fresh in zip(run(True), run(False), strict=True):
        assert torch.equal(changed, fresh)


def test_what_is_computed_without_gradients_may_be_changed_with_them() -> None:
    problem = random_problem("instance").to(torch.float32)
    with torch.no_grad():
        y = problem.run()
    shift = torch.ones(y.shape[-1], requires_grad=True)
    y += shift
    y.sum().backward()
    assert shift.grad is not None


def test_a_tensor_with_a_pending_sign_is_read_with_it(device: torch.device) -> None:
    problem = random_problem("shared", device=device, linear=False).to(torch.float32)
    negative = torch.complex(torch.zeros_like(problem.x), problem.x).conj().imag
    assert negative.is_neg()
    low_rank = (problem.lora_A, problem.lora_B, problem.gate)
    torch.testing.assert_close(gated_lora(negative, *low_rank), gated_lora(-problem.x, *low_rank))


@pytest.mark.parametrize("recorded", [True, False])
def test_a_forward_mode_derivative_is_refused_loudly_where_it_is_none_of_functorch(
    recorded: bool,
) -> None:
    p = random_problem("shared").to(torch.float32)
    with forward_ad.dual_level(), torch.set_grad_enabled(recorded):
        x = forward_ad.make_dual(p.x, torch.ones_like(p.x))
        with pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward"):
            gated_lora(x, p.lora_A, p.lora_B, p.gate)


def test_batched_gradients_are_those_of_a_loop(device: torch.device) -> None:
    p = random_problem("instance", device=device).to(torch.float32).leaves()
    y = p.run()
    directions = torch.randn(3, *y.shape, device=device)
    wanted = [getattr(p, name) for name in TRAINABLE]
    batched = torch.autograd.grad(y, wanted, directions, retain_graph=True, is_grads_batched=True)
    for i, direction in enumerate(directions):
        one = torch.autograd.grad(y, wanted, direction, retain_graph=True)
        for found, expected in zip(batched, one, strict=True):
            torch.testing.assert_close(found[i], expected)


def test_whoever_watches_is_noticed() -> None:
    class Subclass(Tensor):
        pass

    x = torch.ones(2, 3)
    assert _nobody_watches(x, None, torch.nn.Parameter(x))
    assert not _nobody_watches(x, x.as_subclass(Subclass))
    assert not _nobody_watches(x.to("meta"))
    with Seen():
        assert not _nobody_watches(x)
    with torch.device("cpu"):  # a mode too, of functions
        assert not _nobody_watches(x)
    seen: list[bool] = []

    def one(row: Tensor) -> Tensor:
        seen.append(_nobody_watches(row))
        return row

    torch.func.vmap(one)(x)
    assert seen == [False]
