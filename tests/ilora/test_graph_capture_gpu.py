"""On which GPU a decoder's graph is captured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ilora.graph_decoding import Forward, GraphDecoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
NEW_TOKENS = 12


def language_model(device: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval().to(device)


def decoder(model: LlamaForCausalLM, forward: Forward, *, captured: bool) -> GraphDecoder:
    return GraphDecoder(
        forward,
        model.config,
        3,
        128,
        eos_token_id=None,
        pad_token_id=0,
        device=model.device,
        captured=captured,
    )


def answers(decode: GraphDecoder, model: LlamaForCausalLM, seed: int) -> Tensor:
    torch.manual_seed(seed)
    ids = torch.randint(97, (3, 10)).to(model.device)
    with torch.inference_mode():
        embeds = model.get_input_embeddings()(ids)
        return decode(embeds, torch.ones_like(ids), NEW_TOKENS)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_is_captured_on_its_gpu_whichever_is_current_or_captured_before() -> None:
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        model = language_model(device)
        captured = decoder(model, model, captured=True)
        plain = decoder(model, model, captured=False)
        for seed in range(3):
            assert torch.equal(answers(captured, model, seed), answers(plain, model, seed))
        assert torch.cuda.current_device() == 0
