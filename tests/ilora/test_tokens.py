"""What is added to a tokenizer, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ilora.errors import InputError
from ilora.tokens import (
    PLACEHOLDER,
    load_tokenizer,
    placeholder_id,
    prepare_tokenizer,
    special_texts,
)


def words(**specials: str) -> PreTrainedTokenizerBase:
    vocabulary = {"<unk>": 0, "<eos>": 1, "<pad>": 2, "fox": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **specials)


def test_the_placeholder_is_one_token_after_the_last_of_the_vocabulary() -> None:
    tokenizer = prepare_tokenizer(words(eos_token="<eos>"))
    assert placeholder_id(tokenizer) == 4
    assert tokenizer(f"fox{PLACEHOLDER} fox")["input_ids"] == [3, 4, 3]


def test_padding_falls_back_to_the_terminator_and_is_kept_where_there_is_one() -> None:
    assert prepare_tokenizer(words(eos_token="<eos>")).pad_token_id == 1
    assert prepare_tokenizer(words(eos_token="<eos>", pad_token="<pad>")).pad_token_id == 2


def test_preparing_twice_changes_nothing() -> None:
    tokenizer = prepare_tokenizer(words(eos_token="<eos>"))
    before = (tokenizer.get_vocab(), tokenizer.special_tokens_map)
    prepare_tokenizer(tokenizer)
    assert (tokenizer.get_vocab(), tokenizer.special_tokens_map) == before


def test_special_tokens_that_were_there_stay_special() -> None:
    tokenizer = words(eos_token="<eos>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    prepare_tokenizer(tokenizer)
    assert {"<|turn|>", PLACEHOLDER, "<eos>"} <= set(special_texts(tokenizer))
    assert tokenizer.decode([5, 4, 3], skip_special_tokens=True).strip() == "fox"


def test_a_tokenizer_without_terminator_is_refused() -> None:
    with pytest.raises(InputError, match="no end-of-sequence token"):
        prepare_tokenizer(words())


def test_an_unprepared_tokenizer_has_no_placeholder_id() -> None:
    with pytest.raises(InputError, match="prepare_tokenizer"):
        placeholder_id(words(eos_token="<eos>"))


def test_a_saved_tokenizer_loads_with_the_same_placeholder(tmp_path: Path) -> None:
    prepare_tokenizer(words(eos_token="<eos>")).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert placeholder_id(loaded) == 4
    assert loaded(f"fox{PLACEHOLDER}")["input_ids"] == [3, 4]


def test_a_folder_without_a_tokenizer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer could be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
