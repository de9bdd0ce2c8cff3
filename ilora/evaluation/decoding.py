"""Free greedy decoding: what does the model answer when it may answer anything?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ilora.data.collation import Batch, Collator, RecommendationDataset
from ilora.model import ILoRARecommender


def decode_answers(
    model: ILoRARecommender,
    rows: RecommendationDataset,
    collator: Collator,
    *,
    batch_size: int,
) -> Iterator[list[str]]:
    """Yield the greedy answers of one batch after another, in the rows' order.

    An answer may be one token longer than the longest candidate title of its row, terminator
    included: whatever goes on after that is none of them. So it does not depend on its batch.

    Args:
        rows: a dataset made with ``answer=False``.
        collator: one that pads on the left.
        batch_size: prompts at once.
    """
    device = model.llm.device
    for start in range(0, len(rows), batch_size):
        indices = range(start, min(start + batch_size, len(rows)))
        batch = to_device(collator([rows[i] for i in indices]), device)
        limits = [
            1 + max(len(rows.builder.answer_ids(item)) for item in rows.candidates(i))
            for i in indices
        ]
        tokens = model.generate(batch, max_new_tokens=max(limits)).tolist()
        own = [answer[:limit] for answer, limit in zip(tokens, limits, strict=True)]
        texts = model.tokenizer.batch_decode(own, skip_special_tokens=True)
        yield [text.strip() for text in texts]


def to_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Move every tensor of a batch."""
    return {name: tensor.to(device) for name, tensor in batch.items() if isinstance(tensor, Tensor)}
