"""Serving: linear layers one after another, a token a row; and whole answers of a Llama 2 7B.

The yardstick is in the same kind of CUDA graph as what is measured against it: frozen layers, and the
frozen model under this project's own decoding loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.cases import IN_GRAPH, Case
from benchmarks.contest import Contest
from benchmarks.models import Adapters, adapted_copy, llama_config, new_adapters
from benchmarks.problems import Problems
from benchmarks.steps import COPIED_MIB, copy_call, function_of, replayed
from benchmarks.timing import MIB, Call
from ilora.graph_decoding import GraphDecoder, rounded_length

PROMPT_TOKENS, NEW_TOKENS = 32, 64  # of each row
GENERATE_ROUNDS = 3  # an answer of the slowest takes seconds


def layers_contest(cases: Sequence[Case], device: torch.device) -> Contest:
    """The contest of ``decode`` cases with one baseline: as many distinct weights as it has layers."""
    case = cases[0]
    layers = [Problems(case, device, seed=layer) for layer in range(case.layers)]

    def frozen() -> list[Tensor]:
        return [F.linear(layer.x, layer.weight) for layer in layers]

    def make(case: Case) -> Call:
        functions = [function_of(case, layer.of(case)) for layer in layers]
        return _launched(case, lambda: [function() for function in functions])

    copied_bytes = COPIED_MIB[device.type] * MIB
    return Contest(
        frozen=_launched(case, frozen),
        makers={case: partial(make, case) for case in cases},
        copy=copy_call(copied_bytes, device),
        moved_bytes=2 * copied_bytes,
    )


def _launched(case: Case, function: Call) -> Call:
    def call() -> object:
        with torch.no_grad():
            return function()

    return replayed(call) if case.launch == IN_GRAPH else call


def generate_contest(cases: Sequence[Case], device: torch.device) -> Contest:
    """The contest of ``generate`` cases with one baseline: greedy answers to random prompts."""
    case = cases[0]
    torch.manual_seed(0)
    with torch.device(device):
        base: Any = AutoModelForCausalLM.from_config(
            llama_config(case), dtype=case.torch_dtype, attn_implementation="sdpa"
        )
    base.requires_grad_(False).eval()
    base.generation_config = GenerationConfig(pad_token_id=0)  # nothing ends an answer early
    shape = (case.tokens, PROMPT_TOKENS)
    prompts = {
        "inputs_embeds": torch.randn(*shape, case.d_in, dtype=case.torch_dtype, device=device),
        "attention_mask": torch.ones(shape, dtype=torch.int64, device=device),
    }
    adapters = new_adapters(base, case, device)
    return Contest(
        frozen=_in_steps(base, base, prompts, device),
        makers={c: partial(_answering, base, adapters, prompts, c, device) for c in cases},
        hide_launches=False,
        most_rounds=GENERATE_ROUNDS,
    )


def _answering(
    base: Any, adapters: Adapters, prompts: dict[str, Tensor], case: Case, device: torch.device
) -> Call:
    """The answers of an adapted model: by replayed steps, or by transformers' own loop."""
    model, holder = adapted_copy(base, adapters, case)
    model.eval()
    gate = adapters.gate.detach()
    if case.launch == IN_GRAPH:
        if holder is None:
            return _in_steps(model, base, prompts, device)

        def forward(gates: Tensor, **inputs: Any) -> Any:
            with holder.set(gates):
                return model(**inputs)

        return _in_steps(forward, base, prompts, device, gates=gate)

    def call() -> Tensor:
        with torch.inference_mode(), nullcontext() if holder is None else holder.set(gate):
            answer: Tensor = model.generate(**prompts, max_new_tokens=NEW_TOKENS, do_sample=False)
        assert answer.shape[1] == NEW_TOKENS
        return answer

    return call


def _in_steps(
    forward: Callable[..., Any],
    base: Any,
    prompts: dict[str, Tensor],
    device: torch.device,
    **carried: Tensor,
) -> Call:
    decoder = GraphDecoder(
        forward,
        base.config,
        len(prompts["attention_mask"]),
        rounded_length(PROMPT_TOKENS + NEW_TOKENS),
        eos_token_id=None,
        pad_token_id=0,
        device=device,
        captured=device.type == "cuda",
    )

    def call() -> Tensor:
        with torch.inference_mode():
            return decoder(**prompts, max_new_tokens=NEW_TOKENS, **carried)

    return call
