"""The greedy loop over static tensors says what ``transformers``' generate says, captured or not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ilora.cast_adapters import CastAdapters
from ilora.config import AdapterSettings
from ilora.encoders import load_encoder
from ilora.graph_decoding import MOST_PLACES, GraphDecoder, GraphDecoders, can_capture
from ilora.model import ILoRARecommender
from tests.ilora.tiny_world import World, load_tokenizer, stir

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def language_model(family: str, vocab_size: int) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **SMALL, **HEADS))
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab_size, **SMALL, **HEADS))
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4))


def recommender(world: World, family: str, device: str = "cpu", **adapter: Any) -> ILoRARecommender:
    tokenizer = load_tokenizer(world.llm)
    llm = language_model(family, len(tokenizer))
    encoder = load_encoder(world.encoder)
    model = stir(ILoRARecommender(llm, tokenizer, encoder, AdapterSettings(**adapter)))
    return model.eval().to(device)


def prompts(world: World, model: ILoRARecommender, count: int, first: int = 0) -> dict[str, Tensor]:
    rows = world.rows(model, "train", answer=False)
    batch = world.batch(model, [rows[i] for i in range(first, first + count)])
    assert count == 1 or not bool(batch["attention_mask"].all())  # some are padded
    return {name: tensor.to(model.llm.device) for name, tensor in batch.items()}


def in_steps(
    model: ILoRARecommender, batch: dict[str, Tensor], tokens: int, *, captured: bool = False
) -> Tensor:
    with torch.inference_mode():
        embeds = model.embed(batch["input_ids"], batch["item_ids"])
        gates = model.gates(batch["histories"])
    mask = batch["attention_mask"]
    return model.generate_in_steps(embeds, mask, gates, tokens, captured=captured)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("gate", ["linear", "per-layer"])
def test_steps_over_static_tensors_give_the_tokens_of_generate(
    world: World, family: str, gate: str
) -> None:
    model = recommender(world, family, gate=gate)
    for count, first, tokens in ((5, 0, 12), (5, 5, 3), (1, 2, 9), (2, 7, 1)):
        batch = prompts(world, model, count, first)
        expected = model.generate(batch, max_new_tokens=tokens)
        assert torch.equal(in_steps(model, batch, tokens), expected)


def test_answers_end_where_generate_ends_them(world: World) -> None:
    """With an end that is met: rows are padded after theirs, and cut after the last one's."""
    model = recommender(world, "llama")
    for count in (1, 5):
        batch = prompts(world, model, count)
        shorter = padded = 0
        for token in model.generate(batch, max_new_tokens=30)[:, 2:12].flatten().unique().tolist():
            model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(token)
            expected = model.generate(batch, max_new_tokens=30)
            assert torch.equal(in_steps(model, batch, 30), expected)
            shorter += expected.shape[1] < 30
            padded += bool((expected == model.tokenizer.pad_token_id).any())
        assert shorter if count == 1 else padded


def test_a_longer_prompt_than_the_cache_is_refused(world: World) -> None:
    model = recommender(world, "llama")
    decoder = GraphDecoder(
        model.llm, model.llm.config, 1, 16,
        eos_token_id=None, pad_token_id=0, device=torch.device("cpu"), captured=False,
    )  # fmt: skip
    embeds, mask = torch.zeros(1, 10, 32), torch.ones(1, 10, dtype=torch.int64)
    with pytest.raises(ValueError, match="length is 16"):
        decoder(embeds, mask, 7)


def test_new_weights_and_new_users_show_at_once(world: World) -> None:
    model = recommender(world, "llama")
    batch = prompts(world, model, 4)
    first = in_steps(model, batch, 8)
    with torch.no_grad():  # in place, as a training step does it
        for name, parameter in model.llm.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-3)
    assert torch.equal(in_steps(model, batch, 8), model.generate(batch, max_new_tokens=8))
    assert not torch.equal(in_steps(model, batch, 8), first)
    for layer in model.llm.modules():  # in another place
        if hasattr(layer, "lora_B"):
            for parameter in layer.lora_B.values():
                parameter.data = -parameter.data / 3
    assert torch.equal(in_steps(model, batch, 8), first)
    with model.llm.disable_adapter():
        assert torch.equal(in_steps(model, batch, 8), model.generate(batch, max_new_tokens=8))


