"""The public functions: what they compute, which shapes they take, and every refusal.

Checks run before anything is launched. Then all gate forms become one (see
:mod:`ilora_kernels.ops`) and the operator is called.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ilora_kernels import ops
from ilora_kernels.dropout import draw_seed

_FLOATING = (torch.bfloat16, torch.float32, torch.float16, torch.float64)


def gated_lora(
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *,
    scaling: float = 1.0,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """The gated sum over low-rank experts, without a base layer.

    .. math:: y_t = s \\sum_k g_{b(t),k} \\, (\\mathrm{dropout}(x_t) A_k^T) B_k^T

    The experts are concatenated, so the sum is one low-rank product with a diagonal in the middle,
    ``y = ((x Aᵀ) ⊙ G) Bᵀ``, and their number costs nothing.

    Args:
        x: ``[B, S, d_in]`` or ``[T, d_in]``, float64, float32, float16 or bfloat16, any strides.
        lora_A: ``[R, d_in]`` with R = K · r; expert k owns the rows ``k·r … (k+1)·r``.
        lora_B: ``[d_out, R]``; expert k owns the columns ``k·r … (k+1)·r``.
        gate: ``[K]`` one mixture for all; ``[B, K]`` one an instance; ``[B, S, K]`` or ``[T, K]``
            one a token. Any floating dtype; it enters in float32 (float64 for float64 ``x``).
        scaling: s.
        dropout_p: probability of dropping an element of ``x``, in [0, 1); the mask is drawn from
            torch's generator and never stored. Pass 0 outside training.
        cu_seqlens: int32 or int64 ``[B + 1]``, starting at 0, ending at T: ``x [T, d_in]`` is
            then a packed batch of B sequences and ``gate`` is ``[B, K]``. Values are checked once a
            tensor, which synchronises a GPU; not during CUDA-graph capture or compilation.

    Returns:
        ``x``'s shape with d_out last, ``x``'s dtype (under autocast, autocast's). Differentiable in
        x, lora_A, lora_B and gate, once.

    Raises:
        ValueError: a shape, device or value that does not fit, naming the argument.
        TypeError: a dtype that does not fit, naming the argument.

    Source: Kong et al., NeurIPS 2024, https://arxiv.org/abs/2408.10159.
    """
    return _apply(x, None, None, None, lora_A, lora_B, gate, scaling, dropout_p, cu_seqlens)


def gated_lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *,
    scaling: float = 1.0,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """A frozen linear layer and :func:`gated_lora` in one: ``y = x Wᵀ + bias + gated_lora(x)``.

    Args:
        weight: ``[d_out, d_in]``, frozen, of ``x``'s dtype.
        bias: ``[d_out]`` or None, frozen, of ``x``'s dtype.

    The other arguments, the result and the errors are :func:`gated_lora`'s. The dropout acts on
    the low-rank path alone. The weight and the bias get no gradient; asking for one
    (``requires_grad`` while gradients are recorded) is a ``ValueError``.
    """
    if weight is None:
        raise TypeError("weight is None; give the frozen weight, or call gated_lora without one.")
    return _apply(x, weight, bias, None, lora_A, lora_B, gate, scaling, dropout_p, cu_seqlens)


def gated_lora_onto(
    base: Tensor,
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *,
    scaling: float = 1.0,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """``base + gated_lora(x)`` for a base output computed elsewhere, by a quantised layer say.

    Args:
        base: ``x``'s shape with d_out last; it gets its gradient too.

    The other arguments, the result and the errors are :func:`gated_lora`'s.
    """
    return _apply(x, None, None, base, lora_A, lora_B, gate, scaling, dropout_p, cu_seqlens)


def _apply(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    scaling: float,
    dropout_p: float,
    cu_seqlens: Tensor | None,
) -> Tensor:
    _check_tensors(x, weight, bias, base, lora_A, lora_B, gate, cu_seqlens)
    _check_shapes(x, weight, bias, base, lora_A, lora_B, gate)
    _check_frozen(weight, bias)
    _check_numbers(scaling, dropout_p)

    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, lora_A, lora_B = x.to(dtype), lora_A.to(dtype), lora_B.to(dtype)
        weight, bias, base = (None if t is None else t.to(dtype) for t in (weight, bias, base))
    _check_one_dtype(x, weight, bias, base, lora_A, lora_B)

    gate_rows, rows_per_gate, offsets = _one_gate_form(x, gate, cu_seqlens)
    gate_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return ops.gated_lora(
        x,
        weight,
        bias,
        base,
        lora_A,
        lora_B,
        gate_rows if gate_rows.dtype == gate_dtype else gate_rows.to(gate_dtype),
        offsets,
        rows_per_gate,
        float(scaling),
        float(dropout_p),
        draw_seed(x.device) if dropout_p > 0.0 else None,
    )


def _one_gate_form(
    x: Tensor, gate: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, int, Tensor | None]:
    """Bring the gate to ``[G, K]``; say how many rows of x each governs, or where they start."""
    if cu_seqlens is not None:
        _check_packed(x, gate, cu_seqlens)
    if gate.ndim == 1:
        return gate[None], x.shape[:-1].numel(), None
    if cu_seqlens is not None:
        return gate, 0, cu_seqlens
    if gate.ndim == 2 and x.ndim == 3:
        if gate.shape[0] != x.shape[0]:
            raise ValueError(
                f"gate has {gate.shape[0]} rows, but x of shape {_shape(x)} holds {x.shape[0]} "
                "instances; give one row an instance."
            )
        return gate, x.shape[1], None
    if gate.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"gate of shape {_shape(gate)} does not fit x of shape {_shape(x)}; with K experts it is "
            "[K], [B, K] or [B, S, K] for x [B, S, d_in], and [K], [T, K], or [B, K] with "
            "cu_seqlens, for x [T, d_in]."
        )
    return gate.reshape(-1, gate.shape[-1]), 1, None


def _check_tensors(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    cu_seqlens: Tensor | None,
) -> None:
    """Refuse what is no tensor of a floating dtype (``cu_seqlens``: of integers) on x's device."""
    tensors = [x, lora_A, lora_B, gate]
    tensors += [tensor for tensor in (weight, bias, base) if tensor is not None]
    if cu_seqlens is None and isinstance(x, Tensor):
        device = x.device
        # Every call comes by here: nothing is put together for a message before it is needed.
        for tensor in tensors:
            if (
                not isinstance(tensor, Tensor)
                or tensor.dtype not in _FLOATING
                or tensor.device != device
            ):
                break
        else:
            return
    optional = {"weight": weight, "bias": bias, "base": base}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    given |= {"x": x, "lora_A": lora_A, "lora_B": lora_B, "gate": gate}
    _check_dtypes(given)
    _check_devices(given, cu_seqlens)


def _check_dtypes(given: dict[str, Tensor]) -> None:
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; it must be a torch.Tensor.")
        if tensor.dtype not in _FLOATING:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}; it must be float64, float32, float16 or bfloat16."
            )


