"""Does a prompt fit into a language model's positions?

Past its last position a model with learned ones (GPT-2, OPT) fails, on a GPU in words that name nothing,
and a model with rotary ones answers from where it was never trained.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PretrainedConfig

from ilora.errors import InputError


def require_room(config: PretrainedConfig, attention_mask: Tensor, more: int = 0) -> None:
    """Raise `InputError` if the longest row, and ``more`` tokens after it, need too many positions.

    Args:
        config: the language model's; one that names no ``max_position_embeddings`` has no limit.
        attention_mask: ``[B, S]``. It is only looked into where its width leaves a doubt, so that
            a GPU need not be waited for.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None or attention_mask.shape[1] + more <= limit:
        return
    length = int(attention_mask.sum(1).max()) + more
    if length > limit:
        raise InputError(
            f"llm: a prompt with its answer takes {length} tokens, and the language model has "
            f"{limit} positions; choose a model with more, or build the data with a smaller --window"
        )
