"""The gate: a user's history representation becomes the weights of the experts.

    gate = softmax(W_g z)                                       (Kong et al., equation 6)

A gate is a module ``z [B, hidden] -> [B, K]``; a new one is a class, a line in ``GATES`` and
its name in :class:`ilora.config.AdapterSettings`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearGate(nn.Module):
    """The paper's gate: one matrix without bias, and a softmax, in float32."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        return torch.softmax(self.projection(z).float(), dim=-1)


class OneExpert(nn.Module):
    """Plain LoRA: the one expert gets everything, and there is nothing to learn."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.ones(z.shape[0], 1, dtype=torch.float32, device=z.device)


GATES = {"linear": LinearGate}


def build_gate(name: str, hidden_size: int, num_experts: int) -> nn.Module:
    """Return a fresh gate by name; with one expert there is only :class:`OneExpert`."""
    return OneExpert() if num_experts == 1 else GATES[name](hidden_size, num_experts)