def _check_one_dtype(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
) -> None:
    dtype = x.dtype
    names = ("weight", "bias", "base", "lora_A", "lora_B")
    for name, tensor in zip(names, (weight, bias, base, lora_A, lora_B), strict=True):
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}, but x has {x.dtype}; cast one of them, or run "
                "under torch.autocast."
            )


def _check_devices(given: dict[str, Tensor], cu_seqlens: Tensor | None) -> None:
    if cu_seqlens is not None:
        if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
            got = getattr(cu_seqlens, "dtype", type(cu_seqlens).__name__)
            raise TypeError(f"cu_seqlens is {got}; it must be an int32 or int64 tensor.")
        given = given | {"cu_seqlens": cu_seqlens}
    device = given["x"].device
    for name, tensor in given.items():
        if tensor.device != device:
            raise ValueError(
                f"{name} is on {tensor.device}, but x is on {device}; move one of them."
            )


def _check_shapes(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
) -> None:
    dims, a, b, g = x.ndim, lora_A.shape, lora_B.shape, gate.shape
    if dims not in (2, 3):
        raise ValueError(f"x has shape {_shape(x)}; it must be [B, S, d_in] or [T, d_in].")
    d_in = x.shape[-1]
    if len(a) != 2 or a[1] != d_in or a[0] == 0:
        raise ValueError(
            f"lora_A has shape {_shape(lora_A)}; it must be [R, {d_in}] with R >= 1 for x of "
            f"shape {_shape(x)}."
        )
    if len(b) != 2 or b[1] != a[0]:
        raise ValueError(
            f"lora_B has shape {_shape(lora_B)}; it must be [d_out, {a[0]}] for lora_A of "
            f"shape {_shape(lora_A)}."
        )
    if not 1 <= len(g) <= dims or g[-1] == 0 or a[0] % g[-1]:
        raise ValueError(
            f"gate has shape {_shape(gate)}; its last dimension is the number of experts, which must "
            f"divide lora_A's {a[0]} rows, and it has at most x's {dims} dimensions."
        )
    d_out = b[0]
    if weight is not None and weight.shape != (d_out, d_in):
        _refuse_shape("weight", weight, (d_out, d_in), x, lora_B)
    if bias is not None and bias.shape != (d_out,):
        _refuse_shape("bias", bias, (d_out,), x, lora_B)
    if base is not None and base.shape != (*x.shape[:-1], d_out):
        _refuse_shape("base", base, (*x.shape[:-1], d_out), x, lora_B)


