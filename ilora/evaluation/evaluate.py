"""Evaluating a recommender on a split: answers or scores, judged, with what they came from.

Writes ``metrics.json`` and ``predictions.jsonl``: the figures, and the rows they are made of.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ilora.data.catalog import Catalog
from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.folder import DataFolder
from ilora.data.sequences import Split
from ilora.errors import InputError
from ilora.evaluation.candidate_orders import measure_orders
from ilora.evaluation.protocols import DECODES, Decode, measure, predict
from ilora.evaluation.records import write_evaluation
from ilora.model import ILoRARecommender

PACKAGES = ("torch", "transformers", "peft")


def evaluate(
    model: ILoRARecommender,
    folder: DataFolder,
    split: Split = "test",
    *,
    decode: Decode = "free",
    beams: int = 1,
    candidate_orders: int = 1,
    out: Path | None = None,
    batch_size: int = 32,
    min_history: int = 3,
    max_rows: int | None = None,
    seed: int = 0,
    catalog: Catalog | None = None,
) -> dict[str, Any]:
    """Measure a recommender on the frozen candidates of a split.

    Args:
        decode: ``"free"``: greedy answers, judged by titles; ``"constrained"``: answers that can be
            nothing but a candidate's title; ``"rank"``: candidates ordered by the likelihood of
            their titles.
        beams: of constrained decoding; 1 is greedy.
        candidate_orders: ask in so many orders of the candidates, the frozen one and shuffled
            ones; the figures are those of the frozen one, the others are compared with it.
        out: where to write ``metrics.json`` and ``predictions.jsonl``; None writes nothing.
        batch_size: prompts at once; where a model cannot rank in one pass, candidates.
        min_history: rows with a shorter history are left out; the paper's loaders use 3.
        max_rows: evaluate on the first so many rows alone.
        seed: of the bootstrap and of the shuffled orders.
        catalog: the one the model was trained on, as ``load_model`` returns it; data whose ids mean
            other titles are then refused, and without it only those of another number of items.

    Returns:
        The content of ``metrics.json``: ``hit_ratio_at_1``, ``hit_ratio_at_1_valid``,
        ``valid_ratio``, ``n``, ``ci95`` of each; with ``free`` the same by two looser readings,
        ``longest_match`` and ``as_reference``; with ``rank`` also ``hr@k``, ``ndcg@k``, ``mrr`` by
        the mean log-likelihood and, under ``by_sum`` and ``by_character``, by the summed one and by
        that over the title's characters, and ``computed_by``, rows by way of computing;
        ``candidate_orders`` (see :mod:`ilora.evaluation.candidate_orders`) where there are several;
        ``decode``, ``split``, ``seed``, ``seconds``, the data's name and hash, package versions.

    Raises:
        InputError: an unknown ``decode``, a size below 1, beams elsewhere than in constrained
            decoding, the data of another catalogue, or no row left.
    """
    _check_options(
        decode,
        beams,
        batch_size=batch_size,
        max_rows=max_rows,
        candidate_orders=candidate_orders,
    )
    _check_data(model, folder, catalog)
    builder = model.prompt_builder(folder.catalog, folder.domain, folder.window)
    rows = RecommendationDataset(folder, split, builder, min_history=min_history, answer=False)
    if max_rows is not None:
        del rows.rows[max_rows:]
    collator = Collator(model.tokenizer, len(folder.catalog), folder.window, "left")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # a place that cannot be had is told before the work
    model.eval()
    started = time.perf_counter()

    def ask(asked: RecommendationDataset) -> list[dict[str, Any]]:
        return predict(decode, model, asked, collator, batch_size=batch_size, beams=beams)

    predictions = ask(rows)
    metrics = measure(decode, rows, predictions, seed=seed)
    if decode == "constrained":
        metrics["beams"] = beams
    if candidate_orders > 1:
        metrics["candidate_orders"] = measure_orders(
            ask, rows, predictions, candidate_orders, seed=seed
        )
    metrics |= {
        "decode": decode,
        "split": split,
        "seed": seed,
        "min_history": min_history,
        "seconds": time.perf_counter() - started,
        "data": {"name": folder.name, "sha256": folder.sha256},
        "versions": {name: version(name) for name in PACKAGES},
    }
    if out is not None:
        write_evaluation(out, metrics, predictions)
    return metrics


def _check_options(decode: Decode, beams: int, **sizes: int | None) -> None:
    for name, size in (sizes | {"beams": beams}).items():
        if size is not None and size < 1:
            raise InputError(f"{name} is {size}; it must be at least 1")
    if decode not in DECODES:
        raise InputError(f"decode is {decode!r}; it must be one of {', '.join(DECODES)}")
    if beams > 1 and decode != "constrained":
        raise InputError(f"beams is {beams}, but only --decode constrained searches with beams")


def _check_data(model: ILoRARecommender, folder: DataFolder, catalog: Catalog | None) -> None:
    if model.encoder.num_items != len(folder.catalog):
        raise InputError(
            f"data: {folder.path} has {len(folder.catalog)} items, but the model was trained on "
            f"{model.encoder.num_items}; give the data it was trained on"
        )
    if catalog is not None and catalog != folder.catalog:
        pairs = enumerate(zip(catalog.titles, folder.catalog.titles, strict=True))
        item, (own, other) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
        raise InputError(
            f"data: item {item} is {other!r} in {folder.path} and {own!r} in the model's catalogue; "
            "give the data it was trained on"
        )
