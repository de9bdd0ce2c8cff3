"""The recommender's parts put together: embeddings, loss, gradients, generation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedTokenizerFast,
)

from ilora.config import AdapterSettings
from ilora.data.prompts import IGNORED_LABEL, NO_ITEM
from ilora.encoders import load_encoder
from ilora.errors import InputError
from ilora.gate import GATES
from ilora.model import ILoRARecommender, add_experts
from ilora.peft import ILoraLinear
from ilora.training import build_recommender
from tests.ilora.tiny_world import CPU, World, load_llm, load_tokenizer, stir

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(world: World) -> ILoRARecommender:
    """Experts that show, no dropout; nobody changes it."""
    return world.recommender(dropout=0.0)


@pytest.fixture(scope="module")
def batch(world: World, model: ILoRARecommender) -> dict[str, Tensor]:
    """Six training rows of different lengths, with answers."""
    rows = world.rows(model, "train", answer=True)
    return world.batch(model, [rows[i] for i in range(6)])


def full_logits(model: ILoRARecommender, batch: dict[str, Tensor]) -> Tensor:
    """``[B, S, V]``, as the model gives them without labels."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        return model(**inputs).logits


def by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihoods of the labelled tokens, float64, one after another."""
    told = logits.double().log_softmax(-1)
    places = labels[:, 1:].ne(IGNORED_LABEL).nonzero().tolist()
    return torch.stack([-told[b, s, labels[b, s + 1]] for b, s in places])


# Embeddings


def test_a_placeholder_becomes_its_items_projected_embedding_and_all_else_stays(
    model: ILoRARecommender, batch: dict[str, Tensor]
) -> None:
    embeds = model.embed(batch["input_ids"], batch["item_ids"])
    table = model.llm.get_input_embeddings().weight
    for b, ids in enumerate(batch["input_ids"].tolist()):
        for s, token in enumerate(ids):
            item = batch["item_ids"][b, s]
            if item == NO_ITEM:
                assert torch.equal(embeds[b, s], table[token])
                continue
            assert token == model.placeholder_id
            expected = model.projector(model.encoder.item_embedding(item))
            torch.testing.assert_close(embeds[b, s], expected, rtol=1e-5, atol=1e-6)


def test_items_are_projected_in_one_step(model: ILoRARecommender, batch: dict[str, Tensor]) -> None:
    calls: list[int] = []
    handle = model.projector.register_forward_hook(lambda *call: calls.append(len(call[1][0])))
    model.embed(batch["input_ids"], batch["item_ids"])
    handle.remove()
    assert calls == [int((batch["item_ids"] >= 0).sum())]


@pytest.mark.parametrize("by", ["flag", "item ids"])
def test_a_text_only_batch_keeps_the_placeholders_own_embedding(
    model: ILoRARecommender, batch: dict[str, Tensor], by: str
) -> None:
    ids, nothing = batch["input_ids"], torch.full_like(batch["item_ids"], NO_ITEM)
    embeds = (
        model.embed(ids, batch["item_ids"], text_only=True)
        if by == "flag"
        else model.embed(ids, nothing)
    )
    at_placeholder = ids == model.placeholder_id
    assert bool((embeds[at_placeholder] == model.placeholder).all())
    table = model.llm.get_input_embeddings().weight
    assert torch.equal(embeds[~at_placeholder], table[ids[~at_placeholder]])


def test_a_model_without_hybrid_prompts_reads_text_and_does_not_train_the_projector(
    world: World, batch: dict[str, Tensor]
) -> None:
    model = ILoRARecommender(
        load_llm(str(world.llm), torch.float32, CPU),
        load_tokenizer(world.llm),
        load_encoder(world.encoder),
        AdapterSettings(),
        hybrid=False,
    )
    nothing = torch.full_like(batch["item_ids"], NO_ITEM)
    texts = model.embed(batch["input_ids"], nothing)
    assert torch.equal(model.embed(batch["input_ids"], batch["item_ids"]), texts)
    assert not any(parameter.requires_grad for parameter in model.projector.parameters())
    projector = sum(parameter.numel() for parameter in model.projector.parameters())
    assert model.trainable_parameters() == world.recommender().trainable_parameters() - projector


def test_a_placeholder_beyond_the_models_vocabulary_works(world: World) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE({c: i for i, c in enumerate(["<eos>", *alphabet])}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<eos>")
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
    )
    llm = LlamaForCausalLM(config).requires_grad_(False)
    model = ILoRARecommender(llm, tokenizer, load_encoder(world.encoder), AdapterSettings())
    assert model.placeholder_id == size
    assert len(model.llm.get_input_embeddings().weight) == size  # never resized

    rows = world.rows(model, "train", answer=True)
    told = world.batch(model, [rows[i] for i in range(2)])
    for text_only in (True, False):
        assert bool(model(**told, text_only=text_only).loss.isfinite())
    asked = world.rows(model, "val", answer=False)
    tokens = model.eval().generate(world.batch(model, [asked[0]]), max_new_tokens=3)
    assert tokens.max() < size


# Loss


def test_the_loss_is_the_mean_negative_log_likelihood_of_the_answers_tokens(
    model: ILoRARecommender, batch: dict[str, Tensor]
) -> None:
    expected = by_hand(full_logits(model, batch), batch["labels"]).mean()
    torch.testing.assert_close(model(**batch).loss.double(), expected, rtol=1e-5, atol=0)


def test_logits_with_labels_are_those_that_predict_the_last_columns(
    model: ILoRARecommender, batch: dict[str, Tensor]
) -> None:
    logits = model(**batch).logits
    length = logits.shape[1]
    assert length < batch["labels"].shape[1] / 4  # the head does not run on the prompt
    expected = full_logits(model, batch)[:, -length - 1 : -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_labels_on_every_column_are_all_counted_but_the_first(
    model: ILoRARecommender, batch: dict[str, Tensor]
) -> None:
    example = {name: tensor[:1] for name, tensor in batch.items()}
    example["labels"] = example["input_ids"].clone()
    expected = by_hand(full_logits(model, example), example["labels"]).mean()
    torch.testing.assert_close(model(**example).loss.double(), expected, rtol=1e-5, atol=0)


@pytest.fixture(scope="module")
def absolute(world: World) -> ILoRARecommender:
    """A model that learns a vector for each position, where a Llama sees distances alone."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(world.llm)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=1,
        n_head=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    llm = GPT2LMHeadModel(config).requires_grad_(False)
    llm.transformer.wpe.weight.normal_(0, 1)
    return stir(
        ILoRARecommender(llm, tokenizer, load_encoder(world.encoder), AdapterSettings())
    ).eval()


