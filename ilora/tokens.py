"""The tokenizer as the recommender needs it: a placeholder, a terminator and padding.

The placeholder ``<|item|>`` is one special token that follows every title of a prompt. Where a
prompt is hybrid its embedding is replaced by the projected embedding of the item, so the token
itself only marks the place and the language model's embedding matrix is never resized: the
placeholder's id may lie beyond the model's last row.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ilora.errors import InputError

PLACEHOLDER = "<|item|>"


def load_tokenizer(path_or_hub_id: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a language model and prepare it with :func:`prepare_tokenizer`.

    Args:
        path_or_hub_id: a folder holding tokenizer files, or a model id of the Hugging Face hub.

    Raises:
        InputError: nothing loadable is there, or the tokenizer has no end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path_or_hub_id))
    except (OSError, ValueError) as error:
        raise InputError(
            f"llm: no tokenizer could be loaded from {str(path_or_hub_id)!r}; give a folder with "
            "tokenizer files (`ilora base-llm build` makes one) or a hub id that can be reached"
        ) from error
    return prepare_tokenizer(tokenizer)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Add the placeholder at the end of the vocabulary and a padding token, where missing.

    Changes ``tokenizer`` in place and returns it; a second call changes nothing. Padding falls
    back to the end-of-sequence token: labels are masked by position, never by token id, so the
    two may share an id.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, so no answer could ever end.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"llm: the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token; set "
            "`eos_token` in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if PLACEHOLDER not in tokenizer.get_vocab():
        # One special token beside those that the tokenizer already has, which stay as they are.
        tokenizer.add_tokens([PLACEHOLDER], special_tokens=True)
    return tokenizer


def placeholder_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id of the placeholder in a prepared tokenizer.

    Raises:
        InputError: the tokenizer was not prepared.
    """
    token_id = tokenizer.get_vocab().get(PLACEHOLDER)
    if token_id is None:
        raise InputError(
            f"tokenizer: {PLACEHOLDER} is not in the vocabulary of {tokenizer.name_or_path!r}; "
            "pass the tokenizer through `ilora.tokens.prepare_tokenizer`"
        )
    return int(token_id)


def knows_placeholder(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the placeholder is of the tokenizer's own vocabulary, not one that was added to it.

    Then the language model was trained with it, as those of `ilora base-llm build` are.
    """
    return placeholder_id(tokenizer) < tokenizer.vocab_size


def special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Every text that the tokenizer turns into a control token wherever it occurs."""
    texts = {PLACEHOLDER, *tokenizer.all_special_tokens}
    texts |= {str(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))
