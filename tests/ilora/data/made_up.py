"""Gzipped lines of a test folder: read, replaced, and their hash recorded anew."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_text(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


def record_hash(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(manifest), encoding="utf-8")
