"""The peers: the same formula in the ways that people write it.

    y = x Wᵀ + s · Σ_k gate[b, k] · (x̂ A_kᵀ) B_kᵀ          x̂ = dropout(x)

``x`` is ``[B, S, d_in]``, ``gate`` is ``[B, K]``; the other shapes are ``gated_lora_linear``'s.
"""

from __future__ import annotations

import peft
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ilora_kernels.functional import gated_lora_onto


def reference_einsum(
    x: Tensor,
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    """As the layer released with the paper does it: every expert's whole output, then their sum.

    It materialises ``[B, S, K, d_out]``. Written from that description.
    """
    experts = gate.shape[-1]
    A = lora_A.unflatten(0, (experts, -1))  # [K, r, d_in]
    B = lora_B.unflatten(1, (experts, -1))  # [d_out, K, r]
    hidden = torch.einsum("bsd,krd->bskr", F.dropout(x, dropout_p), A)
    outputs = torch.einsum("bskr,nkr->bskn", hidden, B)
    update = torch.einsum("bskn,bk->bsn", outputs, gate.to(x.dtype))
    return F.linear(x, weight) + scaling * update


def three_gemm(
    x: Tensor,
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    """Experts concatenated: the frozen product, and two thin ones with the gates between them."""
    rank_per_expert = lora_A.shape[0] // gate.shape[-1]
    row_gate = (scaling * gate).to(x.dtype).repeat_interleave(rank_per_expert, -1)  # [B, R]
    hidden = F.linear(F.dropout(x, dropout_p), lora_A) * row_gate[:, None, :]  # [B, S, R]
    return F.linear(x, weight) + F.linear(hidden, lora_B)


def linear_and_delta(
    x: Tensor,
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    gate: Tensor,
    *,
    scaling: float,
    dropout_p: float,
) -> Tensor:
    """The vendor's product, and this project's update onto it."""
    base = F.linear(x, weight)
    return gated_lora_onto(base, x, lora_A, lora_B, gate, scaling=scaling, dropout_p=dropout_p)


def peft_layer(
    weight: Tensor, lora_A: Tensor, lora_B: Tensor, *, scaling: float, dropout_p: float
) -> nn.Module:
    """PEFT's own LoRA layer on these very tensors: one expert of the whole rank, no gates."""
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    base.weight = nn.Parameter(weight, requires_grad=False)
    model = nn.ModuleDict({"linear": base})
    inject_peft(model, ["linear"], lora_A.shape[0], scaling=scaling, dropout_p=dropout_p)
    layer = model["linear"]
    share_peft_weights(layer, lora_A, lora_B)
    return layer


def inject_peft(
    model: nn.Module, targets: list[str], rank: int, *, scaling: float, dropout_p: float
) -> None:
    """Let PEFT wrap the layers whose names end so, and put the model in training mode."""
    config = peft.LoraConfig(
        r=rank, lora_alpha=scaling * rank, lora_dropout=dropout_p, target_modules=targets
    )
    peft.inject_adapter_in_model(config, model)
    model.train()


def share_peft_weights(layer: nn.Module, lora_A: Tensor, lora_B: Tensor) -> None:
    """Make a PEFT layer compute with these leaves."""
    for name, leaf in (("lora_A", lora_A), ("lora_B", lora_B)):
        linear = getattr(layer, name)["default"]
        assert linear.weight.shape == leaf.shape
        del linear.weight  # a leaf that is no Parameter cannot take a Parameter's place
        linear.weight = leaf