def test_experts_cast_once_give_the_bits_that_the_model_gives(world: World) -> None:
    tokenizer = load_tokenizer(world.llm)
    llm = language_model("llama", len(tokenizer)).bfloat16()
    encoder = load_encoder(world.encoder)
    model = stir(ILoRARecommender(llm, tokenizer, encoder, AdapterSettings())).eval()
    experts = [p for name, p in model.llm.named_parameters() if "lora_B" in name]
    assert {p.dtype for p in experts} == {torch.float32}
    cast = CastAdapters(model.llm)
    inputs = {"input_ids": torch.arange(12).reshape(2, 6), "gates": torch.rand(2, 4)}
    seen = []
    with torch.inference_mode():
        for _ in range(2):
            seen.append(model.llm(**inputs).logits)
            assert torch.equal(cast(**inputs).logits, seen[-1])
            experts[0].add_(1.0)  # training goes on in between
    assert not torch.equal(*seen)
    assert {p.dtype for p in experts} == {torch.float32}


def test_the_latest_decoders_are_kept_as_memory_permits() -> None:
    decoders, built = GraphDecoders(), []

    def asked(batch_size: int, model: str = "model") -> None:
        decoders.get(model, batch_size, MOST_PLACES // 8, lambda: built.append(batch_size))  # type: ignore[arg-type,return-value]

    for batch_size in (1, 2, 3, 1):  # together six eighths
        asked(batch_size)
    assert built == [1, 2, 3]
    asked(4)  # 2 and 3 are the oldest
    asked(1)
    asked(2)
    assert built == [1, 2, 3, 4, 2]
    asked(9)  # too large to keep anything beside it, and kept all the same
    asked(9)
    assert built == [1, 2, 3, 4, 2, 9]
    asked(9, "other weights")
    assert built == [1, 2, 3, 4, 2, 9, 9]
    assert not copy.deepcopy(decoders)._decoders


def test_training_frees_what_generation_keeps(world: World) -> None:
    model = recommender(world, "llama")
    in_steps(model, prompts(world, model, 2), 3)
    assert model._decoders._decoders
    model.train()
    assert not model._decoders._decoders


def test_a_cpu_captures_nothing(world: World) -> None:
    assert not can_capture(recommender(world, "llama").llm)


# ---- On a GPU


@pytest.fixture
def on_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_replayed_graph_gives_the_tokens_of_generate(
    on_gpu: None, world: World, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, where ties within rounding are rare; batches of one shape share a graph."""
    model = recommender(world, family, "cuda")
    captures: list[int] = []
    capture = GraphDecoder._capture
    monkeypatch.setattr(
        GraphDecoder, "_capture", lambda self: (captures.append(1), capture(self))[1]
    )
    assert can_capture(model.llm)
    batches = [prompts(world, model, 8, first) for first in (0, 8, 16)]
    told = [model.generate(batch, max_new_tokens=12) for batch in batches]
    assert captures == [1]
    monkeypatch.setattr("ilora.model.can_capture", lambda _: False)
    for batch, answers in zip(batches, told, strict=True):
        assert torch.equal(answers, in_steps(model, batch, 12))
        assert torch.equal(answers, model.generate(batch, max_new_tokens=12))


@pytest.mark.gpu
def test_many_users_in_one_batch_get_the_answers_that_each_gets_alone(
    on_gpu: None, world: World
) -> None:
    model = recommender(world, "llama", "cuda")
    rows = world.rows(model, "train", answer=False)
    count = min(64, len(rows))
    examples = [rows[i] for i in range(count)]

    def told(chosen: list[Any]) -> Tensor:
        batch = world.batch(model, chosen)
        return model.generate(
            {name: tensor.cuda() for name, tensor in batch.items()}, max_new_tokens=8
        )

    together = told(examples)
    assert torch.equal(together, told(examples))  # to the bit
    for i, example in enumerate(examples):
        alone = told([example])[0]
        assert torch.equal(together[i, : len(alone)], alone)
        assert together[i, len(alone) :].eq(model.tokenizer.pad_token_id).all()
