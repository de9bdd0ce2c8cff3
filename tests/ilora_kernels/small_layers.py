"""Small adapted layers, their gates and the formula that they are held to."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor

from ilora_kernels import FusedILoRALinear, InstanceGates, reference

D_IN, D_OUT, K, R = 11, 7, 3, 6


def random_layer(base_layer: nn.Module | None = None, **options: object) -> FusedILoRALinear:
    """A layer with a holder of gates, whose ``lora_B`` is not zero any more."""
    options = {"num_experts": K, "rank": R, "gates": InstanceGates(), **options}
    layer = FusedILoRALinear(base_layer or nn.Linear(D_IN, D_OUT), **options)  # type: ignore[arg-type]
    nn.init.normal_(layer.lora_B)
    return layer


def mixtures(*shape: int, requires_grad: bool = False) -> Tensor:
    return torch.randn(*shape, K).softmax(-1).requires_grad_(requires_grad)


def oracle(layer: FusedILoRALinear, x: Tensor, gate: Tensor) -> Tensor:
    """The loop over experts in float64, with one gate for every token."""
    missing = x.ndim - gate.ndim if gate.ndim > 1 else 0
    gate = gate.reshape(*gate.shape[:-1], *(1,) * missing, K).expand(*x.shape[:-1], K)
    tensors = (layer.lora_A, layer.lora_B, gate)
    update = reference.gated_lora(x.double(), *(t.double() for t in tensors), scaling=layer.scaling)
    return copy.deepcopy(layer.base_layer).double()(x.double()) + update


def outcome(layer: FusedILoRALinear, run: Callable[[], Tensor]) -> list[Tensor]:
    """The result of ``run`` from one seed, and the gradients of the adapter."""
    torch.manual_seed(5)
    layer.zero_grad()
    y = run()
    y.square().sum().backward()
    grads = [p.grad for p in layer.parameters() if p.grad is not None]
    assert len(grads) == 2
    return [y.detach(), *(g.clone() for g in grads)]
