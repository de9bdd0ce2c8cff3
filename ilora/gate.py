"""Gates: a user's history becomes the weights of the experts.

    gate = softmax(W_g z)                                       (Kong et al., equation 6)

A gate is a module ``z [B, hidden] -> [B, K]`` (per layer: ``[B, layers, K]``) whose weights sum to 1
over the experts, in float32. A new one is a class, a line in ``GATES`` and its options in
:mod:`ilora.gate_config`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ilora.encoders import SequenceEncoder
from ilora.errors import InputError
from ilora.gate_config import BY_NAME, AnyGate
from ilora.residual_network import ResidualNetwork


class Gate(nn.Module):
    """What the gates share: they read the encoder's representation of the history."""

    def mixture(self, encoder: SequenceEncoder, histories: Tensor) -> Tensor:
        """``[B, window]`` left-padded histories -> ``[B, K]``; the encoder gets no gradient."""
        with torch.no_grad():
            z = encoder.history_representation(histories)
        return self(z)


class LinearGate(Gate):
    """The paper's gate: one matrix without bias, and a softmax, in float32."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        return torch.softmax(self.projection(z).float(), dim=-1)


class MLPGate(Gate):
    """softmax(W₂ gelu(W₁ z + b₁) + b₂)."""

    def __init__(self, hidden_size: int, num_experts: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, width), nn.GELU(), nn.Linear(width, num_experts)
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.softmax(self.layers(z).float(), dim=-1)


class TopKGate(LinearGate):
    """A softmax over the k largest of W z; all other experts get exactly 0.

    The gradient reaches the rows of W that were chosen.
    """

    def __init__(self, hidden_size: int, num_experts: int, k: int = 2) -> None:
        super().__init__(hidden_size, num_experts)
        self.k = k

    def forward(self, z: Tensor) -> Tensor:
        return softmax_of_largest(self.projection(z).float(), self.k)


class NoisyGate(LinearGate):
    """softmax(W z + ε · softplus(W_noise z)), ε ~ N(0, 1) in training and 0 after it.

    From Shazeer et al., "Outrageously large neural networks", ICLR 2017, equations 3 to 5. As there
    the noise begins with W_noise = 0; ``k`` keeps the k largest of the noisy values, None all.
    """

    def __init__(self, hidden_size: int, num_experts: int, k: int | None = None) -> None:
        super().__init__(hidden_size, num_experts)
        self.k = k
        self.noise = nn.Linear(hidden_size, num_experts, bias=False)
        nn.init.zeros_(self.noise.weight)

    def forward(self, z: Tensor) -> Tensor:
        values = self.projection(z).float()
        if self.training:
            values = values + torch.randn_like(values) * F.softplus(self.noise(z).float())
        return softmax_of_largest(values, self.k or values.shape[-1])


class DropoutGate(LinearGate):
    """The linear gate; in training every expert is left out with probability p, for each user anew.

    The others share what it had, so that the weights sum to 1 at all times. Who would lose all
    experts keeps them all.
    """

    def __init__(self, hidden_size: int, num_experts: int, p: float = 0.1) -> None:
        super().__init__(hidden_size, num_experts)
        self.p = p

    def forward(self, z: Tensor) -> Tensor:
        values = self.projection(z).float()
        if self.training:
            kept = torch.rand_like(values) >= self.p
            kept = kept | ~kept.any(-1, keepdim=True)
            values = values.masked_fill(~kept, -torch.inf)
        return torch.softmax(values, dim=-1)


class PerLayerGate(Gate):
    """softmax(W_l z) for every adapted layer l: ``[B, hidden] -> [B, layers, K]``."""

    def __init__(self, hidden_size: int, num_experts: int, num_layers: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.projection = nn.Linear(hidden_size, num_layers * num_experts, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        values = self.projection(z).float().unflatten(-1, (-1, self.num_experts))
        return torch.softmax(values, dim=-1)


class UniformGate(Gate):
    """1/K for everybody. With scaling ``expert`` this is plain LoRA of the same total rank."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, z: Tensor) -> Tensor:
        even = 1 / self.num_experts
        return torch.full((len(z), self.num_experts), even, dtype=torch.float32, device=z.device)


class RandomInitGate(Gate):
    """softmax(W z) with a W that stays as it was drawn: users differ, but nobody learned how.

    W is N(0, scale²/hidden), so that for a z whose entries are of size 1, as SASRec's are, the
    values before the softmax are of size ``scale``. It is saved with the model.
    """

    weight: Tensor

    def __init__(self, hidden_size: int, num_experts: int, scale: float = 1.0) -> None:
        super().__init__()
        weight = torch.randn(num_experts, hidden_size) * scale * hidden_size**-0.5
        self.register_buffer("weight", weight)

    def forward(self, z: Tensor) -> Tensor:
        return torch.softmax(F.linear(z, self.weight).float(), dim=-1)


