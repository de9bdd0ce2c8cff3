"""``dataset.json``: what a data folder is, how it came about, and the hash of each of its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ilora.data.candidates import Exclusion
from ilora.errors import InputError

Domain = Literal["movie", "music", "game", "product", "item"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)

MANIFEST_FILE = "dataset.json"
ROW_FILES = ("items.csv", "train.jsonl.gz", "val.jsonl.gz", "test.jsonl.gz")
CANDIDATE_FILES = ("candidates.val.jsonl.gz", "candidates.test.jsonl.gz")
SEQUENCE_FILE = "sequences.jsonl.gz"
USER_FILE = "users.csv"  # user,source_id: the names that users have where they came from
OPTIONAL_FILES = (SEQUENCE_FILE, USER_FILE)


class SplitRecord(BaseModel):
    """How rows were divided. ``seed`` is None where the division came with the data."""

    model_config = ConfigDict(extra="allow")
    rule: str
    seed: int | None


class CandidateRecord(BaseModel):
    """How candidate lists were drawn; ``origin`` says for each split "drawn" here or "given"."""

    model_config = ConfigDict(extra="allow")
    count: int = Field(ge=2)
    seed: int
    excluded: Exclusion  # "sequence": all the user's known items, "history": the row's only
    origin: dict[Literal["val", "test"], Literal["drawn", "given"]]


class Manifest(BaseModel):
    """The content of ``dataset.json``. Keys it does not know are kept.

    ``user_groups[user]`` is the behaviour group of a synthetic user.
    """

    model_config = ConfigDict(extra="allow")
    format: Literal[1] = 1
    name: str = Field(min_length=1)
    domain: Domain
    counts: dict[str, int]
    window: int = Field(ge=1)
    split: SplitRecord
    candidates: CandidateRecord
    sha256: dict[str, str]
    user_groups: list[int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in a fixed order."""
        value = self.model_dump(mode="json")
        if self.user_groups is None:
            del value["user_groups"]
        return value

    @property
    def folder_sha256(self) -> str:
        """One hash of all hashes: equal for equal folders wherever they lie."""
        lines = "".join(f"{self.sha256[name]}  {name}\n" for name in sorted(self.sha256))
        return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read ``dataset.json``; raises `InputError` that names the key for anything but a sound one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return Manifest.model_validate(value)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run `ilora data check --fix` to write it") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InputError(
            f"{path}: {key}: {first['msg']}; remove the file and run `ilora data check --fix`"
        ) from None
    except ValueError as error:  # JSON and UTF-8 errors both are
        raise InputError(
            f"{path} is not sound JSON ({error}); remove it and run `ilora data check --fix`"
        ) from None


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the format that is present, ``dataset.json`` itself left out."""
    names = (*ROW_FILES, *OPTIONAL_FILES, *CANDIDATE_FILES)
    return {name: _sha256(folder / name) for name in names if (folder / name).is_file()}


def check_hashes(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its recorded hash.

    Raises:
        InputError: a file that changed, is gone, or came in later (``dataset.json`` knows
            nothing of it), saying which.
    """
    present = file_hashes(folder)
    remedy = (
        f"restore the file, or, if the change is meant, remove {MANIFEST_FILE} and run "
        f"`ilora data check {folder} --fix`"
    )
    for name, recorded in manifest.sha256.items():
        if name not in present:
            raise InputError(f"{folder / name} is recorded in {MANIFEST_FILE} but gone; {remedy}")
        if present[name] != recorded:
            raise InputError(
                f"{folder / name} has changed: its SHA-256 is {present[name][:12]}… and "
                f"{MANIFEST_FILE} records {recorded[:12]}…; {remedy}"
            )
    for name in present:
        if name not in manifest.sha256:
            raise InputError(f"{folder / name} is not recorded in {MANIFEST_FILE}; {remedy}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
