"""The drop-in layer."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn as nn
from torch import Tensor

from ilora_kernels.functional import gated_lora_linear, gated_lora_onto
from ilora_kernels.gates import InstanceGates, require_tensor

SCALING_CONVENTIONS = ("expert", "total")


class Adapter(NamedTuple):
    """What the update of one layer consists of, with the dropout of this very call."""

    lora_A: Tensor  # [R, d_in]
    lora_B: Tensor  # [d_out, R]
    num_experts: int
    scaling: float
    dropout_p: float


class FusedILoRALinear(nn.Module):
    """A frozen linear layer whose low-rank update is a mixture of experts, one mixture an instance.

        y[b] = x[b] Wᵀ + bias + s · Σ_k gate[b, k] · (dropout(x[b]) A_kᵀ) B_kᵀ

    Args:
        base_layer: the layer to adapt; it is frozen. A plain ``nn.Linear`` takes the fused path; any
            other layer with ``in_features`` and ``out_features`` (a quantised linear) is called,
            and the update is added to its output.
        num_experts: K.
        rank: R, the total over all experts; each has R / K.
        alpha: numerator of the scaling.
        dropout: probability on the input of the low-rank path, in training only.
        gates: the holder that the model's layers share; without one, every call needs ``gate=``.
        scaling: ``"expert"``: s = alpha / (R / K), as in the released code of the paper, so that
            uniform gates give plain LoRA of rank R with alpha / R; ``"total"``: s = alpha / R, as
            the paper writes.
        gate_index: which mixture of ``gates`` set per layer is this layer's.

    Parameters: ``lora_A [R, d_in]`` (Kaiming uniform) and ``lora_B [d_out, R]`` (zeros), of the
    base weight's dtype if it is floating, else float32; both are cast to the input's dtype.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        num_experts: int = 4,
        rank: int = 8,
        alpha: float = 32.0,
        dropout: float = 0.0,
        gates: InstanceGates | None = None,
        *,
        scaling: str = "expert",
        gate_index: int | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.gates = gates
        self.gate_index = gate_index
        self.in_features, self.out_features = layer_features(base_layer)
        self.num_experts = num_experts
        self.rank = rank
        self.dropout = dropout
        self.scaling = scaling_factor(num_experts, rank, alpha, scaling)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is {dropout}; it must be at least 0 and less than 1.")
        self.lora_A, self.lora_B = new_adapter(base_layer, rank)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Apply the layer to ``x [B, S, d_in]`` or ``[T, d_in]`` with ``gate``, or the set gates."""
        dropout_p = self.dropout if self.training else 0.0
        adapter = Adapter(self.lora_A, self.lora_B, self.num_experts, self.scaling, dropout_p)
        return self.adapt(x, adapter, gate)

    def adapt(self, x: Tensor, adapter: Adapter, gate: Tensor | None) -> Tensor:
        """The layer with the adapter that is handed in; a tuner that has several calls this."""
        rows, packed = x, None
        if gate is None:
            if self.gates is None:
                raise RuntimeError(
                    "This layer has no gates; call it with gate=, or build it with gates=."
                )
            rows, gate, packed = self.gates.for_input(x, self.gate_index)
        require_tensor(gate)
        if gate.ndim == 0 or gate.shape[-1] != adapter.num_experts:
            raise ValueError(
                f"gate has shape {list(gate.shape)}, but this layer has {adapter.num_experts} experts; "
                "its last dimension must be their number."
            )
        if gate.ndim == 2 and rows.ndim > 3:  # an instance may have any shape of tokens
            rows = rows.flatten(1, -2)
        elif rows.ndim > 3 or gate.ndim > rows.ndim:
            rows = rows.flatten(0, -2)
            gate = gate.flatten(0, -2) if gate.ndim > 2 else gate
        y = self._adapted(x, rows, adapter, gate, packed)
        return y if rows is x else y.reshape(*x.shape[:-1], self.out_features)

    def _adapted(
        self, x: Tensor, rows: Tensor, adapter: Adapter, gate: Tensor, cu_seqlens: Tensor | None
    ) -> Tensor:
        lora_A, lora_B, _, scaling, dropout_p = adapter
        options: dict[str, Any] = {
            "scaling": scaling,
            "dropout_p": dropout_p,
            "cu_seqlens": cu_seqlens,
        }
        layer = self.base_layer
        if is_plain_linear(layer):
            lora_A, lora_B = _cast(lora_A, x.dtype), _cast(lora_B, x.dtype)
            return gated_lora_linear(
                rows, layer.weight, layer.bias, lora_A, lora_B, gate, **options
            )
        base = layer(x)
        if not isinstance(base, Tensor):
            raise TypeError(
                f"base_layer, a {type(layer).__name__}, returned a {type(base).__name__}; only layers "
                "that return one tensor can be adapted, so leave it out of the target modules."
            )
        lora_A, lora_B = _cast(lora_A, base.dtype), _cast(lora_B, base.dtype)
        base = base.reshape(*rows.shape[:-1], self.out_features)
        return gated_lora_onto(base, _cast(rows, base.dtype), lora_A, lora_B, gate, **options)

    def merged(self, gate: Tensor | None = None) -> nn.Linear:
        """Return the plain ``nn.Linear`` of one fixed user: ``W + s · B diag(gate) A``.

        Args:
            gate: ``[K]``, that user's mixture.

        Raises:
            ValueError: no gate, one of several instances, for which no single weight exists, or
                one of another number of experts.
            TypeError: the base layer is not a plain ``nn.Linear``.
        """
        adapter = Adapter(self.lora_A, self.lora_B, self.num_experts, self.scaling, 0.0)
        return merged_linear(self.base_layer, adapter, gate)

    def extra_repr(self) -> str:
        return (
            f"experts={self.num_experts}, rank={self.rank}, scaling={self.scaling:g}, "
            f"dropout={self.dropout:g}"
        )


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Asking first costs a tenth of calling .to() for nothing.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def scaling_factor(num_experts: int, rank: int, alpha: float, convention: str) -> float:
    """Return s, after checking that ``num_experts`` divides ``rank``."""
    if num_experts < 1 or rank < 1 or rank % num_experts:
        raise ValueError(
            f"rank is {rank} and num_experts {num_experts}; both must be at least 1, and the experts "
            "must share the total rank evenly."
        )
    if convention not in SCALING_CONVENTIONS:
        raise ValueError(f"scaling is {convention!r}; it must be 'expert' or 'total'.")
    return alpha / (rank // num_experts if convention == "expert" else rank)


def layer_features(layer: nn.Module) -> tuple[int, int]:
    """Return ``(d_in, d_out)`` of a linear layer."""
    for names in (("in_features", "out_features"), ("nx", "nf")):  # the latter: GPT-2's Conv1D
        d_in, d_out = (getattr(layer, name, None) for name in names)
        if isinstance(d_in, int) and isinstance(d_out, int):
            return d_in, d_out
    raise TypeError(
        f"base_layer is a {type(layer).__name__}, which has no in_features and out_features; only "
        "linear layers can be adapted."
    )


def new_adapter(base_layer: nn.Module, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Return fresh ``lora_A [R, d_in]`` and ``lora_B [d_out, R]`` beside the base weight."""
    d_in, d_out = layer_features(base_layer)
    options: dict[str, Any] = {"dtype": torch.float32}
    weight = getattr(base_layer, "weight", None)
    if isinstance(weight, Tensor):
        options["device"] = weight.device
        if weight.dtype.is_floating_point and weight.dtype.itemsize >= 2:  # not 8-bit floats
            options["dtype"] = weight.dtype
    lora_A = nn.Parameter(torch.empty(rank, d_in, **options))
    nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))
    return lora_A, nn.Parameter(torch.zeros(d_out, rank, **options))