@pytest.mark.parametrize("family", ["model", "absolute"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("multiple", [1, 64])
def test_the_loss_does_not_depend_on_the_padding(
    world: World, family: str, side: str, multiple: int, request: pytest.FixtureRequest
) -> None:
    model: ILoRARecommender = request.getfixturevalue(family)
    rows = world.rows(model, "train", answer=True)
    examples = [rows[i] for i in range(6)]
    alone = [
        by_hand(full_logits(model, one), one["labels"]) for one in each(world, model, examples)
    ]
    loss = model(**world.batch(model, examples, side, multiple)).loss
    torch.testing.assert_close(loss.double(), torch.cat(alone).mean(), rtol=1e-5, atol=0)


def each(world: World, model: ILoRARecommender, examples: list) -> Iterator[dict[str, Tensor]]:
    """Every example as an unpadded batch of its own."""
    for example in examples:
        yield world.batch(model, [example])


def test_the_loss_is_divided_by_the_number_it_is_given(
    model: ILoRARecommender, batch: dict[str, Tensor]
) -> None:
    count = int((batch["labels"] != IGNORED_LABEL).sum())
    mean = model(**batch).loss
    for number in (1000, torch.tensor(1000)):
        given = model(**batch, num_items_in_batch=number).loss
        torch.testing.assert_close(given * 1000, mean * count)


def test_log_likelihoods_of_answers_are_sums_over_their_tokens(
    world: World, model: ILoRARecommender, batch: dict[str, Tensor]
) -> None:
    rows = world.rows(model, "train", answer=True)
    sums, counts = model.answer_log_probs(batch)
    for i, one in enumerate(each(world, model, [rows[i] for i in range(6)])):
        told = by_hand(full_logits(model, one), one["labels"])
        assert counts[i] == len(told)
        torch.testing.assert_close(sums[i].double(), -told.sum(), rtol=1e-5, atol=0)


# Gates


def test_every_user_gets_his_own_experts_wherever_he_stands_in_the_batch(
    model: ILoRARecommender, batch: dict[str, Tensor]
) -> None:
    logits = full_logits(model, batch)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = full_logits(model, {name: tensor[order] for name, tensor in batch.items()})
    torch.testing.assert_close(moved, logits[order], rtol=1e-4, atol=1e-5)
    # The same prompts with the gates of others are other functions.
    others = {**batch, "histories": batch["histories"][order]}
    assert not torch.allclose(full_logits(model, others), logits, rtol=1e-2, atol=1e-2)


def test_the_encoder_stays_in_eval_mode_while_the_rest_trains(world: World) -> None:
    model = world.recommender().train()
    assert model.training
    assert model.gate.training
    assert not any(module.training for module in model.encoder.modules())
    rows = world.rows(model, "train", answer=True)
    histories = world.batch(model, [rows[i] for i in range(6)])["histories"]
    assert torch.equal(model.gates(histories), model.gates(histories))  # it has dropout


def test_lora_has_one_expert_and_no_gate_to_learn(world: World) -> None:
    model = world.recommender(method="lora", num_experts=4)
    assert not list(model.gate.parameters())
    assert torch.equal(model.gates(torch.zeros(3, 10, dtype=torch.int64)), torch.ones(3, 1))
    gated = world.recommender(method="ilora", num_experts=4)
    gate = sum(parameter.numel() for parameter in gated.gate.parameters())
    assert gate > 0
    assert gated.trainable_parameters() == model.trainable_parameters() + gate


def test_lora_is_ilora_whose_gate_is_even(world: World, batch: dict[str, Tensor]) -> None:
    lora = world.recommender(method="lora", dropout=0.0)
    ilora = world.recommender(method="ilora", dropout=0.0)
    shared = {k: v for k, v in lora.state_dict().items() if not k.startswith("gate.")}
    ilora.load_state_dict(shared, strict=False)
    assert not torch.allclose(full_logits(lora, batch), full_logits(ilora, batch), atol=1e-2)
    with torch.no_grad():
        ilora.gate.projection.weight.zero_()  # softmax of zeros: 1/K each
    torch.testing.assert_close(
        full_logits(lora, batch), full_logits(ilora, batch), rtol=1e-4, atol=1e-5
    )


# Gradients


def test_a_hybrid_step_reaches_every_trainable_part_and_nothing_frozen(
    world: World, batch: dict[str, Tensor]
) -> None:
    model = world.recommender().train()
    model(**batch).loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    experts = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(experts) == 2 * 7 * 2  # A and B of seven projections in two layers
    projector = {f"projector.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")}
    assert reached == experts | projector | {"gate.projection.weight"}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == reached | {"placeholder"}  # which a hybrid prompt does not show


def test_a_text_only_step_trains_the_placeholder_and_leaves_the_projector(
    world: World, batch: dict[str, Tensor]
) -> None:
    model = world.recommender().train()
    model(**batch, text_only=True).loss.backward()
    assert all(parameter.grad is None for parameter in model.projector.parameters())
    assert model.placeholder.grad is not None
    assert bool(model.placeholder.grad.any())


def test_gradient_checkpointing_gives_the_same_loss_and_gradients(
    world: World, batch: dict[str, Tensor]
) -> None:
    results = []
    for checkpointing in (False, True):
        model = world.recommender(dropout=0.1).train()
        if checkpointing:
            model.llm.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        loss = model(**batch).loss
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), grads))
    (plain, plain_grads), (again, again_grads) = results
    assert torch.equal(plain, again)
    torch.testing.assert_close(plain_grads, again_grads)


