"""Evaluating a recommender on a split: answers or scores, judged, with what they came from.

Writes ``metrics.json`` and ``predictions.jsonl``: the figures, and the rows they are made of.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from ilora.data.catalog import Catalog
from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.folder import DataFolder
from ilora.data.sequences import Split
from ilora.errors import InputError
from ilora.evaluation.decoding import decode_answers
from ilora.evaluation.metrics import generation_metrics, ranking_metrics, ranks_of_target
from ilora.evaluation.ranking import score_candidates
from ilora.evaluation.titles import judge_answer
from ilora.files import atomic_file, write_json
from ilora.model import ILoRARecommender

Decode = Literal["free", "rank"]
DECODES: tuple[Decode, ...] = ("free", "rank")
PACKAGES = ("torch", "transformers", "peft")
T = TypeVar("T")


def evaluate(
    model: ILoRARecommender,
    folder: DataFolder,
    split: Split = "test",
    *,
    decode: Decode = "free",
    out: Path | None = None,
    batch_size: int = 32,
    min_history: int = 3,
    max_rows: int | None = None,
    seed: int = 0,
    catalog: Catalog | None = None,
) -> dict[str, Any]:
    """Measure a recommender on the frozen candidates of a split.

    Args:
        decode: ``"free"``: greedy answers, judged by titles; ``"rank"``: candidates ordered by the
            likelihood of their titles.
        out: where to write ``metrics.json`` and ``predictions.jsonl``; None writes nothing.
        batch_size: prompts (free) or candidates (rank) at once.
        min_history: rows with a shorter history are left out; the paper's loaders use 3.
        max_rows: evaluate on the first so many rows alone.
        seed: of the bootstrap.
        catalog: the one the model was trained on, as ``load_model`` returns it; data whose ids mean
            other titles are then refused, and without it only those of another number of items.

    Returns:
        The content of ``metrics.json``: ``hit_ratio_at_1``, ``hit_ratio_at_1_valid``,
        ``valid_ratio``, ``n``, ``ci95`` of each; with ``rank`` also ``hr@k``, ``ndcg@k``, ``mrr`` by
        the mean log-likelihood and, under ``by_sum``, by the summed one; ``decode``, ``split``,
        ``seed``, ``seconds``, the data's name and hash, package versions.

    Raises:
        InputError: an unknown ``decode``, a size below 1, the data of another catalogue, or no row
            left.
    """
    for name, size in (("batch_size", batch_size), ("max_rows", max_rows)):
        if size is not None and size < 1:
            raise InputError(f"{name} is {size}; it must be at least 1")
    if decode not in DECODES:
        raise InputError(f"decode is {decode!r}; it must be one of {', '.join(DECODES)}")
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
    builder = model.prompt_builder(folder.catalog, folder.domain, folder.window)
    rows = RecommendationDataset(folder, split, builder, min_history=min_history, answer=False)
    if max_rows is not None:
        del rows.rows[max_rows:]
    collator = Collator(model.tokenizer, len(folder.catalog), folder.window, "left")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # a place that cannot be had is told before the work
    model.eval()
    started = time.perf_counter()
    judge = _free if decode == "free" else _rank
    metrics, predictions = judge(model, rows, collator, batch_size, seed)
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
        _write(out, metrics, predictions)
    return metrics


def _free(
    model: ILoRARecommender,
    rows: RecommendationDataset,
    collator: Collator,
    batch_size: int,
    seed: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    batches = decode_answers(model, rows, collator, batch_size=batch_size)
    count = -(-len(rows) // batch_size)
    answers = [answer for batch in _bar(batches, count, "answering") for answer in batch]
    titles = [[rows.builder.titles[c] for c in rows.candidates(i)] for i in range(len(rows))]
    targets = [rows.builder.titles[row.target] for row in rows.rows]
    predictions = []
    for i, answer in enumerate(answers):
        judgement = judge_answer(answer, titles[i], targets[i])
        candidates = rows.candidates(i)
        named = None if judgement.candidate is None else candidates[judgement.candidate]
        predictions.append(_row(rows, i) | {"answer": answer, "named": named, "hit": judgement.hit})
    return generation_metrics(answers, titles, targets, seed=seed), predictions


def _rank(
    model: ILoRARecommender,
    rows: RecommendationDataset,
    collator: Collator,
    batch_size: int,
    seed: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    scored = score_candidates(model, rows, collator, batch_size=batch_size)
    scores = list(_bar(scored, len(rows), "ranking"))
    places = [rows.candidates(i).index(row.target) for i, row in enumerate(rows.rows)]
    ranks = {
        name: ranks_of_target(np.stack([getattr(s, name) for s in scores]), places)
        for name in ("mean", "sum")
    }
    by_mean = ranking_metrics(ranks["mean"], seed=seed)
    first = by_mean["hr@1"]
    interval = by_mean["ci95"]["hr@1"]
    metrics = by_mean | {
        "hit_ratio_at_1": first,
        "hit_ratio_at_1_valid": first,
        "valid_ratio": 1.0,
        "ci95": by_mean["ci95"]
        | {
            "hit_ratio_at_1": interval,
            "hit_ratio_at_1_valid": interval,
            "valid_ratio": [1.0, 1.0],
        },
        "normalisation": "mean log-likelihood of the title's tokens, terminator included",
        "by_sum": ranking_metrics(ranks["sum"], seed=seed),
    }
    predictions = [
        _row(rows, i)
        | {"mean_log_likelihood": s.mean.tolist(), "sum_log_likelihood": s.sum.tolist()}
        | {"rank": float(ranks["mean"][i]), "hit": bool(ranks["mean"][i] == 0)}
        for i, s in enumerate(scores)
    ]
    return metrics, predictions


def _row(rows: RecommendationDataset, index: int) -> dict[str, Any]:
    row = rows.rows[index]
    return {
        "user": row.user,
        "history": list(row.history),
        "target": row.target,
        "candidates": list(rows.candidates(index)),
    }


def _write(out: Path, metrics: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
    with atomic_file(out / "predictions.jsonl") as partial:
        lines = (json.dumps(p, ensure_ascii=False) + "\n" for p in predictions)
        partial.write_text("".join(lines), encoding="utf-8")
    write_json(out / "metrics.json", metrics)


def _bar(values: Iterable[T], total: int, description: str) -> Iterable[T]:
    console = Console(stderr=True)
    return track(
        values,
        description,
        total=total,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
