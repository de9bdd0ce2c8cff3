"""Which gate, with which options: ``adapter.gate`` of the settings.

    gate: linear                     # by name, with its defaults
    gate: {name: top-k, k: 2}        # with options; one that the gate does not have is refused

What each of them computes is said in :mod:`ilora.gate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


class AnyGate(BaseModel):
    """A name, and the options that this gate has."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str


class Linear(AnyGate):
    """softmax(W z): the paper's."""

    name: Literal["linear"] = "linear"


class MLP(AnyGate):
    """softmax(W₂ gelu(W₁ z + b₁) + b₂)."""

    name: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=1, description="of the layer in the middle")


class TopK(AnyGate):
    """A softmax over the k largest of W z; the other experts get exactly nothing."""

    name: Literal["top-k"] = "top-k"
    k: int = Field(2, ge=1, description="experts that a user gets; at most all of them")


class Noisy(AnyGate):
    """softmax(W z + noise · softplus(W_noise z)), the noise in training only."""

    name: Literal["noisy"] = "noisy"
    k: int | None = Field(None, ge=1, description="of the noisy values only the k largest count")


class Dropout(AnyGate):
    """The linear gate, with experts left out at random in training."""

    name: Literal["dropout"] = "dropout"
    p: float = Field(0.1, ge=0, lt=1, description="probability of leaving an expert out")


class PerLayer(AnyGate):
    """softmax(W_l z): a mixture of its own for every adapted layer l."""

    name: Literal["per-layer"] = "per-layer"


class Uniform(AnyGate):
    """1/K for everybody: nothing to learn."""

    name: Literal["uniform"] = "uniform"


class RandomInit(AnyGate):
    """softmax(W z) with W as it was drawn: the paper's ablation of a gate that learns."""

    name: Literal["random-init"] = "random-init"
    scale: float = Field(
        1.0, gt=0, description="about how far the values before the softmax spread"
    )


class TokenCollapsed(AnyGate):
    """softmax(W t), t the mean token embedding of the history's titles: an ablation of the encoder."""

    name: Literal["token-collapsed"] = "token-collapsed"


class Residual(AnyGate):
    """The small residual network of the paper's released code."""

    name: Literal["residual"] = "residual"
    blocks: int = Field(3, ge=1, description="residual blocks in each of the three stages")


def _from_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _to_name(gate: AnyGate) -> Any:
    """A gate without changed options is written as its name."""
    changed = gate.model_dump(exclude_defaults=True)
    return {"name": gate.name, **changed} if changed else gate.name


GateSettings: TypeAlias = Annotated[
    Annotated[
        Linear
        | MLP
        | TopK
        | Noisy
        | Dropout
        | PerLayer
        | Uniform
        | RandomInit
        | TokenCollapsed
        | Residual,
        Field(discriminator="name"),
    ],
    BeforeValidator(_from_name),
    PlainSerializer(_to_name),
]
BY_NAME: dict[str, Callable[[], AnyGate]] = {
    kind.model_fields["name"].default: kind
    for kind in (
        Linear,
        MLP,
        TopK,
        Noisy,
        Dropout,
        PerLayer,
        Uniform,
        RandomInit,
        TokenCollapsed,
        Residual,
    )
}
