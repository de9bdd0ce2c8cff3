"""A base model made of a small made-up data folder: built, pre-trained, saved, loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from ilora.base_llm import PRESETS, BaseLLMResult, build_base_llm, initialise_llama, train_tokenizer
from ilora.data.catalog import Catalog
from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.folder import DataFolder, write_folder
from ilora.data.prompts import Example, PromptBuilder
from ilora.data.sequences import SPLITS, Row, Split, UserSequence
from ilora.errors import InputError
from ilora.pretraining import (
    evenly_spaced,
    greedy_hits,
    token_weights,
)
from ilora.pretraining_corpus import (
    PretrainingCorpus,
    PromptLength,
    disguise,
    ordinary_ids,
    prompt_length,
)
from ilora.tokens import PLACEHOLDER, load_tokenizer

COLOURS = ("Amber", "Quiet", "Crimson", "Hollow", "Silver")
THINGS = ("Harbor", "Fox", "Lantern", "Meadow", "Tide", "Mill")


def make_folder(path: Path, seed: int) -> DataFolder:
    titles = tuple(f"{colour} {thing}" for colour in COLOURS for thing in THINGS)
    rng = np.random.default_rng(seed)
    sequences = [
        UserSequence(user, tuple(rng.permutation(len(titles))[:7].tolist())) for user in range(20)
    ]
    return write_folder(
        path,
        name="made-up",
        domain="movie",
        catalog=Catalog(titles),
        sequences=sequences,
        num_candidates=5,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return make_folder(tmp_path_factory.mktemp("data") / "folder", seed=1)


def test_a_saved_base_model_is_an_ordinary_model_folder_with_a_record(
    folder: DataFolder, tmp_path: Path
) -> None:
    result = build_base_llm([folder], tmp_path / "llm", pretrain_steps=3, batch_size=4)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    tokenizer = load_tokenizer(tmp_path / "llm")
    assert model.num_parameters() == result.num_parameters
    assert model.config.vocab_size == len(tokenizer) == result.vocab_size
    assert not list((tmp_path / "llm").glob("*.bin"))
    record = json.loads((tmp_path / "llm" / "base_llm.json").read_text())
    assert record["folders"] == [{"name": "made-up", "sha256": folder.sha256}]
    assert record["pretraining"]["steps"] == 3
    assert [step for step, _ in record["pretraining"]["loss_curve"]] == [1, 2, 3]
    assert record["validation_greedy_hits"] == [{"folder": "made-up", "hits": 0, "rows": 2}]


def test_the_same_seed_gives_the_same_files_and_another_seed_other_weights(
    folder: DataFolder, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_base_llm([folder], tmp_path / name, pretrain_steps=2, batch_size=2, seed=seed)
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in "abc"}
    assert all(torch.equal(weights["a"][key], weights["b"][key]) for key in weights["a"])
    assert not any(
        torch.equal(weights["a"][k], weights["c"][k]) for k in weights["a"] if "proj" in k
    )
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_a_base_model_learns_from_training_rows_alone(folder: DataFolder, tmp_path: Path) -> None:
    def weights(name: str, *changed: Split) -> dict[str, torch.Tensor]:
        """Of a base model made from the folder with the histories of some splits turned around."""
        rows = {split: list(folder.rows(split)) for split in SPLITS}
        for split in changed:
            rows[split] = [Row(row.user, row.history[::-1], row.target) for row in rows[split]]
        data = write_folder(
            tmp_path / f"{name}-data",
            name="made-up",
            domain="movie",
            catalog=folder.catalog,
            rows=rows,
            split_rule="as that of another",
        )
        build_base_llm([data], tmp_path / name, pretrain_steps=2, batch_size=4)
        return load_file(tmp_path / name / "model.safetensors")

    plain, others, train = weights("a"), weights("b", "val", "test"), weights("c", "train")
    assert all(torch.equal(plain[key], others[key]) for key in plain)
    assert not all(torch.equal(plain[key], train[key]) for key in plain)


def test_building_leaves_the_global_generator_alone(folder: DataFolder, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_base_llm([folder], tmp_path / "llm", pretrain_steps=1, batch_size=2)
    assert torch.equal(torch.rand(4), expected)


def test_words_of_titles_and_the_placeholder_are_single_tokens(folder: DataFolder) -> None:
    tokenizer = train_tokenizer([folder], vocab_size=2048)
    tokens = tokenizer.tokenize(f" Amber Harbor{PLACEHOLDER}\nAnswer: Quiet Fox")
    assert tokens == ["ĠAmber", "ĠHarbor", PLACEHOLDER, "Ċ", "Answer", ":", "ĠQuiet", "ĠFox"]


def test_any_title_can_be_written_and_read_back(folder: DataFolder) -> None:
    tokenizer = train_tokenizer([folder], vocab_size=600)
    title = "Çelik — 東京 🎬 #1"
    assert tokenizer.decode(tokenizer(title)["input_ids"]) == title


@pytest.mark.parametrize(("preset", "millions"), [("tiny", 1.07), ("small", 59.0)])
def test_a_preset_has_the_size_that_is_promised(preset: str, millions: float) -> None:
    class Full:
        """A tokenizer whose vocabulary is as large as the preset allows."""

        eos_token_id, pad_token_id = 1, 0

        def __len__(self) -> int:
            return PRESETS[preset].vocab_size

    with torch.device("meta"):
        model = initialise_llama(PRESETS[preset], Full(), seed=0)  # type: ignore[arg-type]
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.005)
    assert model.config.head_dim % 16 == 0


@pytest.fixture(scope="module")
def pretrained(folder: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> BaseLLMResult:
    return build_base_llm(
        [folder], tmp_path_factory.mktemp("llm") / "llm", pretrain_steps=60, batch_size=16
    )


def greedy_answer(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    asked = torch.tensor([prompt])
    mask = torch.ones_like(asked)
    written = model.generate(asked, attention_mask=mask, max_new_tokens=6, do_sample=False)
    return written[0, len(prompt) :].tolist()


def test_pre_training_learns_to_answer_with_the_name_of_an_item(
    folder: DataFolder, pretrained: BaseLLMResult
) -> None:
    assert pretrained.pretraining is not None
    curve = [loss for _, loss in pretrained.pretraining.loss_curve]
    assert curve[0] == pytest.approx(math.log(pretrained.vocab_size), rel=0.05)
    assert curve[-1] < 0.5 * curve[0]
    model = AutoModelForCausalLM.from_pretrained(pretrained.path)
    tokenizer = load_tokenizer(pretrained.path)
    builder = PromptBuilder(tokenizer, folder.catalog, folder.domain)
    row, candidates = folder.ranked_rows("val")[0]
    answer = greedy_answer(model, builder.encode(row, candidates, answer=False).input_ids)
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() in folder.catalog.titles


def test_greedy_hits_are_the_rows_that_generation_answers_with_the_target(
    folder: DataFolder, pretrained: BaseLLMResult
) -> None:
    model = AutoModelForCausalLM.from_pretrained(pretrained.path)
    tokenizer = load_tokenizer(pretrained.path)
    builder = PromptBuilder(tokenizer, folder.catalog, folder.domain)
    dataset = RecommendationDataset(folder, "train", builder)
    rows = evenly_spaced(len(dataset), 40)
    hits = 0
    for index in rows:
        answer = builder.answer_ids(dataset.rows[index].target)
        hits += greedy_answer(model, dataset[index].input_ids[: -len(answer)]) == answer
    collator = Collator(tokenizer, len(folder.catalog))
    assert 0 < hits < len(rows)
    assert greedy_hits(model, dataset, collator, limit=40, batch_size=7) == (hits, len(rows))


def test_the_loss_is_the_mean_over_tokens_averaged_with_the_mean_over_answers() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = torch.full((2, 5), -100)
    labels[0, 3:], labels[1, 2] = 7, 7
    weights = token_weights(mask, labels, 0.25)
    real, answer = 0.75 / 6, 0.25 / 3
    both = real + answer
    expected = torch.tensor([[real, real, both, both], [real, both, 0, 0]])
    torch.testing.assert_close(weights, expected)
    assert float(weights.sum()) == pytest.approx(1)


def test_bfloat16_training_follows_float32_and_saves_float32_weights(
    folder: DataFolder, tmp_path: Path
) -> None:
    losses = {}
    for bf16 in (False, True):
        result = build_base_llm(
            [folder], tmp_path / str(bf16), pretrain_steps=12, batch_size=8, bf16=bf16
        )
        assert result.pretraining is not None
        losses[bf16] = [loss for _, loss in result.pretraining.loss_curve]
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.02)
    weights = load_file(tmp_path / "True" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    # Masters, not rounded copies: some weight is no bfloat16 number.
    assert any((weight != weight.bfloat16().float()).any() for weight in weights.values())


def test_a_batch_accumulated_in_pieces_trains_as_one_that_is_not(
    folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = []
    for limit in (10**6, 200):
        monkeypatch.setattr("ilora.pretraining.PIECE_TOKENS", limit)
        result = build_base_llm([folder], tmp_path / "llm", pretrain_steps=4, batch_size=9)
        assert result.pretraining is not None
        curves.append([loss for _, loss in result.pretraining.loss_curve])
    assert result.pretraining.tokens > 4 * 2 * 200  # several pieces a step
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def corpus(
    folder: DataFolder, steps: int, batch_size: int, ramp: float = 0.0, disguised: float = 0.0
) -> PretrainingCorpus:
    tokenizer = train_tokenizer([folder], vocab_size=2048)
    builder = PromptBuilder(tokenizer, folder.catalog, folder.domain, folder.window)
    dataset = RecommendationDataset(folder, "train", builder)
    collator = Collator(tokenizer, len(folder.catalog), folder.window)
    return PretrainingCorpus(
        [dataset],
        collator,
        steps=steps,
        batch_size=batch_size,
        ramp=ramp,
        disguised=disguised,
        seed=0,
    )


def test_the_corpus_has_as_many_batches_as_steps_and_each_is_full(folder: DataFolder) -> None:
    chunks = corpus(folder, steps=19, batch_size=4)
    sizes = [len(batch["input_ids"]) for chunk in chunks for batch in chunk]
    assert sizes == [4] * 19


def test_prompts_grow_over_the_ramp_while_the_tokens_of_a_batch_stay_alike(
    folder: DataFolder,
) -> None:
    chunks = list(corpus(folder, steps=80, batch_size=16, ramp=0.5))
    assert len(chunks) == 10
    prompts = [[len(batch["input_ids"]) for batch in chunk] for chunk in chunks]
    tokens = [float(sum(b["attention_mask"].sum() for b in chunk)) / 8 for chunk in chunks]
    longest = [max(b["input_ids"].shape[1] for b in chunk) for chunk in chunks]
    assert {len(set(sizes)) for sizes in prompts} == {1}
    assert prompts[0][0] > 1.2 * prompts[-1][0] == 1.2 * 16
    assert longest[0] < 0.8 * longest[-1]
    assert max(tokens) < 1.5 * min(tokens)


def test_prompts_are_full_from_the_end_of_the_ramp_on_and_always_without_one() -> None:
    full = PromptLength(num_candidates=20, max_history=10, batch_size=32)
    assert prompt_length(0.0, full, ramp=0.7) == PromptLength(3, 2, 94)
    assert prompt_length(0.35, full, ramp=0.7) == PromptLength(12, 6, 47)
    assert prompt_length(0.7, full, ramp=0.7) == full == prompt_length(0.0, full, ramp=0.0)


def test_an_epoch_of_the_corpus_shows_every_row_once_and_the_next_in_new_words(
    folder: DataFolder,
) -> None:
    rows = [row for row in folder.rows("train") if row.history]
    (batches,) = corpus(folder, steps=2, batch_size=len(rows))
    # Sorting by length mixes the two epochs of one chunk: together they show every row twice.
    histories = [tuple(row) for batch in batches for row in batch["histories"].tolist()]
    expected = [(len(folder.catalog),) * (10 - len(r.history)) + r.history for r in rows]
    assert sorted(histories) == sorted([*expected, *expected])
    prompts = {tuple(row) for batch in batches for row in batch["input_ids"].tolist()}
    assert len(prompts) > 1.5 * len(rows)


def test_a_chunk_depends_on_its_number_and_not_on_what_was_read_before(folder: DataFolder) -> None:
    read, fresh = (corpus(folder, steps=40, batch_size=8) for _ in range(2))
    chunks = list(read)
    for one, other in zip(chunks[2], fresh[2], strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])


def test_a_disguise_respells_every_title_alike_in_lists_and_answer(folder: DataFolder) -> None:
    tokenizer = train_tokenizer([folder], vocab_size=2048)
    builder = PromptBuilder(tokenizer, folder.catalog, folder.domain, folder.window)
    example = RecommendationDataset(folder, "val", builder)[0]
    ordinary = ordinary_ids(builder)
    other = disguise(example, builder, ordinary, np.random.default_rng(3))
    assert other.item_ids == example.item_ids
    assert not set(tokenizer.all_special_ids) & set(ordinary.tolist())

    def spelled(e: Example, item: int) -> list[list[int]]:
        length = len(builder.answer_ids(item)) - 1
        places = [at for at, i in enumerate(e.item_ids) if i == item]
        return [e.input_ids[at - length : at] for at in places]

    (target,) = spelled(other, folder.ranked_rows("val")[0][0].target)
    answer = [label for label in other.labels if label != -100]
    assert answer == [*target, tokenizer.eos_token_id]
    assert other.input_ids[-len(answer) :] == answer
    changed = [a != b for a, b in zip(example.input_ids, other.input_ids, strict=True)]
    items = {item for item in example.item_ids if item >= 0}
    titles = sum(len(s) for item in items for s in spelled(example, item)) + len(target)
    assert 0.9 * titles <= sum(changed) <= titles  # a random token can be the one it replaces


def test_a_share_of_the_corpus_is_disguised(folder: DataFolder) -> None:
    plain, mixed, all_ = (
        [t for chunk in corpus(folder, 8, 16, disguised=share) for b in chunk for t in b["labels"]]
        for share in (0.0, 0.5, 1.0)
    )
    same = [
        sum(torch.equal(a, b) for a, b in zip(plain, others, strict=True)) / len(plain)
        for others in (mixed, all_)
    ]
    assert 0.3 < same[0] < 0.7
    assert same[1] < 0.1


def test_a_folder_of_something_else_is_never_replaced(folder: DataFolder, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a base model"):
        build_base_llm([folder], tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_earlier_base_model_is_replaced(folder: DataFolder, tmp_path: Path) -> None:
    build_base_llm([folder], tmp_path / "llm", seed=0)
    build_base_llm([folder], tmp_path / "llm", seed=1)
    assert json.loads((tmp_path / "llm" / "base_llm.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "preset: 'huge'"),
        ({"pretrain_steps": -1}, "pretrain_steps: -1"),
        ({"pretrain_steps": 1, "batch_size": 0}, "batch_size: 0"),
        ({"pretrain_steps": 1, "learning_rate": 0.0}, "learning_rate: 0.0"),
        ({"pretrain_steps": 1, "answer_weight": 1.5}, "answer_weight: 1.5"),
        ({"pretrain_steps": 1, "ramp": -0.1}, "ramp: -0.1"),
        ({"pretrain_steps": 1, "disguised": 1.5}, "disguised: 1.5"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(
    folder: DataFolder, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_base_llm([folder], tmp_path / "llm", **options)
    assert not (tmp_path / "llm").exists()


def test_no_data_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one data folder"):
        build_base_llm([], tmp_path / "llm")
