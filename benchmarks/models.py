"""A decoder layer and a whole Llama: frozen, and adapted by each contender, on the same tensors.

The base weights are random and in memory once; every contender is a shallow copy whose seven
projections a layer are wrapped by its own layers. The adapters, too, are shared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.baselines import inject_peft, reference_einsum, share_peft_weights
from benchmarks.cases import ANSWER_TOKENS, LAYER, LINEAR, MODEL, PEFT, REFERENCE, Case
from benchmarks.contest import Contest
from benchmarks.problems import SCALING, necessary_flop
from benchmarks.timing import Call
from ilora_kernels import FusedILoRALinear, InstanceGates

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODEL_ROUNDS, LAYER_ROUNDS = 10, 30  # a step of the model takes a large part of a second


@dataclass(frozen=True)
class Adapters:
    """The trainable leaves that all contenders share."""

    by_layer: Mapping[str, tuple[nn.Parameter, nn.Parameter]]  # lora_A, lora_B
    gate: Tensor  # [B, K]

    def leaves(self, *, gated: bool) -> list[Tensor]:
        """All that gets a gradient; PEFT's layer knows no gates."""
        low_rank = [leaf for pair in self.by_layer.values() for leaf in pair]
        return [*low_rank, self.gate] if gated else list(low_rank)


def llama_config(case: Case) -> LlamaConfig:
    """Llama 2 7B where the hidden size is 4096; else its proportions, small."""
    hidden = case.d_in
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=11008 if hidden == 4096 else 3 * hidden,
        num_hidden_layers=max(case.layers, 1),
        num_attention_heads=32 if hidden == 4096 else 4,
        vocab_size=32000 if hidden == 4096 else 512,
        max_position_embeddings=4096,
    )


def model_contest(cases: Sequence[Case], device: torch.device) -> Contest:
    """The contest of cases of one decoder layer, or of one whole model, with one baseline."""
    case = cases[0]
    torch.manual_seed(0)
    with torch.device(device):  # built and initialised in place: 7 billion normal numbers
        base = AutoModelForCausalLM.from_config(
            llama_config(case), dtype=case.torch_dtype, attn_implementation="sdpa"
        )
    base.requires_grad_(False).train()  # without training mode nothing is recomputed or dropped
    prepare = _layer_step if case.op == LAYER else _model_step
    module = base.model.layers[0] if case.op == LAYER else base
    inputs = _Inputs(case, base, device)
    adapters = new_adapters(module, case, device)
    return Contest(
        frozen=prepare(module, inputs, [], nullcontext, None),
        makers={c: partial(_adapted_step, prepare, module, inputs, adapters, c) for c in cases},
        hide_launches=case.op == LAYER,
        most_rounds=MODEL_ROUNDS if case.op == MODEL else LAYER_ROUNDS,
    )


def model_flop(case: Case) -> float:
    """The formula's operations in the seven projections of every layer; no attention, no head."""
    config = llama_config(case)
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = [(hidden, hidden)] * 4 + [(inner, hidden)] * 2 + [(hidden, inner)]
    flop = sum(necessary_flop(replace(case, op=LINEAR, d_out=n, d_in=d)) for n, d in shapes)
    return max(case.layers, 1) * flop


