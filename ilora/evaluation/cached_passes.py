"""Candidates scored without a block mask: after a shared key-value cache, or each alone.

These take what any causal language model can do, and are slower than
:mod:`ilora.evaluation.one_pass`. Both return float64 ``[C]`` on the CPU for every user.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ilora.data.collation import Collator
from ilora.data.prompts import IGNORED_LABEL, NO_ITEM, Example
from ilora.evaluation.decoding import to_device
from ilora.model import ILoRARecommender
from ilora.positions import require_room


@torch.inference_mode()
def score_after_shared_cache(
    model: ILoRARecommender,
    collator: Collator,
    prompts: Sequence[Example],
    answers: Sequence[Sequence[Sequence[int]]],
    batch_size: int = 32,
) -> list[Tensor]:
    """Read each prompt once, repeat its cache, and go on with ``batch_size`` candidates at a time."""
    return [
        _score_user(model, collator, prompt, own, batch_size)
        for prompt, own in zip(prompts, answers, strict=True)
    ]


def _score_user(
    model: ILoRARecommender,
    collator: Collator,
    prompt: Example,
    answers: Sequence[Sequence[int]],
    batch_size: int,
) -> Tensor:
    batch = to_device(collator([prompt]), model.llm.device)
    mask, histories = batch["attention_mask"], batch["histories"]
    require_room(model.llm.config, mask, max(map(len, answers)) - 1)
    read = model.llm(
        inputs_embeds=model.embed(batch["input_ids"], batch["item_ids"]),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        gates=model.gates(histories),
        use_cache=True,
        logits_to_keep=1,
    )
    first = read.logits[0, -1].float().log_softmax(-1)  # [V]
    sums = first[[answer[0] for answer in answers]].double()
    for start in range(0, len(answers), batch_size):
        some = answers[start : start + batch_size]
        width = max(len(answer) for answer in some) - 1
        if width:
            rows = [[*answer, *[IGNORED_LABEL] * (width + 1 - len(answer))] for answer in some]
            tokens = torch.tensor(rows, device=mask.device)
            told = _continue(model, read.past_key_values, mask, histories, tokens)
            sums[start : start + len(some)] += told
    return sums.cpu()


def _continue(
    model: ILoRARecommender, cache: object, mask: Tensor, histories: Tensor, tokens: Tensor
) -> Tensor:
    """Log-likelihood of ``tokens [n, W]`` after their first, float64 ``[n]``; -100 is padding."""
    repeated = copy.deepcopy(cache)  # the next candidates start from the prompt again
    repeated.batch_repeat_interleave(len(tokens))  # type: ignore[attr-defined]
    inputs, wanted = tokens[:, :-1], tokens[:, 1:]
    there = inputs.ne(IGNORED_LABEL) & wanted.ne(IGNORED_LABEL)
    ids = inputs.masked_fill(~there, 0)
    columns = torch.arange(ids.shape[1], device=ids.device)
    logits = model.llm(
        inputs_embeds=model.embed(ids, torch.full_like(ids, NO_ITEM)),
        attention_mask=torch.cat([mask.expand(len(ids), -1), there.long()], 1),
        position_ids=(mask.sum() + columns).expand(len(ids), -1),
        past_key_values=repeated,
        gates=model.gates(histories.expand(len(ids), -1)),
        use_cache=True,
    ).logits.float()
    told = logits.log_softmax(-1).gather(2, wanted.masked_fill(~there, 0)[..., None])[..., 0]
    return told.double().masked_fill(~there, 0).sum(1)


@torch.inference_mode()
def score_separately(
    model: ILoRARecommender,
    collator: Collator,
    prompts: Sequence[Example],
    answers: Sequence[Sequence[Sequence[int]]],
    batch_size: int = 32,
) -> list[Tensor]:
    """A pass of its own for every candidate, prompt included: what the other ways must agree with.

    Only answers of one length share a batch. Nothing is padded, so this is right for models whose
    results padding changes: recurrent ones, or those that count positions by columns.
    """
    device = model.llm.device
    scores = []
    for prompt, own in zip(prompts, answers, strict=True):
        sums = torch.empty(len(own), dtype=torch.float64)
        for some in _of_one_length(own, batch_size):
            examples = [with_answer(prompt, own[candidate]) for candidate in some]
            told, _ = model.answer_log_probs(to_device(collator(examples), device))
            sums[some] = told.double().cpu()
        scores.append(sums)
    return scores


def _of_one_length(answers: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """The indices of all answers, at most ``batch_size`` of one length at a time."""
    by_length: dict[int, list[int]] = {}
    for index, answer in enumerate(answers):
        by_length.setdefault(len(answer), []).append(index)
    for same in by_length.values():
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]


def with_answer(prompt: Example, answer_ids: Sequence[int]) -> Example:
    """The prompt continued by the answer that is to be scored."""
    return Example(
        input_ids=[*prompt.input_ids, *answer_ids],
        item_ids=prompt.item_ids + [NO_ITEM] * len(answer_ids),
        labels=[IGNORED_LABEL] * len(prompt.input_ids) + [*answer_ids],
        history=prompt.history,
    )
