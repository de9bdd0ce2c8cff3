"""Evaluations compared with one another, row by row: the table of `ilora compare`.

An evaluation is a folder with ``metrics.json`` and ``predictions.jsonl``. Several of one method, its
seeds say, can stand for one: every row then counts with its mean over them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ilora.errors import InputError
from ilora.evaluation.metrics import ranking_values
from ilora.evaluation.paired import holm, is_binary, mcnemar, permutation_p
from ilora.evaluation.records import METRICS_FILE, PREDICTIONS_FILE, evaluation_folder
from ilora.evaluation.statistics import FloatArray, bootstrap_interval
from ilora.tables import counted

HIT = "hit"


@dataclass(frozen=True)
class Answers:
    """What one method got for each row.

    Attributes:
        name: what the reader calls it.
        rows: user, history, target and sorted candidates of each row, as one text each.
        data: the hash of the data folder.
        values: ``[n]``, the measure of each row.
    """

    name: str
    rows: tuple[str, ...]
    data: str
    values: FloatArray


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same rows; ``difference`` is that of their means, first minus second.

    ``ci95`` is its bootstrap interval. The counts and McNemar's test are of hits, 0 or 1; they are
    None for other measures and for means over seeds. ``holm`` is the adjusted p-value, over all
    comparisons made together, of McNemar's test where there is one, else of the permutation test.
    """

    first: str
    second: str
    n: int
    mean_first: float
    mean_second: float
    difference: float
    ci95: tuple[float, float]
    only_first: int | None
    only_second: int | None
    mcnemar_p: float | None
    permutation_p: float
    holm: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def find_evaluation(path: Path, label: str) -> Path:
    """The evaluation folder at ``path``, or the one called ``label`` of the training run there.

    An encoder has one evaluation of each split, which stands for any way of answering.

    Raises:
        InputError: there is none.
    """
    of_encoder = f"{label.split('-')[0]}-encoder"
    for place in (path, *(evaluation_folder(path, one) for one in (label, of_encoder))):
        if (place / PREDICTIONS_FILE).is_file() and (place / METRICS_FILE).is_file():
            return place
    split, _, decode = label.partition("-")
    others = sorted(file.parent.name for file in path.glob(f"evaluation/*/{PREDICTIONS_FILE}"))
    has = f" (but {', '.join(others)})" if others else ""
    raise InputError(
        f"run: {path} holds no evaluation {label}{has}; make one with `ilora evaluate --model {path} "
        f"--split {split} --decode {decode}`, or give the folder of another"
    )


def read_answers(folder: Path, name: str, measure: str = HIT) -> Answers:
    """Read what an evaluation says of every row.

    Args:
        measure: ``"hit"``, or where candidates were ranked a measure of
            :func:`ilora.evaluation.metrics.ranking_values` such as ``"mrr"`` or ``"hr@5"``.

    Raises:
        InputError: a file that is not sound, or a measure that it does not have.
    """
    file = folder / PREDICTIONS_FILE
    try:
        data = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))["data"]["sha256"]
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rows = tuple(_row(line) for line in lines)
        hits = np.array([line[HIT] for line in lines], dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"run: {folder} does not hold what it should ({error}); evaluate again"
        ) from None
    if measure == HIT:
        return Answers(name, rows, data, hits)
    if measure not in (names := ranking_values([0])):
        raise InputError(f"measure is {measure!r}; give one of {', '.join((HIT, *names))}")
    if not all("rank" in line for line in lines):
        raise InputError(
            f"measure: {measure} needs ranked candidates, which {folder} has not; give hit, or "
            "evaluate with --decode rank"
        )
    return Answers(name, rows, data, ranking_values([line["rank"] for line in lines])[measure])


def average(several: Sequence[Answers], name: str) -> Answers:
    """Evaluations of the same rows as one: each row counts with its mean.

    Raises:
        InputError: they are not of the same rows.
    """
    for other in several[1:]:
        _require_same_rows(several[0], other)
    values = np.mean([one.values for one in several], axis=0)
    return Answers(name, several[0].rows, several[0].data, values)


def cut_encoders(methods: Sequence[Answers], of_encoder: Sequence[bool]) -> list[Answers]:
    """Encoders' answers cut to the first rows of a split that the runs beside them have answered.

    An encoder is measured on a whole split, a run with ``--max-rows`` on its first rows.
    """
    counts = {len(one.rows) for one, own in zip(methods, of_encoder, strict=True) if not own}
    n = min(counts, default=None)
    return [
        replace(one, rows=one.rows[:n], values=one.values[:n]) if own else one
        for one, own in zip(methods, of_encoder, strict=True)
    ]


def compare(
    methods: Sequence[Answers], *, seed: int = 0, first_only: bool = False
) -> list[Comparison]:
    """Compare every method with every later one, or with the first alone.

    Raises:
        InputError: fewer than two methods, or rows that are not the same.
    """
    if len(methods) < 2:
        raise InputError(f"runs: {len(methods)} cannot be compared; give 2 or more")
    pairs = [pair for pair in combinations(methods, 2) if not first_only or pair[0] is methods[0]]
    found = [_pair(first, second, seed) for first, second in pairs]
    p_values = [
        one["permutation_p"] if one["mcnemar_p"] is None else one["mcnemar_p"] for one in found
    ]
    return [Comparison(**one, holm=p) for one, p in zip(found, holm(p_values), strict=True)]


def _pair(first: Answers, second: Answers, seed: int) -> dict[str, Any]:
    _require_same_rows(first, second)
    both = first.values, second.values
    test = mcnemar(*both) if all(is_binary(values) for values in both) else None
    return {
        "first": first.name,
        "second": second.name,
        "n": len(first.rows),
        "mean_first": float(first.values.mean()),
        "mean_second": float(second.values.mean()),
        "difference": float((first.values - second.values).mean()),
        "ci95": bootstrap_interval(first.values - second.values, seed=seed),
        "only_first": None if test is None else test.only_first,
        "only_second": None if test is None else test.only_second,
        "mcnemar_p": None if test is None else test.p,
        "permutation_p": permutation_p(*both, seed=seed),
    }


def _row(line: dict[str, Any]) -> str:
    told = [line["user"], line["history"], line["target"], sorted(line["candidates"])]
    return json.dumps(told)


def _require_same_rows(first: Answers, second: Answers) -> None:
    if first.data != second.data:
        raise InputError(
            f"runs: {first.name} and {second.name} were measured on different data; evaluate both on "
            "one data folder"
        )
    if first.rows != second.rows:
        raise InputError(
            f"runs: {first.name} ({counted(len(first.rows), 'row')}) and {second.name} "
            f"({counted(len(second.rows), 'row')}) were not measured on the same rows and candidates; "
            "evaluate both with one --split, --min-history and --max-rows"
        )
