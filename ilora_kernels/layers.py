"""The drop-in layer, and the holder through which one model's layers learn whose turn it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn as nn
from torch import Tensor

from ilora_kernels.functional import gated_lora_linear, gated_lora_onto

SCALING_CONVENTIONS = ("expert", "total")


class _Mixture(NamedTuple):
    gate: Tensor
    cu_seqlens: Tensor | None
    recomputing: bool


class InstanceGates:
    """The gates of the batch in flight, shared by all adapted layers of one model.

    A model sets them for one forward pass and they are gone after it, so that no layer can ever use
    those of an earlier batch::

        with gates.set(g):              # g: [K], [B, K] or [B, S, K]
            y = model(x)

    Gradient checkpointing runs the layers again during the backward pass, when the block is long
    over; hand it the gates of its own forward pass::

        checkpoint(block, x, use_reentrant=False, context_fn=gates.checkpoint_contexts)

    Beam search repeats every instance; ``[B, K]`` then grows to the rows that arrive, each gate
    repeated in place, which is how transformers orders beams and returned sequences.
    """

    def __init__(self) -> None:
        self._mixture: _Mixture | None = None
        self._repeated: dict[int, Tensor] = {}

    @contextmanager
    def set(self, gate: Tensor, *, cu_seqlens: Tensor | None = None) -> Iterator[None]:
        """Let the layers use ``gate`` inside the block; ``cu_seqlens`` as in ``gated_lora``."""
        with self._holding(_Mixture(gate, cu_seqlens, recomputing=False)):
            yield

    def checkpoint_contexts(
        self,
    ) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """The ``context_fn`` of ``torch.utils.checkpoint``: recompute with this pass's gates."""
        if self._mixture is None:
            return nullcontext(), nullcontext()
        return nullcontext(), self._holding(self._mixture._replace(recomputing=True))

    @contextmanager
    def _holding(self, mixture: _Mixture) -> Iterator[None]:
        before = self._mixture, self._repeated
        self._mixture, self._repeated = mixture, {}
        try:
            yield
        finally:
            self._mixture, self._repeated = before

    def for_input(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gate for ``x`` and its ``cu_seqlens``.

        Raises:
            RuntimeError: no gates are set, or a layer runs again in a backward pass without them.
            ValueError: the rows of ``x`` are not a multiple of the instances.
        """
        if self._mixture is None:
            raise RuntimeError(
                "No gates are set, so this layer does not know whose mixture of experts to apply; "
                "call the model inside `with gates.set(gate):`, or the layer with gate=."
            )
        gate, cu_seqlens, recomputing = self._mixture
        if not recomputing and _in_backward():
            raise RuntimeError(
                "A layer runs again in the backward pass without the gates of its forward pass; "
                "checkpoint with use_reentrant=False and context_fn=gates.checkpoint_contexts "
                "(use_reentrant=True is not supported, because it loses the gates' gradient)."
            )
        if gate.ndim != 2 or cu_seqlens is not None:
            return gate, cu_seqlens
        return self._repeat_to(gate, x.shape[0]), None

    def _repeat_to(self, gate: Tensor, num_rows: int) -> Tensor:
        num_instances = gate.shape[0]
        if num_rows == num_instances:
            return gate
        if num_instances == 0 or num_rows % num_instances:
            raise ValueError(
                f"{num_instances} gates are set, but {num_rows} rows arrive; there must be one gate "
                "an instance (or its beams)."
            )
        if num_rows not in self._repeated:
            self._repeated[num_rows] = gate.repeat_interleave(num_rows // num_instances, dim=0)
        return self._repeated[num_rows]

    def __deepcopy__(self, memo: dict[int, Any]) -> InstanceGates:
        return memo.setdefault(id(self), InstanceGates())  # a copied model starts with no batch

    def __reduce__(self) -> tuple[type[InstanceGates], tuple[()]]:
        return InstanceGates, ()


def _in_backward() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


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
    ) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.gates = gates
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
        packed = None
        if gate is None:
            if self.gates is None:
                raise RuntimeError(
                    "This layer has no gates; call it with gate=, or build it with gates=."
                )
            gate, packed = self.gates.for_input(x)
        if gate.shape[-1] != adapter.num_experts:
            raise ValueError(
                f"gate has shape {list(gate.shape)}, but this layer has {adapter.num_experts} experts; "
                "its last dimension must be their number."
            )
        shape = x.shape[:-1]
        if packed is not None or x.ndim > 3 or gate.ndim > x.ndim:  # one row a token
            x = x.flatten(0, -2)
            gate = gate.flatten(0, -2) if gate.ndim > 2 else gate
        return self._adapted(x, adapter, gate, packed).reshape(*shape, self.out_features)

    def _adapted(
        self, x: Tensor, adapter: Adapter, gate: Tensor, cu_seqlens: Tensor | None
    ) -> Tensor:
        lora_A, lora_B = adapter.lora_A.to(x.dtype), adapter.lora_B.to(x.dtype)
        options: dict[str, Any] = {
            "scaling": adapter.scaling,
            "dropout_p": adapter.dropout_p,
            "cu_seqlens": cu_seqlens,
        }
        layer = self.base_layer
        if is_plain_linear(layer):
            return gated_lora_linear(x, layer.weight, layer.bias, lora_A, lora_B, gate, **options)
        base = layer(x)
        lora_A, lora_B = lora_A.to(base.dtype), lora_B.to(base.dtype)
        return gated_lora_onto(base, x.to(base.dtype), lora_A, lora_B, gate, **options)

    def merged(self, gate: Tensor | None = None) -> nn.Linear:
        """Return the plain ``nn.Linear`` of one fixed user: ``W + s · B diag(gate) A``.

        Args:
            gate: ``[K]``, that user's mixture.

        Raises:
            ValueError: no gate, or one of several instances, for which no single weight exists.
            TypeError: the base layer is not a plain ``nn.Linear``.
        """
        return merged_linear(self.base_layer, self.lora_A, self.lora_B, gate, self.scaling)

    def extra_repr(self) -> str:
        return (
            f"experts={self.num_experts}, rank={self.rank}, scaling={self.scaling:g}, "
            f"dropout={self.dropout:g}"
        )


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


def merged_linear(
    base_layer: nn.Module, lora_A: Tensor, lora_B: Tensor, gate: Tensor | None, scaling: float
) -> nn.Linear:
    """See :meth:`FusedILoRALinear.merged`."""
    if gate is None or gate.squeeze(0).ndim != 1:
        got = "missing" if gate is None else f"of shape {list(gate.shape)}"
        raise ValueError(
            f"gate is {got}; merging needs the one mixture [K] of one user, because every user has "
            "a weight of his own."
        )
    if not is_plain_linear(base_layer):
        raise TypeError(
            f"base_layer is a {type(base_layer).__name__}; only a plain nn.Linear can be merged."
        )
    weight = base_layer.weight
    per_rank = (
        gate.squeeze(0).to(weight.device).repeat_interleave(lora_A.shape[0] // gate.shape[-1])
    )
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    update = (lora_B.to(wide) * (scaling * per_rank.to(wide))) @ lora_A.to(wide)  # [d_out, d_in]
    d_out, d_in = weight.shape
    merged = nn.Linear(d_in, d_out, base_layer.bias is not None, weight.device, weight.dtype)
    with torch.no_grad():
        merged.weight.copy_(weight.to(wide) + update)
        if base_layer.bias is not None:
            merged.bias.copy_(base_layer.bias)
    return merged.requires_grad_(False)


def is_plain_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether reading the weight is the same as calling the layer: no subclass, hook or offload."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return type(layer) is nn.Linear and not hooked
