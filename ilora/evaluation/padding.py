"""Does padding on the left change what a language model says?

It must not: a user's answer would depend on who else is in the batch. Attention with a mask and
positions that count the tokens leave padding out. A recurrent model may read it, and one whose
positions count columns (BART's decoder) is shifted by it. Such a model answers one prompt at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ilora.data.collation import Collator
from ilora.data.prompts import NO_ITEM, Example
from ilora.evaluation.decoding import to_device
from ilora.evaluation.ranking import TOLERANCE, TOLERANCES
from ilora.model import ILoRARecommender

PADDING = 8  # tokens
LIKELIEST = 10  # tokens, those that an answer may go on with


@torch.inference_mode()
def padding_shows(model: ILoRARecommender, collator: Collator, prompt: Example) -> bool:
    """Whether the likeliest next tokens get other log-probabilities, beyond rounding, after padding."""
    alone = to_device(collator([prompt]), model.llm.device)
    del alone["labels"]
    fillers = {"input_ids": model.tokenizer.pad_token_id, "attention_mask": 0, "item_ids": NO_ITEM}
    padded = alone | {
        name: F.pad(alone[name], (PADDING, 0), value=filler) for name, filler in fillers.items()
    }
    one, other = (model(**batch).logits[0, -1].float().log_softmax(-1) for batch in (alone, padded))
    likeliest = one.topk(min(LIKELIEST, len(one))).indices
    off = float((one - other)[likeliest].abs().mean())  # of one token rounding alone can be as much
    return off > TOLERANCES.get(model.llm.dtype, TOLERANCE)