# Generation


def asked(world: World, model: ILoRARecommender, count: int = 5) -> list:
    """Prompts without answers, of different lengths."""
    rows = world.rows(model, "val", answer=False)
    examples = [rows[i] for i in range(count)]
    assert len({len(example.input_ids) for example in examples}) > 1
    return examples


@pytest.mark.parametrize("family", ["model", "absolute"])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}]
)
def test_a_batch_of_prompts_gets_the_answers_that_each_gets_alone(
    world: World, family: str, options: dict[str, int], request: pytest.FixtureRequest
) -> None:
    model: ILoRARecommender = request.getfixturevalue(family)
    examples = asked(world, model)
    options = {"max_new_tokens": 8, **options}
    returned = options.get("num_return_sequences", 1)
    together = model.generate(world.batch(model, examples), **options)
    assert together.shape == (len(examples) * returned, 8)
    for i, one in enumerate(each(world, model, examples)):
        alone = model.generate(one, **options)
        assert torch.equal(together[i * returned : (i + 1) * returned], alone)
    assert len({tuple(row) for row in together.tolist()}) > len(examples) / 2  # not one for all


def test_generation_is_greedy_decoding_without_a_cache(
    world: World, model: ILoRARecommender
) -> None:
    example = asked(world, model)[0]
    told = model.generate(world.batch(model, [example]), max_new_tokens=4)[0].tolist()
    for length, token in enumerate(told):
        ids = example.input_ids + told[:length]
        items = example.item_ids + [NO_ITEM] * length
        inputs = world.batch(model, [example])
        inputs |= {
            "input_ids": torch.tensor([ids]),
            "item_ids": torch.tensor([items]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
        }
        assert full_logits(model, inputs)[0, -1].argmax() == token


def test_a_prompt_padded_on_the_right_is_refused(world: World, model: ILoRARecommender) -> None:
    with pytest.raises(InputError, match='side="left"'):
        model.generate(world.batch(model, asked(world, model), "right"), max_new_tokens=1)


def test_a_base_models_own_sampling_settings_do_not_change_greedy_decoding(world: World) -> None:
    clean = world.recommender()
    llm = load_llm(str(world.llm), torch.float32, CPU)
    llm.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0, max_new_tokens=1
    )
    torch.manual_seed(0)
    model = ILoRARecommender(
        llm, load_tokenizer(world.llm), load_encoder(world.encoder), AdapterSettings()
    )
    model.load_state_dict(clean.state_dict())
    batch = world.batch(clean, asked(world, clean))
    expected = clean.generate(batch, max_new_tokens=12)
    assert torch.equal(model.eval().generate(batch, max_new_tokens=12), expected)
    repeats = [len(row) - len(set(row)) for row in expected.tolist()]
    assert max(repeats) > 0  # a repetition penalty of 9 would have shown


