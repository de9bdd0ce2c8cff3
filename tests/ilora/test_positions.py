"""A prompt that needs more positions than the language model has is refused before it fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, MambaConfig

from ilora.config import AdapterSettings
from ilora.encoders import load_encoder
from ilora.errors import InputError
from ilora.evaluation.ranking import WAYS, score_candidates
from ilora.model import ILoRARecommender
from ilora.positions import require_room
from ilora.tokens import load_tokenizer
from tests.ilora.tiny_world import World

pytestmark = pytest.mark.usefixtures("one_thread")


def gpt2(world: World, positions: int) -> ILoRARecommender:
    tokenizer = load_tokenizer(world.llm)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=positions,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    llm = GPT2LMHeadModel(config).requires_grad_(False)
    return ILoRARecommender(llm, tokenizer, load_encoder(world.encoder), AdapterSettings()).eval()


def test_the_longest_row_counts_and_padding_does_not() -> None:
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    config = LlamaConfig(max_position_embeddings=4)
    require_room(config, mask)
    with pytest.raises(InputError, match="takes 5 tokens, and the language model has 4 positions"):
        require_room(config, mask, 1)
    require_room(MambaConfig(), mask, 10**9)  # it counts no positions


@pytest.mark.parametrize("use", ["loss", "free", *WAYS])
def test_a_model_with_too_few_positions_is_named(world: World, use: Any) -> None:
    model = gpt2(world, 1000)
    rows = world.rows(model, "test", answer=use == "loss")
    prompt = rows[0]
    length = len(prompt.input_ids)

    def ask(positions: int) -> None:
        model = gpt2(world, positions)
        batch = world.batch(model, [prompt])
        if use == "loss":
            model(**batch)
        elif use == "free":
            model.generate(batch, max_new_tokens=2)
        else:
            scored = score_candidates(
                model, rows, lambda some: world.batch(model, some), batch_size=1, way=use
            )
            next(scored)

    ask(length + 50)
    with pytest.raises(InputError, match=rf"language model has {length - 1} positions"):
        ask(length - 1)


def test_the_last_position_is_used(world: World) -> None:
    model = gpt2(world, 1000)
    prompt = world.rows(model, "test", answer=False)[0]
    model = gpt2(world, len(prompt.input_ids) + 1)
    batch = world.batch(model, [prompt])
    assert model.generate(batch, max_new_tokens=2).shape[1] <= 2
    with pytest.raises(InputError, match="positions"):
        model.generate(batch, max_new_tokens=3)
