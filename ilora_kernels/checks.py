"""Every refusal of the public functions: one sentence with the argument, what it got and the remedy.

Every call comes by here, so nothing is put together for a message before it is needed.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_FLOATING = (torch.bfloat16, torch.float32, torch.float16, torch.float64)


def check_tensors(
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
    given = {"x": x, "lora_A": lora_A, "lora_B": lora_B, "gate": gate}
    if weight is not None:
        given["weight"] = weight
    if bias is not None:
        given["bias"] = bias
    if base is not None:
        given["base"] = base
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; it must be a torch.Tensor.")
        if tensor.dtype not in _FLOATING:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}; it must be float64, float32, float16 or bfloat16."
            )
    if cu_seqlens is not None:
        if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
            got = getattr(cu_seqlens, "dtype", type(cu_seqlens).__name__)
            raise TypeError(f"cu_seqlens is {got}; it must be an int32 or int64 tensor.")
        given["cu_seqlens"] = cu_seqlens
    device = x.device
    for name, tensor in given.items():
        if tensor.device != device:
            raise ValueError(
                f"{name} is on {tensor.device}, but x is on {device}; move one of them."
            )


def check_one_dtype(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
) -> None:
    """Refuse what is not of ``x``'s dtype; the gate may be of any."""
    dtype = x.dtype
    names = ("weight", "bias", "base", "lora_A", "lora_B")
    for name, tensor in zip(names, (weight, bias, base, lora_A, lora_B), strict=True):
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}, but x has {x.dtype}; cast one of them, or run "
                "under torch.autocast."
            )


def check_shapes(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    base: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
) -> None:
    """Refuse shapes that do not fit together."""
    dims, a, b, g = x.ndim, lora_A.shape, lora_B.shape, gate.shape
    if dims not in (2, 3):
        raise ValueError(f"x has shape {shape_of(x)}; it must be [B, S, d_in] or [T, d_in].")
    d_in = x.shape[-1]
    if len(a) != 2 or a[1] != d_in or a[0] == 0:
        raise ValueError(
            f"lora_A has shape {shape_of(lora_A)}; it must be [R, {d_in}] with R >= 1 for x of "
            f"shape {shape_of(x)}."
        )
    if len(b) != 2 or b[1] != a[0]:
        raise ValueError(
            f"lora_B has shape {shape_of(lora_B)}; it must be [d_out, {a[0]}] for lora_A of "
            f"shape {shape_of(lora_A)}."
        )
    if not 1 <= len(g) <= dims or g[-1] == 0 or a[0] % g[-1]:
        raise ValueError(
            f"gate has shape {shape_of(gate)}; its last dimension is the number of experts, which must "
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
        f"{name} has shape {shape_of(tensor)}; it must be {list(shape)} for x of shape "
        f"{shape_of(x)} and lora_B of shape {shape_of(lora_B)}."
    )


def check_frozen(weight: Tensor | None, bias: Tensor | None) -> None:
    """Refuse a frozen tensor that asks for a gradient while gradients are recorded."""
    if (weight is None and bias is None) or not torch.is_grad_enabled():
        return
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, but gated_lora_linear keeps it frozen and computes "
                f"none; call {name}.requires_grad_(False), or add gated_lora(x, ...) to F.linear."
            )


def check_numbers(scaling: float, dropout_p: float) -> None:
    """Refuse what is no number, and probabilities that are none."""
    if not (type(scaling) is float and type(dropout_p) is float):
        for name, value in (("scaling", scaling), ("dropout_p", dropout_p)):
            # The first test is the one that torch.compile can trace; the second lets NumPy's in.
            if not (isinstance(value, int | float) or hasattr(value, "__float__")):
                raise TypeError(f"{name} is a {type(value).__name__}; it must be a number.")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p is {dropout_p}; it must be at least 0 and less than 1.")


def check_packed(x: Tensor, gate: Tensor, cu_seqlens: Tensor) -> None:
    """Refuse a packed batch whose offsets do not fit; their values are read once a tensor."""
    if x.ndim != 2:
        raise ValueError(
            f"x has shape {shape_of(x)}; with cu_seqlens it is a packed batch of shape [T, d_in]."
        )
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(
            f"cu_seqlens has shape {shape_of(cu_seqlens)}; it must be [B + 1], one more than there are "
            "sequences."
        )
    if gate.ndim == 2 and cu_seqlens.shape[0] != gate.shape[0] + 1:
        raise ValueError(
            f"cu_seqlens has shape {shape_of(cu_seqlens)}; for gate of shape {shape_of(gate)} it must be "
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


def shape_of(tensor: Tensor) -> list[int]:
    """A shape as messages write it."""
    return list(tensor.shape)
