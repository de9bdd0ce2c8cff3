"""Prompts in words and in tokens, for the two families of tokenizers that language models use."""

from __future__ import annotations

import itertools
import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ilora.data.catalog import Catalog
from ilora.data.manifest import DOMAINS
from ilora.data.prompts import ENDING, PromptBuilder
from ilora.data.sequences import Row
from ilora.data.wordings import WORDINGS
from ilora.errors import InputError
from ilora.tokens import PLACEHOLDER, placeholder_id, prepare_tokenizer

TITLES = (
    "Quiet Harbor",
    "Quiet Harbor 2",
    "Quiet",
    'Amber, Fox :: Return; Part "II"',
    "Çelik Über Naïve 東京",
    "Quiet Harbor",
    "12 Owls",
    "...And Then",
    f"The {PLACEHOLDER} Affair",
    "Red<eos>Mill",
)
CATALOG = Catalog(TITLES)
ROW = Row(user=3, history=(0, 3, 8), target=1)
CANDIDATES = (5, 1, 9, 4)


def byte_level() -> PreTrainedTokenizerBase:
    """As GPT-2, Llama 3 and Qwen: bytes, a space belongs to the word after it, no start token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TITLES, "oldest first: Answer:"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def sentence_piece() -> PreTrainedTokenizerBase:
    """As Llama 2 and Mistral: ▁ for spaces, byte fallback, a start token and a closing one."""
    specials = ["<unk>", "<bos>", "<eos>"]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=specials, show_progress=False)
    learner.train_from_iterator([f" {title}" for title in TITLES[:3]], trainer)
    learnt = json.loads(learner.to_str())["model"]
    learnt["vocab"] |= {f"<0x{byte:02X}>": len(learnt["vocab"]) + byte for byte in range(256)}
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = Tokenizer(
        models.BPE(learnt["vocab"], merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture(params=[byte_level, sentence_piece], ids=["byte_level", "sentence_piece"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return prepare_tokenizer(request.param())


@pytest.fixture
def builder(tokenizer: PreTrainedTokenizerBase) -> PromptBuilder:
    return PromptBuilder(tokenizer, CATALOG, "movie")


def test_the_text_lists_history_and_candidates_in_order_and_ends_with_the_answer(
    builder: PromptBuilder,
) -> None:
    text = builder.text(Row(None, (0, 6), 1), (2, 1), wording=0)
    assert text == (
        "A viewer watched these movies, oldest first: Quiet Harbor<|item|> 12 Owls<|item|>\n"
        "Which movie is watched next? Reply with one title from: Quiet<|item|> "
        "Quiet Harbor 2<|item|>\nAnswer:"
    )


def test_every_listed_title_has_its_item_at_its_own_placeholder(builder: PromptBuilder) -> None:
    example = builder.encode(ROW, CANDIDATES, answer=True)
    places = [i for i, item in enumerate(example.item_ids) if item >= 0]
    assert [example.item_ids[i] for i in places] == [*ROW.history, *CANDIDATES]
    mark = placeholder_id(builder.tokenizer)
    assert [i for i, token in enumerate(example.input_ids) if token == mark] == places
    # Between two placeholders stands the title of the second and nothing else.
    for before, here in itertools.pairwise(places[3:]):
        title = builder.tokenizer.decode(example.input_ids[before + 1 : here])
        assert title.strip() == builder.titles[example.item_ids[here]]


def test_the_three_lists_are_equally_long_and_labels_cover_only_the_answer(
    builder: PromptBuilder,
) -> None:
    example = builder.encode(ROW, CANDIDATES, answer=True)
    answer = builder.answer_ids(ROW.target)
    assert len(example.input_ids) == len(example.item_ids) == len(example.labels)
    assert example.input_ids[-len(answer) :] == example.labels[-len(answer) :] == answer
    assert set(example.labels[: -len(answer)]) == {-100}
    assert set(example.item_ids[-len(answer) :]) == {-1}


def test_a_training_example_continues_the_prompt_that_generation_is_given(
    builder: PromptBuilder,
) -> None:
    asked = builder.encode(ROW, CANDIDATES, wording=2, answer=False)
    taught = builder.encode(ROW, CANDIDATES, wording=2, answer=True)
    assert asked.input_ids + builder.answer_ids(ROW.target) == taught.input_ids
    assert set(asked.labels) == {-100}


@pytest.mark.parametrize("item", range(len(TITLES)))
def test_an_answer_decodes_to_its_title_and_ends_with_the_terminator(
    builder: PromptBuilder, item: int
) -> None:
    ids = builder.answer_ids(item)
    assert ids.count(builder.tokenizer.eos_token_id) == 1
    assert ids[-1] == builder.tokenizer.eos_token_id
    text = builder.tokenizer.decode(ids, skip_special_tokens=True)
    assert text.strip() == builder.titles[item]


def test_answer_tokens_are_those_of_the_title_read_in_the_prompt(builder: PromptBuilder) -> None:
    prompt = builder.text(ROW, CANDIDATES)
    asked = builder.encode(ROW, CANDIDATES, answer=False).input_ids
    whole = builder.tokenizer(f"{prompt} {TITLES[1]}", add_special_tokens=False)["input_ids"]
    start = len(asked) - len(builder.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert asked[start:] + builder.answer_ids(1)[:-1] == whole


def test_a_title_reads_the_same_in_the_candidates_and_in_the_answer(builder: PromptBuilder) -> None:
    example = builder.encode(Row(None, (0,), 1), (2, 1), answer=False)
    first, last = [i for i, item in enumerate(example.item_ids) if item >= 0][1:]
    assert example.input_ids[first + 1 : last] == builder.answer_ids(1)[:-1]


def test_the_terms_of_the_tokenizer_inside_a_title_are_plain_text(builder: PromptBuilder) -> None:
    assert builder.titles[8] == "The < |item|> Affair"
    assert builder.titles[9] == "Red< eos>Mill"
    example = builder.encode(Row(None, (8, 9), 8), (9, 8), answer=True)
    assert [item for item in example.item_ids if item >= 0] == [8, 9, 9, 8]
    assert example.input_ids.count(builder.tokenizer.eos_token_id) == 1


def test_only_a_start_token_is_added_even_where_the_template_closes_texts() -> None:
    for make, start in ((byte_level, []), (sentence_piece, [1])):
        tokenizer = prepare_tokenizer(make())
        builder = PromptBuilder(tokenizer, CATALOG, "item")
        ids = builder.encode(ROW, CANDIDATES, answer=False).input_ids
        plain = tokenizer(builder.text(ROW, CANDIDATES), add_special_tokens=False)["input_ids"]
        assert ids == start + plain


def test_a_history_longer_than_the_window_keeps_the_latest(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    builder = PromptBuilder(tokenizer, CATALOG, "game", window=2)
    example = builder.encode(Row(None, (0, 1, 6, 2), 7), (7,), answer=False)
    assert example.history == (6, 2)
    assert [item for item in example.item_ids if item >= 0] == [6, 2, 7]


def test_an_empty_history_gets_a_sentence_of_its_own(builder: PromptBuilder) -> None:
    row = Row(None, (), 1)
    assert builder.text(row, (1, 2)).startswith("A viewer has not watched any movie yet.\nWhich")
    example = builder.encode(row, (1, 2), answer=False)
    assert [item for item in example.item_ids if item >= 0] == [1, 2]
    assert example.history == ()


def test_an_item_may_occur_in_history_and_candidates_and_more_than_once(
    builder: PromptBuilder,
) -> None:
    example = builder.encode(Row(None, (1, 1, 5), 1), (0, 5, 1), answer=False)
    assert [item for item in example.item_ids if item >= 0] == [1, 1, 5, 0, 5, 1]


def test_every_domain_of_a_data_folder_has_three_different_wordings() -> None:
    assert set(WORDINGS) == set(DOMAINS)
    parts = [
        part
        for wordings in WORDINGS.values()
        for wording in wordings
        for part in (wording.history, wording.no_history, wording.candidates)
    ]
    assert len(set(parts)) == 3 * 3 * len(DOMAINS)


def test_the_words_around_the_titles_stay_short() -> None:
    for wordings in WORDINGS.values():
        for wording in wordings:
            words = f"{wording.history} {wording.candidates} {ENDING}".split()
            assert len(words) <= 20


@pytest.mark.parametrize("wording", [-1, 3])
def test_an_unknown_wording_is_refused(builder: PromptBuilder, wording: int) -> None:
    with pytest.raises(InputError, match=f"wording: {wording}"):
        builder.text(ROW, CANDIDATES, wording)


@pytest.mark.parametrize("item", [-1, len(TITLES)])
def test_an_item_outside_the_catalogue_is_refused(builder: PromptBuilder, item: int) -> None:
    for row, candidates in ((ROW, (0, item)), (Row(None, (item,), 1), (0, 1))):
        with pytest.raises(InputError, match=f"item: {item} is not in the catalogue"):
            builder.encode(row, candidates, answer=False)
    with pytest.raises(InputError, match=f"item: {item} is not in the catalogue"):
        builder.answer_ids(item)


def test_an_unknown_domain_and_an_empty_window_are_refused(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(InputError, match="domain: 'book'"):
        PromptBuilder(tokenizer, CATALOG, "book")
    with pytest.raises(InputError, match="window: 0"):
        PromptBuilder(tokenizer, CATALOG, "movie", window=0)


def test_a_tokenizer_that_was_not_prepared_is_refused() -> None:
    with pytest.raises(InputError, match="prepare_tokenizer"):
        PromptBuilder(byte_level(), CATALOG, "movie")


def test_a_tokenizer_that_merges_the_title_into_the_ending_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    alphabet = sorted(set("".join(TITLES)) | set("\nAnswer: "))
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator([f"{ENDING} Quiet"] * 9, trainer)  # no words: all one token
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    builder = PromptBuilder(prepare_tokenizer(fast), CATALOG, "movie")
    with pytest.raises(InputError, match="merges the title 'Quiet'"):
        builder.answer_ids(2)


def test_prompts_of_titles_alone_hold_no_placeholder_and_no_item(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    builder = PromptBuilder(tokenizer, CATALOG, "movie", placeholders=False)
    text = builder.text(ROW, CANDIDATES)
    assert PLACEHOLDER not in text
    assert " Quiet Harbor; Amber" in text
    assert text.endswith(f" {builder.titles[4]};{ENDING}")
    example = builder.encode(ROW, CANDIDATES, answer=True)
    assert placeholder_id(tokenizer) not in example.input_ids
    assert set(example.item_ids) == {-1}
    assert len(example.item_ids) == len(example.input_ids) == len(example.labels)
    assert example.history == ROW.history
    hybrid = PromptBuilder(tokenizer, CATALOG, "movie")
    assert builder.answer_ids(4) == hybrid.answer_ids(4)