class TokenCollapsedGate(LinearGate):
    """softmax(W t), t the mean of the frozen token embeddings of all titles of the history.

    What the user did collapses into a bag of words: the encoder and the order of the items have no
    say. t is brought to mean 0 and variance 1 first, the scale that SASRec's representation has; the
    empty history gets the even mixture. Titles and not prompts are read, so that neither the
    candidates nor the answer can reach the gate.
    """

    title_sums: Tensor  # [num_items + 1, width]; the last row is the padding's and stays 0
    title_lengths: Tensor  # [num_items + 1], in tokens

    def __init__(self, hidden_size: int, num_experts: int, num_items: int, width: int) -> None:
        super().__init__(width, num_experts)
        self.register_buffer("title_sums", torch.zeros(num_items + 1, width))
        self.register_buffer("title_lengths", torch.zeros(num_items + 1))

    @torch.no_grad()
    def read_titles(self, titles: Sequence[Sequence[int]], table: nn.Module) -> None:
        """Take in the catalogue: the token ids of every item's title, and the embedding layer."""
        device = self.title_sums.device
        for item, tokens in enumerate(titles):
            embeds = table(torch.tensor(tokens, dtype=torch.int64, device=device))  # [tokens, d]
            self.title_sums[item] = embeds.float().sum(0)
            self.title_lengths[item] = len(tokens)

    def mixture(self, encoder: SequenceEncoder, histories: Tensor) -> Tensor:
        lengths = self.title_lengths[histories].sum(-1, keepdim=True).clamp(min=1)  # [B, 1]
        return self(self.title_sums[histories].sum(-2) / lengths)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(F.layer_norm(z, z.shape[-1:]))


class ResidualGate(Gate):
    """softmax(W network(z) + b): the gate of the paper's released code.

    The network is a small residual one over z as a signal of one channel; see
    :class:`ilora.residual_network.ResidualNetwork`. Its batch statistics are saved with the model.
    """

    def __init__(self, hidden_size: int, num_experts: int, blocks: int = 3) -> None:
        super().__init__()
        self.network = ResidualNetwork(blocks)
        self.projection = nn.Linear(self.network.out_channels, num_experts)

    def forward(self, z: Tensor) -> Tensor:
        return torch.softmax(self.projection(self.network(z)).float(), dim=-1)


class OneExpert(Gate):
    """Plain LoRA: the one expert gets everything, and there is nothing to learn."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.ones(z.shape[0], 1, dtype=torch.float32, device=z.device)


GATES: dict[str, type[Gate]] = {
    "linear": LinearGate,
    "mlp": MLPGate,
    "top-k": TopKGate,
    "noisy": NoisyGate,
    "dropout": DropoutGate,
    "per-layer": PerLayerGate,
    "uniform": UniformGate,
    "random-init": RandomInitGate,
    "token-collapsed": TokenCollapsedGate,
    "residual": ResidualGate,
}


def build_gate(
    gate: str | AnyGate,
    hidden_size: int,
    num_experts: int,
    *,
    num_layers: int = 1,
    num_items: int = 0,
    title_width: int = 0,
) -> Gate:
    """Return a fresh gate; with one expert there is only :class:`OneExpert`.

    Args:
        gate: its settings (:mod:`ilora.gate_config`), or its name for the default ones.
        hidden_size: width of the history representation.
        num_experts: K.
        num_layers: adapted layers of the language model; only ``per-layer`` asks.
        num_items, title_width: catalogue and width of token embeddings; only ``token-collapsed`` asks.

    Raises:
        InputError: no gate has this name.
    """
    if isinstance(gate, str):
        if gate not in BY_NAME:
            raise InputError(f"gate is {gate!r}; it must be one of {', '.join(GATES)}")
        gate = BY_NAME[gate]()
    if num_experts == 1:
        return OneExpert()
    options: dict[str, Any] = gate.model_dump(exclude={"name"})
    if gate.name == "per-layer":
        options["num_layers"] = num_layers
    if gate.name == "token-collapsed":
        options |= {"num_items": num_items, "width": title_width}
    return GATES[gate.name](hidden_size, num_experts, **options)


def stored_gate(
    gate: AnyGate, hidden_size: int, num_experts: int, state: Mapping[str, Tensor]
) -> Gate:
    """A gate that the tensors of a saved one fit, to be filled with them; no language model is needed.

    Args:
        state: the saved tensors; sizes that the settings do not tell are taken from them.
    """
    sizes = {}
    if "title_sums" in state and state["title_sums"].ndim == 2:
        rows, width = state["title_sums"].shape
        sizes = {"num_items": max(0, rows - 1), "title_width": width}
    elif "projection.weight" in state:
        sizes = {"num_layers": max(1, state["projection.weight"].shape[0] // num_experts)}
    return build_gate(gate, hidden_size, num_experts, **sizes)


def softmax_of_largest(values: Tensor, k: int) -> Tensor:
    """A softmax over the k largest of the last dimension, exactly 0 elsewhere."""
    largest, places = values.topk(min(k, values.shape[-1]), dim=-1)
    return torch.zeros_like(values).scatter(-1, places, torch.softmax(largest, dim=-1))