# Other gates, and none


@pytest.mark.parametrize("gate", [name for name in GATES if name not in ("uniform", "random-init")])
def test_every_gate_learns_from_the_loss(world: World, batch: dict[str, Tensor], gate: str) -> None:
    model, _ = world.built({"adapter.gate": gate, "adapter.dropout": 0.0})
    model.train()(**batch).loss.backward()
    for name, parameter in model.gate.named_parameters():
        assert parameter.grad is not None, name
    assert any(bool(parameter.grad.any()) for parameter in model.gate.parameters())


def test_a_uniform_gate_is_plain_lora(world: World, batch: dict[str, Tensor]) -> None:
    lora = world.recommender(method="lora", dropout=0.0)
    uniform = world.recommender(gate="uniform", dropout=0.0)
    assert lora.trainable_parameters() == uniform.trainable_parameters()
    uniform.load_state_dict(lora.state_dict())
    torch.testing.assert_close(
        full_logits(lora, batch), full_logits(uniform, batch), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("scaling", "factor"), [("expert", 32 / 2), ("total", 32 / 8)])
def test_the_two_conventions_of_scaling_are_the_codes_and_the_papers(
    world: World, scaling: str, factor: float
) -> None:
    model = world.recommender(scaling=scaling, rank=8, num_experts=4, alpha=32)
    layer = next(m for m in model.modules() if isinstance(m, ILoraLinear))
    assert layer._adapter("default").scaling == factor


def test_a_gate_per_layer_gives_every_layer_of_the_model_its_own_mixture(
    world: World, batch: dict[str, Tensor]
) -> None:
    model = world.recommender(gate="per-layer")
    mixtures = model.gates(batch["histories"])
    assert mixtures.shape == (6, 2 * 7, 4)
    assert (mixtures[:, 0] - mixtures[:, 1]).abs().max() > 1e-2
    examples = asked(world, model)
    together = model.generate(world.batch(model, examples), max_new_tokens=4, num_beams=2)
    alone = [
        model.generate(one, max_new_tokens=4, num_beams=2) for one in each(world, model, examples)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_the_token_collapsed_gate_of_a_built_model_has_read_the_catalogue(world: World) -> None:
    model, _ = world.built({"adapter.gate": "token-collapsed"})
    title = world.folder.catalog.title(3)
    tokens = model.tokenizer(f" {title}", add_special_tokens=False)["input_ids"]
    table = model.llm.get_input_embeddings().weight
    torch.testing.assert_close(model.gate.title_sums[3], table[tokens].sum(0))
    assert int(model.gate.title_lengths[3]) == len(tokens)
    assert not model.gate.title_sums[-1].any()  # the padding


def test_an_unadapted_model_is_the_language_model_and_trains_nothing(world: World) -> None:
    model, config = build_recommender(world.settings({"adapter.method": "none"}), world.folder, CPU)
    assert model.trainable_parameters() == 0
    assert not config.hybrid
    rows = world.rows(model, "val", answer=False)
    one = world.batch(model, [rows[0]])
    assert model.placeholder_id in one["input_ids"]  # which this language model was trained with
    told = model.generate(one, max_new_tokens=5)
    llm = load_llm(str(world.llm), torch.float32, CPU)
    expected = llm.generate(
        input_ids=one["input_ids"],
        attention_mask=one["attention_mask"],
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=model.tokenizer.pad_token_id,
    )[:, one["input_ids"].shape[1] :]
    assert torch.equal(told, expected)


def test_a_language_model_that_peft_hands_no_embeddings_is_refused() -> None:
    config = MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=32)
    with pytest.raises(InputError, match="no embeddings to models of the MPT design"):
        add_experts(MptForCausalLM(config), AdapterSettings())


def test_hybrid_prompts_need_placeholders(world: World) -> None:
    with pytest.raises(InputError, match="placeholders is False"):
        ILoRARecommender(
            load_llm(str(world.llm), torch.float32, CPU),
            load_tokenizer(world.llm),
            load_encoder(world.encoder),
            AdapterSettings(),
            placeholders=False,
        )
