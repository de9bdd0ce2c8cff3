"""A small made-up data folder, and ways to damage it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilora.data.catalog import Catalog
from ilora.data.folder import write_folder
from ilora.data.sequences import UserSequence
from tests.ilora.data.file_server import Behaviour, serving
from tests.ilora.data.made_up import read_lines, record_hash, write_text

NUM_ITEMS = 60
NUM_USERS = 30
Damage = Callable[..., None]


@pytest.fixture
def catalog() -> Catalog:
    """Sixty items, among them twins, separators, other scripts, one title inside another."""
    odd = ["Portal", "Portal 2", "Twin", "twin", "Storm, Calm", "Depths :: Knossos", "Café №5"]
    return Catalog(tuple(odd + [f"Item {number}" for number in range(len(odd), NUM_ITEMS)]))


@pytest.fixture
def sequences() -> list[UserSequence]:
    """Thirty users of 3 to 15 items each."""
    rng = np.random.default_rng(5)
    return [
        UserSequence(user, tuple(rng.permutation(NUM_ITEMS)[: rng.integers(3, 16)].tolist()))
        for user in range(NUM_USERS)
    ]


@pytest.fixture
def data_path(tmp_path: Path, catalog: Catalog, sequences: list[UserSequence]) -> Path:
    """A complete data folder."""
    path = tmp_path / "made_up"
    write_folder(path, name="made up", domain="item", catalog=catalog, sequences=sequences, seed=3)
    return path


@pytest.fixture
def rows_path(data_path: Path) -> Path:
    """The same folder without candidates and ``dataset.json``, as data come from elsewhere."""
    for name in ("candidates.val.jsonl.gz", "candidates.test.jsonl.gz", "dataset.json"):
        (data_path / name).unlink()
    return data_path


@pytest.fixture
def damage(data_path: Path) -> Damage:
    """``damage(name, line, **keys)`` changes keys of one line.

    The file's new hash is recorded, so that the reader of lines, not the hash, has to notice.
    """

    def change(name: str, line: int, **keys: Any) -> None:
        records = read_lines(data_path / name)
        records[line - 1].update(keys)
        write_text(data_path / name, "".join(json.dumps(record) + "\n" for record in records))
        record_hash(data_path, name)

    return change


@pytest.fixture
def server() -> Iterator[Behaviour]:
    """A server of one file, and its behaviour."""
    with serving() as behaviour:
        yield behaviour
