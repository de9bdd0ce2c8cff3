"""One pass over all candidates gives what a pass for each of them gives, on several models."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ilora.config import AdapterSettings
from ilora.data.catalog import Catalog
from ilora.data.collation import Collator
from ilora.data.prompts import Example, PromptBuilder
from ilora.data.sequences import Row
from ilora.encoders import load_encoder
from ilora.errors import InputError
from ilora.evaluation import ranking
from ilora.evaluation.cached_passes import score_separately, with_answer
from ilora.evaluation.one_pass import pack, score_in_one_pass
from ilora.evaluation.padding import padding_shows
from ilora.evaluation.protocols import predict
from ilora.evaluation.ranking import WAYS, CandidateScores, choose_way, score_candidates
from ilora.model import ILoRARecommender
from ilora.recommend import OneRow
from ilora.tokens import load_tokenizer
from tests.ilora.tiny_world import World, stir

pytestmark = pytest.mark.usefixtures("one_thread")

TITLES = (
    "Portal",
    "Portal 2",
    "Portal",  # a second item of that title
    "夜明けの猫",
    "Amélie – Été",
    "A",
    "The Rather Long Title of an Adventure, in Nine Parts",
    "!!!",
)
CANDIDATES = ((0, 1, 2, 3, 4, 5, 6), (6, 5, 3), (1, 0, 7, 4, 2))  # of three users
HISTORIES = ((1, 2, 3, 4, 5, 6), (9,), (12, 3, 20))
Build = Callable[[int, int], PreTrainedModel]


def llama(size: int, eos: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        eos_token_id=eos,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def qwen2(size: int, eos: int) -> PreTrainedModel:
    config = Qwen2Config(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        eos_token_id=eos,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def gpt2(size: int, eos: int) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=size,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,  # fewer than a packed row has columns
        initializer_range=0.3,
        eos_token_id=eos,
        bos_token_id=eos,
    )
    return GPT2LMHeadModel(config)


def mistral(size: int, eos: int, window: int = 8) -> PreTrainedModel:
    config = MistralConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        sliding_window=window,
        eos_token_id=eos,
        bos_token_id=None,
    )
    return MistralForCausalLM(config)


def bart(size: int, eos: int) -> PreTrainedModel:
    """Its positions are columns, whether padding or not, and it takes no others."""
    config = BartConfig(
        vocab_size=size,
        d_model=32,
        decoder_layers=2,
        decoder_ffn_dim=48,
        decoder_attention_heads=4,
        init_std=0.3,
        is_decoder=True,
        eos_token_id=eos,
        bos_token_id=eos,
        pad_token_id=eos,
    )
    return BartForCausalLM(config)


def recommender(
    world: World, build: Build, *, gate: Any = "linear", **prompts: Any
) -> ILoRARecommender:
    """A model of that shape whose experts, gate and projector all show."""
    torch.manual_seed(3)
    tokenizer = load_tokenizer(world.llm)
    llm = build(len(tokenizer), int(tokenizer.eos_token_id)).requires_grad_(False)
    settings, encoder = AdapterSettings(dropout=0.0, gate=gate), load_encoder(world.encoder)
    return stir(ILoRARecommender(llm, tokenizer, encoder, settings, **prompts)).eval()


class Shown(OneRow):
    """Rows of difficult titles and different lengths."""

    def __init__(self, builder: PromptBuilder) -> None:
        self.builder = builder
        self.rows = [
            Row(None, history, candidates[0])
            for history, candidates in zip(HISTORIES, CANDIDATES, strict=True)
        ]

    def __getitem__(self, index: int) -> Example:
        return self.builder.encode(self.rows[index], CANDIDATES[index], answer=False)

    def candidates(self, index: int) -> tuple[int, ...]:
        return CANDIDATES[index]


def rows_of(world: World, model: ILoRARecommender) -> tuple[Shown, Collator]:
    size = len(world.folder.catalog)
    catalog = Catalog((*TITLES, *world.folder.catalog.titles[len(TITLES) :]))
    builder = model.prompt_builder(catalog, world.folder.domain, world.folder.window)
    return Shown(builder), Collator(model.tokenizer, size, world.folder.window, "left")


def alone(world: World, model: ILoRARecommender, rows: Shown, user: int, item: int) -> list[float]:
    """Brute force: one unpadded sequence of prompt and answer, and its log-softmax."""
    prompt, answer = rows[user], rows.builder.answer_ids(item)
    example = with_answer(prompt, answer)
    batch = world.batch(model, [example])
    with torch.no_grad():
        told = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0].double()
    told = told.log_softmax(-1)
    start = len(prompt.input_ids)
    return [float(told[start + k - 1, token]) for k, token in enumerate(answer)]


def by_brute_force(world: World, model: ILoRARecommender, rows: Shown) -> list[CandidateScores]:
    expected = []
    for user, candidates in enumerate(CANDIDATES):
        told = [alone(world, model, rows, user, item) for item in candidates]
        characters = np.array([len(TITLES[item]) for item in candidates])
        sums = np.array([sum(tokens) for tokens in told])
        means = np.array([np.mean(tokens) for tokens in told])
        expected.append(CandidateScores(sums, means, sums / characters))
    return expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("build", [llama, qwen2, gpt2])
def test_every_way_gives_the_scores_of_brute_force(
    world: World, build: Build, batch_size: int, way: Any
) -> None:
    model = recommender(world, build)
    rows, collator = rows_of(world, model)
    expected = by_brute_force(world, model, rows)
    scored = list(score_candidates(model, rows, collator, batch_size=batch_size, way=way))
    for got, wanted in zip(scored, expected, strict=True):
        for name in ("sum", "mean", "per_character"):
            np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), rtol=1e-4)
        assert got.way == way


@pytest.mark.parametrize("way", [None, "separate passes"])
def test_a_model_whose_results_padding_changes_is_ranked_as_by_brute_force(
    world: World, way: Any
) -> None:
    model = recommender(world, bart)
    rows, collator = rows_of(world, model)
    scored = list(score_candidates(model, rows, collator, batch_size=3, way=way))
    for got, wanted in zip(scored, by_brute_force(world, model, rows), strict=True):
        np.testing.assert_allclose(got.sum, wanted.sum, rtol=1e-4)


@pytest.mark.parametrize("decode", ["free", "constrained"])
def test_a_model_whose_results_padding_changes_answers_as_it_does_alone(
    world: World, decode: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = recommender(world, bart)
    rows, collator = rows_of(world, model)
    with caplog.at_level(logging.WARNING):
        together = predict(decode, model, rows, collator, batch_size=3)
    assert [record.message for record in caplog.records] == [
        "prompts are answered one at a time: padding would change the answers"
    ]
    assert together == predict(decode, model, rows, collator, batch_size=1)


@pytest.mark.parametrize("build", [llama, qwen2, gpt2, mistral])
def test_padding_does_not_show_in_an_ordinary_model(world: World, build: Build) -> None:
    model = recommender(world, build)
    rows, collator = rows_of(world, model)
    assert not padding_shows(model, collator, rows[0])


def test_the_difficult_rows_are_difficult(world: World) -> None:
    model = recommender(world, llama)
    rows, _ = rows_of(world, model)
    lengths = {len(rows.builder.answer_ids(item)) for item in range(len(TITLES))}
    assert len(lengths) >= 5
    portal, second = rows.builder.answer_ids(0), rows.builder.answer_ids(1)
    assert portal[:-1] == second[: len(portal) - 1]
    prompts = [len(rows[user].input_ids) for user in range(3)]
    assert len(set(prompts)) == 3
    packed = prompts[0] + sum(len(rows.builder.answer_ids(item)) - 1 for item in CANDIDATES[0])
    assert prompts[0] + max(lengths) < 256 < packed  # more columns than GPT-2 here has positions


@pytest.mark.parametrize("build", [llama, qwen2, gpt2])
def test_one_pass_is_what_an_ordinary_model_gets(
    world: World, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    model = recommender(world, build)
    rows, collator = rows_of(world, model)
    with caplog.at_level(logging.WARNING):
        scored = list(score_candidates(model, rows, collator, batch_size=3))
    assert {one.way for one in scored} == {"one pass"}
    assert not caplog.records


def test_candidates_do_not_see_one_another(world: World) -> None:
    model = recommender(world, llama)
    rows, collator = rows_of(world, model)
    answers = [rows.builder.answer_ids(item) for item in (0, 1, 6)]
    changed = [answers[0], [*answers[1][:-2], 5, answers[1][-1]], answers[2]]
    before, after = (
        score_in_one_pass(model, collator, [rows[0]], [some])[0] for some in (answers, changed)
    )
    assert before[1] != pytest.approx(float(after[1]))
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]], rtol=1e-6, atol=1e-6)


def test_items_of_one_title_get_one_score(world: World) -> None:
    model = recommender(world, llama)
    rows, collator = rows_of(world, model)
    first = next(score_candidates(model, rows, collator, batch_size=3))
    assert first.sum[0] == pytest.approx(first.sum[2], rel=1e-6)


def test_every_user_has_a_mixture_of_his_own(world: World) -> None:
    model = recommender(world, llama)
    rows, collator = rows_of(world, model)
    prompts = [rows[0], rows[0]]
    prompts[1] = Example(
        prompts[0].input_ids, prompts[0].item_ids, prompts[0].labels, rows[1].history
    )
    answers = [rows.builder.answer_ids(item) for item in CANDIDATES[0]]
    one, other = score_in_one_pass(model, collator, prompts, [answers, answers])
    assert not torch.allclose(one, other, rtol=1e-3)
    exact = score_separately(model, collator, prompts, [answers, answers])
    torch.testing.assert_close(torch.stack([one, other]), torch.stack(exact), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", [llama, gpt2])
def test_with_a_gate_per_layer_every_way_gives_the_scores_of_brute_force(
    world: World, build: Build, way: Any
) -> None:
    model = recommender(world, build, gate="per-layer")
    rows, collator = rows_of(world, model)
    expected = by_brute_force(world, model, rows)
    batch = world.batch(model, [rows[user] for user in range(3)])
    gates = model.gates(batch["histories"]).detach()  # [B, layers, K]
    spread = [float((gates - gates.mean(dim, keepdim=True)).abs().max()) for dim in (0, 1)]
    assert min(spread) > 0.05  # users differ, and so do layers
    scored = list(score_candidates(model, rows, collator, batch_size=3, way=way))
    for got, wanted in zip(scored, expected, strict=True):
        np.testing.assert_allclose(got.sum, wanted.sum, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_prompts_of_titles_alone_are_ranked_as_by_brute_force(world: World, way: Any) -> None:
    model = recommender(world, llama, hybrid=False, placeholders=False)
    rows, collator = rows_of(world, model)
    assert model.placeholder_id not in rows[0].input_ids
    scored = list(score_candidates(model, rows, collator, batch_size=3, way=way))
    for got, wanted in zip(scored, by_brute_force(world, model, rows), strict=True):
        np.testing.assert_allclose(got.sum, wanted.sum, rtol=1e-4)


def test_a_packed_row_is_prompt_and_candidates_without_their_last_tokens(world: World) -> None:
    model = recommender(world, llama)
    rows, collator = rows_of(world, model)
    batch = collator([rows[0], rows[1]])
    packed = pack(batch, [[[7, 8, 2], [9, 2]], [[2]]])
    start = batch["input_ids"].shape[1]
    own, other = len(rows[0].input_ids), len(rows[1].input_ids)
    assert packed.width == 3
    assert packed.input_ids[0, start:].tolist() == [7, 8, 9]
    assert packed.positions[0, start:].tolist() == [own, own + 1, own]
    assert packed.segments[0, start:].tolist() == [1, 1, 2]
    assert packed.segments[1].tolist() == [-1] * (start - other) + [0] * other + [-1] * 3
    sees = packed.visible()[0, 0]
    assert sees[start, :start].all()
    assert sees[start + 1, start:].tolist() == [True, True, False]
    assert sees[start + 2, start:].tolist() == [False, False, True]
    assert not packed.visible()[1, 0, start - 1, : start - other].any()


def test_a_short_attention_window_is_ranked_through_the_cache_and_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    model = recommender(world, mistral)
    rows, collator = rows_of(world, model)
    with caplog.at_level(logging.WARNING):
        scored = list(score_candidates(model, rows, collator, batch_size=1))
    assert {one.way for one in scored} == {"shared cache"}
    assert len(caplog.records) == 1
    for got, wanted in zip(scored, by_brute_force(world, model, rows), strict=True):
        np.testing.assert_allclose(got.sum, wanted.sum, rtol=1e-4)


def test_a_window_that_only_later_rows_exceed_is_seen(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = recommender(world, lambda size, eos: mistral(size, eos, window=130))
    rows, collator = rows_of(world, model)
    order = sorted(range(3), key=lambda user: len(rows[user].input_ids))
    lengths = [len(rows[user].input_ids) for user in order]
    model.llm.config.sliding_window = 130
    assert lengths[0] + 20 < 130 < lengths[-1]
    monkeypatch.setattr(Shown, "candidates", lambda self, i: CANDIDATES[order[i]])
    monkeypatch.setattr(
        Shown,
        "__getitem__",
        lambda self, i: self.builder.encode(
            Row(None, HISTORIES[order[i]], 0), CANDIDATES[order[i]], answer=False
        ),
    )
    with caplog.at_level(logging.WARNING):
        ways = [one.way for one in score_candidates(model, rows, collator, batch_size=1)]
    assert ways[0] == "one pass"
    assert ways[-1] == "shared cache"
    assert len(caplog.records) == 1


def test_a_model_that_ignores_the_mask_is_found_out(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = recommender(world, llama)
    rows, collator = rows_of(world, model)
    monkeypatch.setattr(
        ranking,
        "score_in_one_pass",
        lambda *inputs: [told + 0.01 for told in score_in_one_pass(*inputs)],
    )
    answers = [rows.builder.answer_ids(item) for item in CANDIDATES[0]]
    with caplog.at_level(logging.WARNING):
        assert choose_way(model, collator, rows[0], answers) == "shared cache"
    assert "nats a token" in caplog.text


def test_a_model_with_neither_mask_nor_cache_gets_separate_passes(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = recommender(world, llama)
    rows, collator = rows_of(world, model)
    plain = model.llm.forward

    def refuse(*args: Any, **options: Any) -> Any:
        if options["attention_mask"].ndim == 4:
            raise ValueError("no such mask")
        if options["use_cache"]:
            raise TypeError("no cache")
        return plain(*args, **options)

    monkeypatch.setattr(model.llm, "forward", refuse)
    with caplog.at_level(logging.WARNING):
        scored = list(score_candidates(model, rows, collator, batch_size=2))
    assert {one.way for one in scored} == {"separate passes"}
    assert "no such mask" in caplog.text
    assert "no cache" in caplog.text
    assert len(caplog.records) == 2


def test_attention_that_takes_no_mask_is_not_asked(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = recommender(world, llama)
    rows, collator = rows_of(world, model)
    monkeypatch.setattr(model.llm.config, "_attn_implementation_internal", "flash_attention_2")

    def ask(*_: Any) -> None:
        raise AssertionError("the mask was used")

    monkeypatch.setattr(ranking, "score_in_one_pass", ask)
    for name in ("score_separately", "score_after_shared_cache"):
        monkeypatch.setattr(ranking, name, lambda *call, **_: [torch.zeros(len(call[3][0]))])
    answers = [rows.builder.answer_ids(item) for item in CANDIDATES[0]]
    assert choose_way(model, collator, rows[0], answers) == "shared cache"
    assert "its attention is flash_attention_2" in caplog.text


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_bfloat16_model_is_ranked_in_one_pass(world: World, build: Build) -> None:
    model = recommender(world, build)
    model.llm.to(torch.bfloat16)
    rows, collator = rows_of(world, model)
    scored = list(score_candidates(model, rows, collator, batch_size=3))
    assert {one.way for one in scored} == {"one pass"}


def test_an_unknown_way_is_refused(world: World, tmp_path: Path) -> None:
    model = recommender(world, llama)
    rows, collator = rows_of(world, model)
    with pytest.raises(InputError, match="way is 'two passes'"):
        next(score_candidates(model, rows, collator, batch_size=1, way="two passes"))  # type: ignore[arg-type]
