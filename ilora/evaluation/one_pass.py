"""All candidates of several users from one forward pass.

    [padding | prompt | candidate 1 | candidate 2 | … | candidate C | padding]

A candidate's tokens see the prompt and their own candidate, never another one, and take the
positions they would have if it stood alone: a prompt of n tokens is followed by n, n + 1, … in
every candidate. So each candidate gets the likelihood of a pass of its own, to rounding, and the
prompt is read once. A row of the batch is one user with his own mixture of experts.

The mask is an explicit additive one, ``[B, 1, T, T]``, which transformers hands to SDPA and eager
attention as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ilora.data.collation import Batch, Collator
from ilora.data.prompts import NO_ITEM, Example
from ilora.evaluation.decoding import to_device
from ilora.model import ILoRARecommender
from ilora.positions import require_room

PADDING, PROMPT = -1, 0  # segments; candidates count from 1


@dataclass(frozen=True)
class Packed:
    """Prompts of B users, each followed by its candidates; T = S + L columns.

    Attributes:
        input_ids, item_ids: ``[B, T]``; the last token of an answer predicts nothing and is not in.
        positions: ``[B, T]``, as in a pass of one candidate alone.
        segments: ``[B, T]``: -1 padding, 0 the prompt, c the c-th candidate counted from 1.
        width: L, the columns of the candidates.
    """

    input_ids: Tensor
    item_ids: Tensor
    positions: Tensor
    segments: Tensor
    width: int

    def visible(self) -> Tensor:
        """``[B, 1, T, T]``, bool: which column (last) a column (before it) may look at.

        Every column sees itself, so that the softmax of padding has something to sum.
        """
        own, other = self.segments[:, :, None], self.segments[:, None, :]
        columns = torch.arange(self.segments.shape[1], device=self.segments.device)
        earlier = columns[:, None] >= columns
        sees = earlier & (other != PADDING) & ((other == PROMPT) | (other == own))
        return (sees | (columns[:, None] == columns))[:, None]


def pack(batch: Batch, answers: Sequence[Sequence[Sequence[int]]]) -> Packed:
    """Put the tokens of every user's answers, their last ones left out, behind his prompt.

    Args:
        batch: prompts padded on the left.
        answers: for each user, for each candidate, its tokens with the terminator.
    """
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = [_tail(own, length) for own, length in zip(answers, lengths, strict=True)]
    width = max(len(tokens) for tokens, _, _ in rows)

    def padded(part: int, filler: int) -> Tensor:
        values = [row[part] + [filler] * (width - len(row[part])) for row in rows]
        return torch.tensor(values, dtype=torch.int64).reshape(len(rows), width)

    prompt = batch["attention_mask"]
    return Packed(
        input_ids=torch.cat([batch["input_ids"], padded(0, 0)], 1),
        item_ids=torch.nn.functional.pad(batch["item_ids"], (0, width), value=NO_ITEM),
        positions=torch.cat([(prompt.cumsum(1) - 1).clamp(min=0), padded(1, 0)], 1),
        segments=torch.cat([prompt - 1, padded(2, PADDING)], 1),
        width=width,
    )


@torch.inference_mode()
def score_in_one_pass(
    model: ILoRARecommender,
    collator: Collator,
    prompts: Sequence[Example],
    answers: Sequence[Sequence[Sequence[int]]],
) -> list[Tensor]:
    """Log-likelihood of every candidate of every user: float64 ``[C]`` each, on the CPU."""
    device, batch = model.llm.device, collator(prompts)
    longest = max(len(answer) for own in answers for answer in own)
    require_room(model.llm.config, batch["attention_mask"], longest - 1)
    packed = pack(batch, answers)
    embeds = model.embed(packed.input_ids.to(device), packed.item_ids.to(device))
    hidden = torch.finfo(embeds.dtype).min
    visible = packed.visible().to(device)
    # The last column of the prompt predicts every candidate's first token.
    logits = model.llm(
        inputs_embeds=embeds,
        attention_mask=torch.zeros_like(visible, dtype=embeds.dtype).masked_fill(~visible, hidden),
        position_ids=packed.positions.to(device),
        gates=model.gates(to_device(batch, device)["histories"]),
        use_cache=False,
        logits_to_keep=packed.width + 1,
    ).logits  # [B, 1 + L, V]
    return [_sums(row, own) for row, own in zip(logits, answers, strict=True)]


def _tail(answers: Sequence[Sequence[int]], start: int) -> tuple[list[int], list[int], list[int]]:
    """Tokens, positions and segments of one user's candidates, one after another."""
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    for number, answer in enumerate(answers, start=1):
        tokens += answer[:-1]
        positions += range(start, start + len(answer) - 1)
        segments += [number] * (len(answer) - 1)
    return tokens, positions, segments


def _sums(logits: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
    """One user's ``[1 + L, V]`` logits -> the log-likelihood of each of his candidates."""
    columns: list[int] = []
    tokens: list[int] = []
    owners: list[int] = []
    column = 1
    for number, answer in enumerate(answers):
        columns += [0, *range(column, column + len(answer) - 1)]
        tokens += answer
        owners += [number] * len(answer)
        column += len(answer) - 1
    at, wanted, owner = (torch.tensor(v, device=logits.device) for v in (columns, tokens, owners))
    wide = logits.float()
    told = wide[at, wanted] - wide.logsumexp(-1)[at]
    return torch.zeros(len(answers), dtype=torch.float64).index_add(
        0, owner.cpu(), told.double().cpu()
    )