def merged_linear(base_layer: nn.Module, adapter: Adapter, gate: Tensor | None) -> nn.Linear:
    """See :meth:`FusedILoRALinear.merged`."""
    num_experts = adapter.num_experts
    if gate is None or gate.shape not in ((num_experts,), (1, num_experts)):
        got = "missing" if gate is None else f"of shape {list(gate.shape)}"
        raise ValueError(
            f"gate is {got}; merging needs the one mixture [{num_experts}] of one user, because "
            "every user has a weight of his own."
        )
    if not is_plain_linear(base_layer):
        raise TypeError(
            f"base_layer is a {type(base_layer).__name__}; only a plain nn.Linear can be merged."
        )
    weight = base_layer.weight
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    lora_A, lora_B = adapter.lora_A.detach().to(wide), adapter.lora_B.detach().to(wide)
    scaled = adapter.scaling * gate.detach().to(weight.device, wide).reshape(num_experts)
    per_rank = scaled.repeat_interleave(lora_A.shape[0] // num_experts)  # [R]
    update = (lora_B * per_rank) @ lora_A  # [d_out, d_in]
    d_out, d_in = weight.shape
    merged = nn.Linear(d_in, d_out, base_layer.bias is not None, weight.device, weight.dtype)
    with torch.no_grad():
        merged.weight.copy_(weight.to(wide) + update)
        if base_layer.bias is not None:
            merged.bias.copy_(base_layer.bias)
    return merged.requires_grad_(False)


def is_plain_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether reading the weight is the same as calling the layer: no subclass, hook or offload."""
    hooked = (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in vars(layer)
    )
    return type(layer) is nn.Linear and not hooked