def _refuse_shape(
    name: str, tensor: Tensor, shape: tuple[int, ...], x: Tensor, lora_B: Tensor
) -> None:
    raise ValueError(
        f"{name} has shape {_shape(tensor)}; it must be {list(shape)} for x of shape "
        f"{_shape(x)} and lora_B of shape {_shape(lora_B)}."
    )


def _check_frozen(weight: Tensor | None, bias: Tensor | None) -> None:
    if (weight is None and bias is None) or not torch.is_grad_enabled():
        return
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, but gated_lora_linear keeps it frozen and computes "
                f"none; call {name}.requires_grad_(False), or add gated_lora(x, ...) to F.linear."
            )


def _check_numbers(scaling: float, dropout_p: float) -> None:
    if not (type(scaling) is float and type(dropout_p) is float):
        for name, value in (("scaling", scaling), ("dropout_p", dropout_p)):
            # The first test is the one that torch.compile can trace; the second lets NumPy's in.
            if not (isinstance(value, int | float) or hasattr(value, "__float__")):
                raise TypeError(f"{name} is a {type(value).__name__}; it must be a number.")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p is {dropout_p}; it must be at least 0 and less than 1.")


def _check_packed(x: Tensor, gate: Tensor, cu_seqlens: Tensor) -> None:
    if x.ndim != 2:
        raise ValueError(
            f"x has shape {_shape(x)}; with cu_seqlens it is a packed batch of shape [T, d_in]."
        )
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(
            f"cu_seqlens has shape {_shape(cu_seqlens)}; it must be [B + 1], one more than there are "
            "sequences."
        )
    if gate.ndim == 2 and cu_seqlens.shape[0] != gate.shape[0] + 1:
        raise ValueError(
            f"cu_seqlens has shape {_shape(cu_seqlens)}; for gate of shape {_shape(gate)} it must be "
            f"[{gate.shape[0] + 1}], one more than there are sequences."
        )
    if torch.compiler.is_compiling() or cu_seqlens.is_meta:
        return
    if cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    _check_offsets(cu_seqlens, x.shape[0])


# Reading a GPU tensor waits for the GPU, and a model hands the same offsets to each of its layers.
_checked_offsets = WeakTensorKeyDictionary()


def _check_offsets(cu_seqlens: Tensor, num_tokens: int) -> None:
    state = (cu_seqlens._version, num_tokens)
    if _checked_offsets.get(cu_seqlens) == state:
        return
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0 or offsets[-1] != num_tokens:
        raise ValueError(
            f"cu_seqlens goes from {offsets[0]} to {offsets[-1]}; it must go from 0 to {num_tokens}, "
            "the number of rows of x."
        )
    if any(end < start for start, end in itertools.pairwise(offsets)):
        raise ValueError(f"cu_seqlens is {offsets}; it must never decrease.")
    _checked_offsets[cu_seqlens] = state


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
