"""Rows as examples, examples as batches, on a small made-up data folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from ilora.data.catalog import Catalog
from ilora.data.collation import Batch, Collator, NegativeSampler, RecommendationDataset
from ilora.data.folder import DataFolder, write_folder
from ilora.data.prompts import Example, PromptBuilder
from ilora.data.sequences import UserSequence
from ilora.errors import InputError
from ilora.tokens import prepare_tokenizer

NUM_ITEMS = 40
TITLES = tuple(f"Lamp {item % 38}" for item in range(NUM_ITEMS))  # 38 and 39 repeat 0 and 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    rng = np.random.default_rng(5)
    sequences = [
        UserSequence(user, tuple(rng.permutation(NUM_ITEMS)[:8].tolist())) for user in range(20)
    ]
    path: Path = tmp_path_factory.mktemp("lamps") / "folder"
    catalog = Catalog(TITLES)
    return write_folder(path, name="lamps", domain="product", catalog=catalog, sequences=sequences)


@pytest.fixture(scope="module")
def builder(folder: DataFolder) -> PromptBuilder:
    words = ["<unk>", "<eos>", "A", "Products", "Someone", "Lamp", *map(str, range(38))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    return PromptBuilder(prepare_tokenizer(fast), folder.catalog, folder.domain, folder.window)


def collator(builder: PromptBuilder, side: str, **options: int) -> Collator:
    return Collator(builder.tokenizer, NUM_ITEMS, 10, side, **options)  # type: ignore[arg-type]


def test_a_training_list_has_the_target_and_nineteen_titles_not_in_the_history(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    dataset = RecommendationDataset(folder, "train", builder)
    for index, row in enumerate(dataset.rows):
        candidates = dataset.candidates(index)
        assert len(candidates) == 20
        assert row.target in candidates
        assert len({TITLES[item] for item in candidates}) == 20
        seen = {TITLES[item] for item in row.history} - {TITLES[row.target]}
        assert not seen & {TITLES[item] for item in candidates}


def test_training_draws_depend_on_seed_epoch_and_row_alone(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    first = RecommendationDataset(folder, "train", builder, seed=1)
    again = RecommendationDataset(folder, "train", builder, seed=1)
    forwards = [first[index] for index in range(len(first))]
    backwards = [again[index] for index in reversed(range(len(again)))]
    assert forwards == backwards[::-1]
    other = RecommendationDataset(folder, "train", builder, seed=2)
    assert [other[index] for index in range(len(other))] != forwards
    first.set_epoch(1)
    assert [first[index] for index in range(len(first))] != forwards
    first.set_epoch(0)
    assert [first[index] for index in range(len(first))] == forwards


def test_workers_give_the_same_examples_as_the_main_process(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    dataset = RecommendationDataset(folder, "train", builder, seed=3)
    loader: DataLoader[Example] = DataLoader(dataset, batch_size=None, num_workers=1)
    assert list(loader) == [dataset[index] for index in range(len(dataset))]


def test_the_target_takes_every_place_and_rows_get_every_wording(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    dataset = RecommendationDataset(folder, "train", builder, num_candidates=4)
    numbers = range(len(dataset))
    places = {dataset.candidates(i).index(dataset.rows[i].target) for i in numbers}
    assert places == set(range(4))
    assert len({dataset[i].input_ids[0] for i in numbers}) == 3


def test_a_short_example_shows_fewer_candidates_and_the_latest_of_the_history(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    dataset = RecommendationDataset(folder, "train", builder)
    places = set()
    for index, row in enumerate(dataset.rows):
        example = dataset.short_example(index, 3, 2)
        items = [item for item in example.item_ids if item >= 0]
        assert example.history == row.history[-2:]
        assert items[:-3] == list(example.history)
        places.add(items[-3:].index(row.target))
    assert places == {0, 1, 2}
    assert dataset.short_example(4, 20, 10) == dataset[4]


def test_evaluation_rows_show_the_frozen_candidates_in_the_first_wording(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    dataset = RecommendationDataset(folder, "test", builder, answer=False)
    expected = [
        builder.encode(row, candidates, 0, answer=False)
        for row, candidates in folder.ranked_rows("test")
    ]
    assert [dataset[index] for index in range(len(dataset))] == expected
    assert dataset.candidates(0) == folder.ranked_rows("test")[0][1]


def test_a_longer_minimum_history_leaves_rows_out_and_other_draws_alone(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    every = RecommendationDataset(folder, "train", builder)
    longer = RecommendationDataset(folder, "train", builder, min_history=3)
    assert min(len(row.history) for row in every.rows) == 1
    assert min(len(row.history) for row in longer.rows) == 3
    kept = [every[i] for i, row in enumerate(every.rows) if len(row.history) >= 3]
    assert [longer[i] for i in range(len(longer))] == kept


def test_a_minimum_history_that_no_row_has_is_refused(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    with pytest.raises(InputError, match=r"min_history: no train row of .* has 11"):
        RecommendationDataset(folder, "train", builder, min_history=11)


def test_a_builder_of_another_catalogue_is_refused(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    other = PromptBuilder(builder.tokenizer, Catalog(("Lamp 1", "Lamp 2")), "product")
    with pytest.raises(InputError, match="builder: its catalogue of 2 items"):
        RecommendationDataset(folder, "train", other)


def test_one_candidate_is_refused(folder: DataFolder, builder: PromptBuilder) -> None:
    with pytest.raises(InputError, match="num_candidates: 1"):
        RecommendationDataset(folder, "train", builder, num_candidates=1)


def test_negatives_are_uniform_over_the_titles_that_are_left() -> None:
    sampler = NegativeSampler(Catalog(("a", "b", "c", "d", "A")))
    rng = np.random.default_rng(0)
    drawn = [item for _ in range(3000) for item in sampler.draw((1,), 2, rng)]
    counts = np.bincount(drawn, minlength=5)
    assert counts[1] == 0
    # Titles a, c, d: 2000 each, ± 4 standard deviations of the binomial; a's two items share.
    for count in (counts[0] + counts[4], counts[2], counts[3]):
        assert abs(count - 2000) < 4 * np.sqrt(3000 * 2 / 9)
    assert abs(counts[0] - counts[4]) < 4 * np.sqrt(2000)


def test_a_small_catalogue_gives_a_shorter_list_and_an_exhausted_one_is_refused() -> None:
    sampler = NegativeSampler(Catalog(("a", "b", "c")))
    rng = np.random.default_rng(0)
    assert sorted(sampler.draw((1,), 19, rng)) == [0, 2]
    with pytest.raises(InputError, match="3 items leave no negative"):
        sampler.draw((0, 1, 2), 19, rng)


def unpadded(batch: Batch, name: str) -> list[list[int]]:
    kept = batch["attention_mask"].bool()
    return [row[mask].tolist() for row, mask in zip(batch[name], kept, strict=True)]  # type: ignore[literal-required]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_holds_every_example_whole_on_either_side(
    folder: DataFolder, builder: PromptBuilder, side: str
) -> None:
    dataset = RecommendationDataset(folder, "train", builder)
    examples = [dataset[index] for index in (0, 3, 6)]
    batch = collator(builder, side)(examples)
    for name in ("input_ids", "item_ids", "labels"):
        assert unpadded(batch, name) == [getattr(example, name) for example in examples]
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["labels"][padding] == -100).all()
    assert (batch["item_ids"][padding] == -1).all()
    assert (batch["input_ids"][padding] == builder.tokenizer.pad_token_id).all()
    assert {value.dtype for value in batch.values()} == {torch.int64}  # type: ignore[attr-defined]


def test_left_padding_ends_every_prompt_at_the_last_position(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    dataset = RecommendationDataset(folder, "val", builder, answer=False)
    examples = [dataset[0], builder.encode(dataset.rows[1], (1, 2), answer=False)]
    batch = collator(builder, "left")(examples)
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert batch["input_ids"][:, -1].tolist() == [example.input_ids[-1] for example in examples]


def test_the_answers_terminator_is_learnt_although_it_is_also_the_padding_token(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    tokenizer = builder.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    dataset = RecommendationDataset(folder, "train", builder)
    batch = collator(builder, "right", multiple=64)([dataset[0], dataset[6]])
    assert (batch["labels"] == tokenizer.eos_token_id).sum(dim=1).tolist() == [1, 1]


def test_histories_are_left_padded_with_the_number_of_items(
    folder: DataFolder, builder: PromptBuilder
) -> None:
    dataset = RecommendationDataset(folder, "train", builder)
    batch = collator(builder, "right")([dataset[0], dataset[2]])
    for row, history in zip(batch["histories"], (dataset.rows[0], dataset.rows[2]), strict=True):
        shown = list(history.history)
        assert row.tolist() == [NUM_ITEMS] * (10 - len(shown)) + shown


def test_lengths_are_rounded_up_to_a_multiple(folder: DataFolder, builder: PromptBuilder) -> None:
    dataset = RecommendationDataset(folder, "train", builder)
    exact = collator(builder, "right")([dataset[5]])["input_ids"].shape[1]
    rounded = collator(builder, "right", multiple=64)([dataset[5]])["input_ids"].shape[1]
    assert exact == len(dataset[5].input_ids)
    assert rounded == -(-exact // 64) * 64 != exact


def test_an_unknown_side_and_a_multiple_of_nothing_are_refused(builder: PromptBuilder) -> None:
    with pytest.raises(InputError, match="side: 'middle'"):
        collator(builder, "middle")
    with pytest.raises(InputError, match="multiple: 0"):
        collator(builder, "left", multiple=0)
