"""Every refusal names the argument, what it got and what it wanted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ilora_kernels import gated_lora_linear

from .problems import random_problem


def arguments(**changes: Any) -> dict[str, Any]:
    problem = random_problem("instance").to(torch.float32)
    return {k: v for k, v in vars(problem).items() if k != "scaling"} | changes


def packed(offsets: list[int], dtype: torch.dtype = torch.int32) -> dict[str, Any]:
    problem = random_problem("packed").to(torch.float32)  # three sequences of 0, 1 and 2 tokens
    given = {k: v for k, v in vars(problem).items() if k != "scaling"}
    return given | {"cu_seqlens": torch.tensor(offsets, dtype=dtype)}


REFUSALS = {
    "x of one dimension": (arguments(x=torch.randn(19)), ValueError, "x has shape [19]"),
    "x of integers": (
        arguments(x=torch.ones(3, 5, 19).int()),
        TypeError,
        "x has dtype torch.int32",
    ),
    "x that is no tensor": (arguments(x=[1.0]), TypeError, "x is a list"),
    "no x": (arguments(x=None), TypeError, "x is a NoneType"),
    "no weight": (arguments(weight=None), TypeError, "weight is None"),
    "no lora_A": (arguments(lora_A=None), TypeError, "lora_A is a NoneType"),
    "no gate": (arguments(gate=None), TypeError, "gate is a NoneType"),
    "lora_A of another width": (
        arguments(lora_A=torch.randn(6, 18)),
        ValueError,
        "lora_A has shape",
    ),
    "lora_A of rank zero": (arguments(lora_A=torch.randn(0, 19)), ValueError, "R >= 1"),
    "lora_B of another rank": (
        arguments(lora_B=torch.randn(13, 4)),
        ValueError,
        "lora_B has shape",
    ),
    "experts that do not divide the rank": (
        arguments(gate=torch.rand(3, 4)),
        ValueError,
        "gate has shape [3, 4]",
    ),
    "a gate of another batch": (arguments(gate=torch.rand(2, 3)), ValueError, "gate has 2 rows"),
    "a gate of other tokens": (arguments(gate=torch.rand(3, 4, 3)), ValueError, "[3, 4, 3]"),
    "an integer gate": (arguments(gate=torch.ones(3, 3).int()), TypeError, "gate has dtype"),
    "a weight of another shape": (arguments(weight=torch.randn(13, 18)), ValueError, "weight has"),
    "a bias of another length": (arguments(bias=torch.randn(12)), ValueError, "bias has shape"),
    "a weight of another dtype": (
        arguments(weight=torch.randn(13, 19).bfloat16()),
        TypeError,
        "weight has dtype torch.bfloat16",
    ),
    "a weight elsewhere": (
        arguments(weight=torch.randn(13, 19, device="meta")),
        ValueError,
        "weight is on meta",
    ),
    "a trainable weight": (
        arguments(weight=torch.randn(13, 19, requires_grad=True)),
        ValueError,
        "weight requires a gradient",
    ),
    "a trainable bias": (
        arguments(bias=torch.randn(13, requires_grad=True)),
        ValueError,
        "bias requires a gradient",
    ),
    "dropout of one": (arguments(dropout_p=1.0), ValueError, "dropout_p is 1.0"),
    "negative dropout": (arguments(dropout_p=-0.1), ValueError, "dropout_p is -0.1"),
    "dropout in words": (arguments(dropout_p="a tenth"), TypeError, "dropout_p is a str"),
    "no scaling": (arguments(scaling=None), TypeError, "scaling is a NoneType"),
    "offsets that end early for a shared gate": (
        packed([0, 0, 1, 2]) | {"gate": torch.rand(3)},
        ValueError,
        "from 0 to 2",
    ),
    "no offset": (packed([]) | {"gate": torch.rand(3)}, ValueError, "cu_seqlens has shape [0]"),
    "offsets that end early": (packed([0, 0, 1, 2]), ValueError, "from 0 to 2"),
    "offsets that start late": (packed([1, 1, 1, 3]), ValueError, "from 1 to 3"),
    "offsets that decrease": (packed([0, 2, 1, 3]), ValueError, "never decrease"),
    "too few offsets": (packed([0, 3]), ValueError, "cu_seqlens has shape [2]"),
    "offsets of another dtype": (packed([0, 0, 1, 3], torch.int16), TypeError, "cu_seqlens is"),
    "a packed batch of three dimensions": (
        arguments(cu_seqlens=torch.tensor([0, 5, 10, 15], dtype=torch.int32)),
        ValueError,
        "packed batch of shape [T, d_in]",
    ),
}


@pytest.mark.parametrize(("given", "error", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_it_is_refused_with_a_sentence(
    given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        gated_lora_linear(**given)
    assert words in str(caught.value)


def test_offsets_that_were_right_and_then_changed_in_place_are_checked_again() -> None:
    given = packed([0, 0, 1, 3])
    gated_lora_linear(**given)
    given["cu_seqlens"][-1] = 2
    with pytest.raises(ValueError, match="from 0 to 2"):
        gated_lora_linear(**given)


def test_a_trainable_weight_is_no_error_when_no_gradient_is_recorded() -> None:
    given = arguments(weight=torch.randn(13, 19, requires_grad=True))
    with torch.no_grad():
        assert gated_lora_linear(**given).shape == (3, 5, 13)