class ReferenceLinear(nn.Module):
    """The reference's formula where :class:`ilora_kernels.FusedILoRALinear` stands otherwise."""

    def __init__(
        self,
        base_layer: nn.Linear,
        lora_A: nn.Parameter,
        lora_B: nn.Parameter,
        gates: InstanceGates,
        dropout: float,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A, self.lora_B = lora_A, lora_B
        self.gates = gates
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, S, d_in]``, with the gates that are set."""
        rows, gate, _ = self.gates.for_input(x)
        weight = self.base_layer.weight
        options = {"scaling": SCALING, "dropout_p": self.dropout}
        return reference_einsum(rows, weight, self.lora_A, self.lora_B, gate, **options)


class _Inputs:
    """What all contenders are fed."""

    def __init__(self, case: Case, base: Any, device: torch.device) -> None:
        rows = (case.instances, case.tokens // case.instances)
        generator = torch.Generator(device).manual_seed(1)
        random = partial(torch.randn, *rows, case.d_in, generator=generator, device=device)
        self.x = random(dtype=case.torch_dtype).requires_grad_()  # [B, S, hidden]
        self.grad_y = random(dtype=case.torch_dtype)
        answers = (rows[0], min(ANSWER_TOKENS, rows[1]))
        self.labels = torch.randint(
            base.config.vocab_size, answers, generator=generator, device=device
        )
        positions = torch.arange(rows[1], device=device)[None]
        self.rotations = base.model.rotary_emb(self.x.detach(), positions)
        self.checkpointing = case.checkpointing


def new_adapters(module: nn.Module, case: Case, device: torch.device) -> Adapters:
    """Random leaves for every projection in ``module``; never zeros, on which GPUs run faster."""
    generator = torch.Generator(device).manual_seed(2)

    def random(*shape: int, scale: float) -> nn.Parameter:
        value = torch.randn(*shape, generator=generator, device=device, dtype=case.torch_dtype)
        return nn.Parameter(value * scale)

    by_layer = {
        name: (
            random(case.rank, layer.in_features, scale=layer.in_features**-0.5),
            random(layer.out_features, case.rank, scale=0.02),
        )
        for name, layer in _projections(module)
    }
    logits = torch.randn(case.instances, case.experts, generator=generator, device=device)
    return Adapters(by_layer, logits.softmax(-1).requires_grad_())


Context = Callable[[], AbstractContextManager[Any]]
Prepare = Callable[[Any, _Inputs, list[Tensor], Context, InstanceGates | None], Call]


def adapted_copy(
    module: nn.Module, adapters: Adapters, case: Case
) -> tuple[Any, InstanceGates | None]:
    """A copy around the same frozen tensors, adapted as the case says, and whose gates it takes."""
    adapted = _sharing_copy(module)
    if case.backend == PEFT:
        targets = list(PROJECTIONS)
        inject_peft(adapted, targets, case.rank, scaling=SCALING, dropout_p=case.dropout)
        for name, pair in adapters.by_layer.items():
            share_peft_weights(adapted.get_submodule(name), *pair)
        return adapted, None

    gates = InstanceGates()
    for name, layer in list(_projections(adapted)):
        lora_A, lora_B = adapters.by_layer[name]
        wrap = _reference_layer if case.backend == REFERENCE else _fused_layer
        adapted.set_submodule(name, wrap(layer, lora_A, lora_B, gates, case))
    adapted.train()
    return adapted, gates


def _reference_layer(
    layer: nn.Linear, lora_A: nn.Parameter, lora_B: nn.Parameter, gates: InstanceGates, case: Case
) -> nn.Module:
    return ReferenceLinear(layer, lora_A, lora_B, gates, case.dropout)


def _fused_layer(
    layer: nn.Linear, lora_A: nn.Parameter, lora_B: nn.Parameter, gates: InstanceGates, case: Case
) -> nn.Module:
    fused = FusedILoRALinear(
        layer,
        case.experts,
        case.rank,
        alpha=SCALING * case.rank,
        dropout=case.dropout,
        gates=gates,
        scaling="total",
    )
    fused.lora_A, fused.lora_B = lora_A, lora_B
    return fused


def _adapted_step(
    prepare: Prepare, module: nn.Module, inputs: _Inputs, adapters: Adapters, case: Case
) -> Call:
    adapted, gates = adapted_copy(module, adapters, case)
    context: Context = nullcontext if gates is None else partial(gates.set, adapters.gate)
    return prepare(adapted, inputs, adapters.leaves(gated=gates is not None), context, gates)


def _layer_step(
    layer: Any,
    inputs: _Inputs,
    leaves: list[Tensor],
    context: Context,
    gates: InstanceGates | None,
) -> Call:
    """Forward and backward of one decoder layer, nothing recomputed."""

    def call() -> object:
        with context():
            y = layer(inputs.x, position_embeddings=inputs.rotations)
        return y, torch.autograd.grad(y, [inputs.x, *leaves], inputs.grad_y)

    return call


def _model_step(
    model: Any,
    inputs: _Inputs,
    leaves: list[Tensor],
    context: Context,
    gates: InstanceGates | None,
) -> Call:
    """Forward, next-token loss on the answers and backward of the whole model; no optimiser."""
    if inputs.checkpointing:
        keywords: dict[str, Any] = {"use_reentrant": False}
        if gates is not None:
            keywords["context_fn"] = gates.checkpoint_contexts
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=keywords)

    kept = inputs.labels.shape[1]
    fed = {"inputs_embeds": inputs.x, "labels": inputs.labels, "logits_to_keep": kept}

    def call() -> object:
        with context():
            loss = model(**fed, use_cache=False).loss
        return loss, torch.autograd.grad(loss, [inputs.x, *leaves])

    return call


def _projections(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in PROJECTIONS:
            yield name, layer


def _sharing_copy(module: nn.Module) -> Any:
    """A copy of the modules around the same tensors."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
