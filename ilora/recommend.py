"""One recommendation: a history in, the best candidates out, with the mixture that chose them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ilora.data.candidates import NUM_CANDIDATES
from ilora.data.catalog import Catalog
from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.prompts import Example, PromptBuilder
from ilora.data.sequences import Row
from ilora.encoders import pad_histories
from ilora.errors import InputError
from ilora.evaluation.decoding import decode_answers
from ilora.evaluation.ranking import score_candidates
from ilora.evaluation.titles import match_answer
from ilora.model import ILoRARecommender
from ilora.model_folder import ModelConfig


@dataclass(frozen=True, slots=True)
class Recommended:
    """One candidate and the log-likelihood of its title, summed and by token, in nats."""

    item: int
    title: str
    mean_log_likelihood: float
    sum_log_likelihood: float


@dataclass(frozen=True)
class Recommendation:
    """What the model recommends for one history.

    Attributes:
        history: the items that were read, oldest first (the latest ``window`` of those given).
        candidates: what was ranked, in the prompt's order.
        ranking: the best of them, the best first.
        answer: what the model says when it answers greedily and freely.
        answered: the candidate that the answer names, None if it names none.
        gate: the weights of the experts, ``[K]``; of a gate per layer the mean over the layers.
    """

    history: tuple[int, ...]
    candidates: tuple[int, ...]
    ranking: tuple[Recommended, ...]
    answer: str
    answered: int | None
    gate: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class OneRow(RecommendationDataset):
    """A data set of a single prompt that comes from no data folder and has no known target."""

    def __init__(
        self, builder: PromptBuilder, history: Sequence[int], candidates: Sequence[int]
    ) -> None:
        self.builder = builder
        # The prompt shows no target; a row has to have one.
        self.rows = [Row(user=None, history=tuple(history), target=candidates[0])]
        self._shown = tuple(candidates)

    def __getitem__(self, index: int) -> Example:
        return self.builder.encode(self.rows[index], self._shown, answer=False)

    def candidates(self, index: int) -> tuple[int, ...]:
        return self._shown


def recommend(
    model: ILoRARecommender,
    catalog: Catalog,
    config: ModelConfig,
    history: Sequence[int],
    candidates: Sequence[int] | None = None,
    top: int = 5,
    *,
    batch_size: int = 32,
) -> Recommendation:
    """Rank candidates for a history by the mean log-likelihood of their titles.

    Args:
        model, catalog, config: what :func:`ilora.model_folder.load_model` returns.
        history: item ids, oldest first; the latest ``config.data.window`` are read.
        candidates: item ids to choose from; None takes the encoder's best twenty, see
            :func:`encoder_candidates`.
        top: how many to return; fewer where there are fewer candidates.
        batch_size: candidates scored at once, where the model cannot rank them in one pass.

    Raises:
        InputError: no history, no or repeated candidates, an item outside the catalogue, or a
            ``top`` below 1.
    """
    if top < 1:
        raise InputError(f"top is {top}; ask for at least 1 item")
    read = tuple(history[-config.data.window :])
    _check_items("history", read, catalog)
    if candidates is None:
        candidates = encoder_candidates(model, catalog, read)
    _check_items("candidates", candidates, catalog)
    if len(set(candidates)) < len(candidates):
        raise InputError("candidates holds an item more than once; give each once")
    builder = model.prompt_builder(catalog, config.data.domain, config.data.window)
    rows = OneRow(builder, read, candidates)
    collator = Collator(model.tokenizer, len(catalog), config.data.window, "left")
    model.eval()
    scores = next(score_candidates(model, rows, collator, batch_size=batch_size))
    answer = next(decode_answers(model, rows, collator, batch_size=1))[0]
    named = match_answer(answer, [builder.titles[item] for item in candidates])
    best = np.argsort(-scores.mean, kind="stable")[:top].tolist()
    return Recommendation(
        history=read,
        candidates=tuple(candidates),
        ranking=tuple(
            Recommended(
                candidates[k],
                catalog.title(candidates[k]),
                float(scores.mean[k]),
                float(scores.sum[k]),
            )
            for k in best
        ),
        answer=answer,
        answered=None if named is None else candidates[named],
        gate=_mixture(model, read),
    )


@torch.inference_mode()
def encoder_candidates(
    model: ILoRARecommender, catalog: Catalog, history: Sequence[int], count: int = NUM_CANDIDATES
) -> tuple[int, ...]:
    """The items that the encoder scores highest for a history, the best first.

    No title of the history and no title twice: as in the frozen lists, a reader can tell all
    candidates apart. Fewer than ``count`` where the catalogue has no more.

    Raises:
        InputError: the history leaves no item.
    """
    scores = model.encoder.scores(_padded(model, history))[0]  # [num_items]
    titles = catalog.title_groups()
    taken = {int(titles[item]) for item in history}
    chosen: list[int] = []
    for item in scores.argsort(descending=True, stable=True).tolist():
        if len(chosen) == count:
            break
        if int(titles[item]) not in taken:
            taken.add(int(titles[item]))
            chosen.append(item)
    if not chosen:
        raise InputError("history holds every title of the catalogue; give candidates")
    return tuple(chosen)


def _mixture(model: ILoRARecommender, history: Sequence[int]) -> tuple[float, ...]:
    with torch.inference_mode():
        weights = model.gates(_padded(model, history))[0]
        return tuple(weights.reshape(-1, weights.shape[-1]).mean(0).tolist())


def _padded(model: ILoRARecommender, history: Sequence[int]) -> torch.Tensor:
    encoder = model.encoder
    padded = pad_histories([history], encoder.window, encoder.num_items)
    return padded.to(encoder.item_embeddings.weight.device)


def _check_items(argument: str, items: Sequence[int], catalog: Catalog) -> None:
    if not items:
        raise InputError(f"{argument} is empty; give at least one item")
    for item in items:
        if not 0 <= item < len(catalog):
            raise InputError(
                f"{argument}: item {item} is not in the catalogue; its ids run from 0 to "
                f"{len(catalog) - 1}"
            )
