"""The operators that torch knows, and their derivatives: the one gate to all backends.

Two operators are defined, forward and backward, and an ``autograd.Function`` ties them together.
Not ``torch.library.custom_op`` with ``register_autograd``: that breaks ``torch.func.grad`` and
answers a forward-mode derivative with a silent zero. Here ``grad``, ``vmap``, ``jacrev`` and
``torch.compile(fullgraph=True)`` work; forward mode and second derivatives raise.

Rows and gates reach the operators in one form: ``x [T, d_in]``, ``gate [G, K]``, where gate ``g``
governs the rows ``cu_seqlens[g] … cu_seqlens[g + 1]`` or, without ``cu_seqlens``, the
``rows_per_gate`` rows from ``g · rows_per_gate`` on.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ilora_kernels.backends import requested, select

_LIBRARY = torch.library.Library("ilora", "DEF")
_LIBRARY.define(
    "gated_lora(Tensor x, Tensor? weight, Tensor? bias, Tensor? base, Tensor lora_A, Tensor lora_B, "
    "Tensor gate, Tensor? cu_seqlens, SymInt rows_per_gate, float scaling, float dropout_p, "
    "Tensor? seed, str backend) -> (Tensor y, Tensor xa)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "gated_lora_backward(Tensor grad_y, Tensor x, Tensor? weight, Tensor lora_A, Tensor lora_B, "
    "Tensor gate, Tensor? cu_seqlens, Tensor xa, SymInt rows_per_gate, float scaling, "
    "float dropout_p, Tensor? seed, bool[] needs, str backend) "
    "-> (Tensor dx, Tensor dA, Tensor dB, Tensor dgate)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def gated_lora(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    cu_seqlens: Tensor | None,
    rows_per_gate: int,
    scaling: float,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    """Return ``y [..., d_out]`` for ``x [..., d_in]``, differentiable.

    Inputs are checked by :mod:`ilora_kernels.functional`; ``base``, if any, is of y's shape.
    """
    low_rank = (lora_A, lora_B, gate, cu_seqlens, rows_per_gate, scaling)
    arguments = (x, weight, bias, base, *low_rank, dropout_p, seed, requested())
    if _nobody_watches(x, weight, bias, base, lora_A, lora_B, gate):
        if not torch.is_grad_enabled() and forward_ad._current_level < 0:
            return _forward_in_shape(*arguments)[0]
        # What apply() adds before the C++ call is for others: a binding of every argument to its name.
        return super(torch.autograd.Function, _EagerGatedLoRA).apply(*arguments)
    rows = x.flatten(0, -2)
    base_rows = None if base is None else base.flatten(0, -2)
    y, _ = _GatedLoRA.apply(rows, weight, bias, base_rows, *arguments[4:])
    return y.reshape(*x.shape[:-1], lora_B.shape[0])


_PLAIN_TYPES = {Tensor, torch.nn.Parameter, type(None)}


def _nobody_watches(*tensors: Tensor | None) -> bool:
    """Whether torch's dispatcher would do no more than hand the call on to its implementation.

    On its way through the dispatcher a call can be traced, transformed, batched or shown to modes and
    to subclasses of Tensor. Where there is none of these, the implementation is called directly: the
    way through costs as much as launching a kernel or two.
    """
    c = torch._C
    if (
        torch.compiler.is_compiling()
        or c._are_functorch_transforms_active()
        or c._len_torch_dispatch_stack()
        or c._len_torch_function_stack()
        or c._is_tracing()
        or not _PLAIN_TYPES.issuperset(map(type, tensors))
    ):
        return False
    for tensor in tensors:
        # A fake, batched or wrapped tensor, or one with a sign that the dispatcher would apply first.
        if tensor is not None and (_like_a_subclass(tensor) or tensor.is_neg()):
            return False
    return True


_like_a_subclass = torch._C._dispatch_isTensorSubclassLike


def _forward_in_shape(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The implementation for ``x [..., d_in]``: ``y [..., d_out]`` and ``x̂ Aᵀ [T, R]``."""
    if x.ndim == 2:
        return _forward_impl(x, *arguments)
    weight, bias, base, *rest = arguments
    base_rows = None if base is None else base.flatten(0, -2)
    y, xa = _forward_impl(x.flatten(0, -2), weight, bias, base_rows, *rest)
    # No view: autograd forbids to change a Function's view in place, and callers add to y.
    return y.resize_(*x.shape[:-1], y.shape[1]), xa


