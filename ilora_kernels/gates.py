"""The holder through which one model's layers learn whose turn it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Mixture(NamedTuple):
    gate: Tensor
    cu_seqlens: Tensor | None
    backward_pass: int  # the one that set it, so that another one's recomputation never takes it
    per_layer: bool = False  # the dimension before the last one of the gate is the layers'


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

    With ``per_layer`` every layer has a mixture of its own, ``[layers, K]`` for the whole batch or
    ``[B, layers, K]``; a layer takes the one at its ``gate_index``.
    """

    def __init__(self) -> None:
        self._mixture: _Mixture | None = None

    @contextmanager
    def set(
        self, gate: Tensor, *, cu_seqlens: Tensor | None = None, per_layer: bool = False
    ) -> Iterator[None]:
        """Let the layers use ``gate`` inside the block; ``cu_seqlens`` as in ``gated_lora``."""
        require_tensor(gate)
        if per_layer and gate.ndim not in (2, 3):
            raise ValueError(
                f"gate has shape {list(gate.shape)}; per layer it is [layers, K] or [B, layers, K]."
            )
        before = self._mixture
        self._mixture = _Mixture(gate, cu_seqlens, _backward_pass(), per_layer)
        try:
            yield
        finally:
            self._mixture = before

    def checkpoint_contexts(
        self,
    ) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """The ``context_fn`` of ``torch.utils.checkpoint``: recompute with this pass's gates."""
        if self._mixture is None:
            return nullcontext(), nullcontext()
        return nullcontext(), _Recomputation(self, self._mixture)

    def for_input(
        self, x: Tensor, gate_index: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return ``x`` with its rows as the gate governs them, the gate, and ``cu_seqlens``.

        Args:
            gate_index: the number of the layer that asks, where every layer has its own mixture.

        Raises:
            RuntimeError: no gates are set, or a layer runs again in a backward pass without them.
            ValueError: the rows of ``x`` are not a multiple of the instances.
        """
        mixture = self._mixture
        if mixture is None:
            raise RuntimeError(
                "No gates are set, so this layer does not know whose mixture of experts to apply; "
                "call the model inside `with gates.set(gate):`, the layer with gate=, or a PEFT model "
                "with gates=."
            )
        if not torch.compiler.is_compiling() and mixture.backward_pass != _backward_pass():
            raise RuntimeError(
                "A layer runs again in the backward pass without the gates of its forward pass; "
                "checkpoint with use_reentrant=False and context_fn=gates.checkpoint_contexts "
                "(use_reentrant=True is not supported, because it loses the gates' gradient)."
            )
        gate, cu_seqlens = mixture.gate, mixture.cu_seqlens
        if mixture.per_layer:
            gate = _of_layer(gate, gate_index)
        if cu_seqlens is not None:
            return x.flatten(0, -2), gate, cu_seqlens
        return (_grouped(x, gate.shape[0]) if gate.ndim == 2 else x), gate, None

    def __reduce__(self) -> tuple[type[InstanceGates], tuple[()]]:
        return InstanceGates, ()  # a copied model starts with no batch


class _Recomputation:
    """Holds one forward pass's gates; enterable again, as two backward passes recompute twice."""

    def __init__(self, gates: InstanceGates, mixture: _Mixture) -> None:
        self._gates = gates
        self._mixture = mixture
        self._before: list[_Mixture | None] = []

    def __enter__(self) -> None:
        self._before.append(self._gates._mixture)
        self._gates._mixture = self._mixture._replace(backward_pass=_backward_pass())

    def __exit__(self, *_: object) -> None:
        self._gates._mixture = self._before.pop()


def _backward_pass() -> int:
    """The number of the backward pass that is running here, -1 outside of one."""
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def _of_layer(gate: Tensor, index: int | None) -> Tensor:
    """``[..., layers, K]`` -> ``[..., K]``, the mixture of one layer."""
    if index is None or not 0 <= index < gate.shape[-2]:
        raise ValueError(
            f"The gates set are for {gate.shape[-2]} layers, but this layer's gate_index is {index}; "
            "number the layers from 0 and set a mixture for each."
        )
    return gate[..., index, :]


def require_tensor(gate: Tensor) -> None:
    """Refuse a gate that is no tensor."""
    if not isinstance(gate, Tensor):
        raise TypeError(f"gate is a {type(gate).__name__}; it must be a torch.Tensor.")


def _grouped(x: Tensor, num_instances: int) -> Tensor:
    """Bring beams under their instance: ``[B · beams, S, d_in] -> [B, beams · S, d_in]``."""
    num_rows = x.shape[0]
    if num_rows == num_instances:
        return x
    if num_instances == 0 or num_rows % num_instances:
        raise ValueError(
            f"{num_instances} gates are set, but {num_rows} rows arrive; there must be one gate "
            "an instance (or its beams)."
        )
    return x.unflatten(0, (num_instances, num_rows // num_instances)).flatten(1, -2)
