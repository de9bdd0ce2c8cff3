"""What an evaluation leaves in its folder: the figures, and the rows they are made of.

metrics.json        the figures; ``data.sha256`` is the hash of the data folder
predictions.jsonl   one line a row: ``user``, ``history``, ``target``, ``candidates``, ``hit``, and
                    what else the method has to tell
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilora.data.sequences import Row
from ilora.files import atomic_file, write_json

METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.jsonl"


def evaluation_folder(run: Path, label: str) -> Path:
    """Where a run or an encoder keeps the evaluation of that label, such as ``test-free``."""
    return run / "evaluation" / label


def row_record(row: Row, candidates: Sequence[int]) -> dict[str, Any]:
    """What every method's line says of a row; by it lines of two methods are known to be of one row."""
    return {
        "user": row.user,
        "history": list(row.history),
        "target": row.target,
        "candidates": list(candidates),
    }


def write_evaluation(
    folder: Path, metrics: dict[str, Any], predictions: Sequence[dict[str, Any]]
) -> None:
    """Write both files, the figures last."""
    with atomic_file(folder / PREDICTIONS_FILE) as partial:
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
        partial.write_text("".join(lines), encoding="utf-8")
    write_json(folder / METRICS_FILE, metrics)