class _EagerGatedLoRA(torch.autograd.Function):
    """The operator with its derivative where nobody watches, for ``x [..., d_in]``.

    One node of the graph, without the reshapings around it, and without a context set up apart from
    the forward pass, which functorch needs: see :class:`_GatedLoRA`.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        x, weight, _, _, lora_A, lora_B, gate, cu_seqlens, *scalars, seed, backend = arguments
        y, xa = _forward_in_shape(*arguments)
        ctx.save_for_backward(x, weight, lora_A, lora_B, gate, cu_seqlens, xa, seed)
        ctx.scalars = scalars  # rows_per_gate, scaling, dropout_p
        ctx.backend = backend
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, *others, seed = ctx.saved_tensors
        rows, grad_rows = x, grad_y
        if x.ndim != 2:
            rows = x.flatten(0, -2)
            grad_rows = grad_y.reshape(len(rows), grad_y.shape[-1])  # flatten has no batching rule
        dx, dA, dB, dgate = _gradients(ctx, grad_rows, rows, *others, *ctx.scalars, seed)
        if dx is not None and x.ndim != 2:
            dx = dx.view(x.shape)
        dbase = grad_y if ctx.needs_input_grad[3] else None
        return dx, None, None, dbase, dA, dB, dgate, None, None, None, None, None, None


class _GatedLoRA(torch.autograd.Function):
    generate_vmap_rule = True

    # Named parameters: torch.compile takes a lone *inputs for the context.
    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        base: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        gate: Tensor,
        cu_seqlens: Tensor | None,
        rows_per_gate: int,
        scaling: float,
        dropout_p: float,
        seed: Tensor | None,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        low_rank = (lora_A, lora_B, gate, cu_seqlens, rows_per_gate, scaling)
        return torch.ops.ilora.gated_lora(
            x, weight, bias, base, *low_rank, dropout_p, seed, backend
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, _, lora_A, lora_B, gate, cu_seqlens, *scalars, seed, backend = inputs
        _, xa = output
        ctx.mark_non_differentiable(xa)
        ctx.save_for_backward(x, weight, lora_A, lora_B, gate, cu_seqlens, xa, seed)
        ctx.scalars = tuple(scalars)  # rows_per_gate, scaling, dropout_p
        ctx.backend = backend

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        *tensors, seed = ctx.saved_tensors
        dx, dA, dB, dgate = _gradients(ctx, grad_y, *tensors, *ctx.scalars, seed)
        dbase = grad_y if ctx.needs_input_grad[3] else None
        return dx, None, None, dbase, dA, dB, dgate, None, None, None, None, None, None


def _gradients(ctx: Any, *arguments: Any) -> list[Tensor | None]:
    """dx ``[T, d_in]``, dA, dB and dgate; None where nobody asks."""
    asked = ctx.needs_input_grad
    needs = (asked[0], asked[4], asked[5], asked[6])  # of x, lora_A, lora_B, gate
    # The second Function refuses a second derivative; where none is recorded, or the derivative is
    # traced into a compiled graph, it is not needed.
    recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    operator = _Backward.apply if recorded else _raw_backward
    found = operator(*arguments, needs, ctx.backend)
    return [gradient if need else None for gradient, need in zip(found, needs, strict=True)]


class _Backward(torch.autograd.Function):
    """The backward operator as a function of its own, to say that it has no derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _raw_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "gated_lora has no second derivative; compute it with ilora_kernels.reference instead."
        )


def _raw_backward(*inputs: Any) -> tuple[Tensor, ...]:
    *head, needs, backend = inputs
    if _nobody_watches(*head[:6]):
        return _backward_impl(*inputs)
    return torch.ops.ilora.gated_lora_backward(*head, list(needs), backend)


@torch.library.impl(_LIBRARY, "gated_lora", "CompositeExplicitAutograd")
def _forward_impl(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *rest, backend = arguments
    with _no_autocast(x.device.type), _on_device_of(x):
        return select(backend, x).forward(x, *rest)


@torch.library.impl(_LIBRARY, "gated_lora_backward", "CompositeExplicitAutograd")
def _backward_impl(grad_y: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *rest, backend = arguments
    with _no_autocast(x.device.type), _on_device_of(x):
        return select(backend, x).backward(grad_y, x, *rest)


_NOTHING = contextlib.nullcontext()


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    # Casting is done, once and differentiably, before the operator: none may happen inside.
    if not torch.is_autocast_enabled(device_type):
        return _NOTHING
    return torch.autocast(device_type, enabled=False, cache_enabled=False)


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    # Kernels are launched on the current GPU, which need not be the one that holds the tensors.
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return _NOTHING
    return torch.cuda.device(x.device)


@torch.library.register_fake("ilora::gated_lora", lib=_LIBRARY)
def _forward_fake(
    x: Tensor,
    weight: Any,
    bias: Any,
    base: Any,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    num_rows = x.shape[0]
    y = x.new_empty((num_rows, lora_B.shape[0]))
    return y, gate.new_empty((num_rows, lora_A.shape[0]))


@torch.library.register_fake("ilora::gated_lora_backward", lib=_LIBRARY)
def _backward_fake(
    grad_y: Tensor, x: Tensor, weight: Any, lora_A: Tensor, lora_B: Tensor, gate: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    needs = rest[-2]
    shaped = zip((x, lora_A, lora_B, gate), needs, strict=True)
    return tuple(t.new_empty(t.shape) if n else x.new_empty((0,)) for t, n in shaped)


def _one_by_one(operator: Any) -> Any:
    """A vmap rule that calls the operator once a sample: right for every backend."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        columns = [
            argument.unbind(dim) if isinstance(dim, int) else [argument] * info.batch_size
            for argument, dim in zip(arguments, in_dims, strict=True)
        ]
        results = [operator(*sample) for sample in zip(*columns, strict=True)]
        stacked = tuple(torch.stack(outputs) for outputs in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


for _operator in ("gated_lora", "gated_lora_backward"):
    torch.library.register_vmap(
        f"ilora::{_operator}", _one_by_one(getattr(torch.ops.ilora, _operator)), lib=_LIBRARY
    )
