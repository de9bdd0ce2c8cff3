"""The data folder: the one format that everything reads, and its writer."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ilora.data.candidates import (
    EXCLUSIONS,
    NUM_CANDIDATES,
    Exclusion,
    candidate_count,
    draw_candidates,
)
from ilora.data.catalog import Catalog
from ilora.data.contents import Contents
from ilora.data.manifest import (
    CANDIDATE_FILES,
    DOMAINS,
    MANIFEST_FILE,
    ROW_FILES,
    SEQUENCE_FILE,
    USER_FILE,
    CandidateRecord,
    Domain,
    Manifest,
    SplitRecord,
    check_hashes,
    file_hashes,
    read_manifest,
)
from ilora.data.row_files import (
    read_candidates,
    read_rows,
    read_sequences,
    write_candidates,
    write_rows,
    write_sequences,
)
from ilora.data.sequences import SPLITS, WINDOW, Row, Split, UserSequence
from ilora.data.splits import BY_USER_RULE
from ilora.errors import InputError
from ilora.files import atomic_folder, is_taken, write_json


class DataFolder:
    """A read-only view of a complete data folder. Files are read, and checked, when first asked for.

    Open one with `DataFolder.open`. Attributes: ``path``, ``manifest`` (``dataset.json``, typed).
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._catalog: Catalog | None = None
        self._rows: dict[Split, list[Row]] = {}
        self._candidates: dict[Split, list[tuple[int, ...]]] = {}
        self._sequences: list[UserSequence] | None = None

    @classmethod
    def open(cls, path: str | Path) -> DataFolder:
        """Open a folder whose files are all there and have the recorded hashes.

        Raises:
            InputError: no such folder, a missing file, ``dataset.json`` unsound, or a file that
                is not the one recorded there. Lines are checked later, when they are read.
        """
        path = Path(path)
        require_row_files(path)
        fix = f"`ilora data check {shlex.quote(str(path))} --fix`"
        if not (path / MANIFEST_FILE).is_file():
            raise InputError(
                f"{path / MANIFEST_FILE} is missing; run {fix} to write it and to draw the "
                "candidates that are not there"
            )
        manifest = read_manifest(path / MANIFEST_FILE)
        check_hashes(path, manifest)
        for name in CANDIDATE_FILES:
            if not (path / name).is_file():
                raise InputError(
                    f"{path / name} is missing; remove {MANIFEST_FILE} and run {fix} to draw it"
                )
        return cls(path, manifest)

    def __repr__(self) -> str:
        return f"DataFolder({str(self.path)!r}, name={self.name!r})"

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.manifest.name

    @property
    def domain(self) -> Domain:
        """What an item is: it chooses the wording of prompts."""
        return self.manifest.domain

    @property
    def window(self) -> int:
        """The longest history."""
        return self.manifest.window

    @property
    def num_candidates(self) -> int:
        """Length of every candidate list, the target included."""
        return self.manifest.candidates.count

    @property
    def info(self) -> dict[str, Any]:
        """``dataset.json`` as plain values (a copy)."""
        return self.manifest.to_dict()

    @property
    def sha256(self) -> str:
        """One hash over the content of all files (`Manifest.folder_sha256`)."""
        return self.manifest.folder_sha256

    @property
    def catalog(self) -> Catalog:
        """The items."""
        if self._catalog is None:
            self._catalog = Catalog.load(self.path / "items.csv")
        return self._catalog

    def rows(self, split: Split, min_history: int = 1) -> list[Row]:
        """The split's rows in file order, without those whose history is shorter than
        ``min_history``; 0 gives all of them (the paper's loaders use 3).

        Raises:
            InputError: an unknown split, or a bad line.
        """
        return [row for row in self._all_rows(split) if len(row.history) >= min_history]

    def candidates(self, split: Split) -> list[tuple[int, ...]]:
        """Frozen candidate lists, ``num_candidates`` ids each, one for every row of the *file*:
        aligned with ``rows(split, min_history=0)``.

        Raises:
            InputError: ``train`` or an unknown split, or a bad line.
        """
        rows = self._all_rows(split)
        if split == "train":
            raise InputError("split is 'train', which has no frozen candidates; use val or test")
        if split not in self._candidates:
            path = self.path / f"candidates.{split}.jsonl.gz"
            lists = read_candidates(path, rows, len(self.catalog), self.num_candidates)
            self._candidates[split] = lists
        return list(self._candidates[split])

    def ranked_rows(self, split: Split, min_history: int = 1) -> list[tuple[Row, tuple[int, ...]]]:
        """Rows with their candidates, filtered together; raises what `candidates` raises."""
        pairs = zip(self._all_rows(split), self.candidates(split), strict=True)
        return [pair for pair in pairs if len(pair[0].history) >= min_history]

    def sequences(self) -> list[UserSequence] | None:
        """Whole sequences of all users, or None where the folder has no ``sequences.jsonl.gz``."""
        path = self.path / SEQUENCE_FILE
        if self._sequences is None and path.is_file():
            self._sequences = read_sequences(path, len(self.catalog))
        return None if self._sequences is None else list(self._sequences)

    def groups(self) -> list[int] | None:
        """``groups()[user]`` is the user's behaviour group; None for data without known groups."""
        groups = self.manifest.user_groups
        return None if groups is None else list(groups)

    def _all_rows(self, split: Split) -> list[Row]:
        if split not in SPLITS:
            raise InputError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        if split not in self._rows:
            path = self.path / f"{split}.jsonl.gz"
            self._rows[split] = read_rows(path, len(self.catalog), self.window)
        return self._rows[split]


def require_row_files(path: Path) -> None:
    """Raise `InputError` unless the folder has its catalogue and the three splits.

    The message names the files that look meant for the missing one (``train_sample.jsonl.gz``,
    ``train.jsonl``): they are not read, for a sample taken for the whole would go unnoticed.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; give the path of a data folder")
    for name in ROW_FILES:
        if (path / name).is_file():
            continue
        stem = name.split(".", maxsplit=1)[0]
        similar = sorted(file.name for file in path.glob(f"{stem}*") if file.is_file())
        remedy = f"put it there (a data folder needs {', '.join(ROW_FILES)})"
        if similar:
            remedy += f"; {', '.join(similar)} is not read: if it is meant, make {name} of it"
        raise InputError(f"{path / name} is missing; {remedy}")


def write_folder(
    path: str | Path,
    *,
    name: str,
    domain: Domain,
    catalog: Catalog,
    sequences: Sequence[UserSequence] | None = None,
    rows: Mapping[Split, Sequence[Row]] | None = None,
    seed: int = 0,
    window: int = WINDOW,
    num_candidates: int = NUM_CANDIDATES,
    excluded: Exclusion = "sequence",
    split_rule: str | None = None,
    user_groups: Sequence[int] | None = None,
    user_names: Sequence[str] | None = None,
    details: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> DataFolder:
    """Write a whole data folder, or nothing: it appears under ``path`` once it is complete.

    Args:
        domain: movie, music, game, product or item.
        sequences: one a user, oldest item first. Without ``rows`` they are split by user 8:1:1
            and cut into windows here; their own ``split`` is then ignored.
        rows: the rows of train, val and test, where the division came with the data. Sequences
            given beside them are stored, and keep users' other items out of the candidates.
        seed: of the split and of the candidates.
        num_candidates: list length, target included; less where the catalogue is too small
            (``dataset.json`` has the length used).
        excluded: what negatives keep out of: all known items of the user ("sequence"), or the
            row's history alone ("history"). The target is never a negative.
        split_rule: one sentence for ``dataset.json``; needed with ``rows``.
        user_groups: behaviour group of user 0, 1, …
        user_names: what user 0, 1, … is called in the source (``users.csv``).
        details: further keys for ``dataset.json`` (JSON values), such as the source and options.
        overwrite: replace a data folder at ``path``.

    Equal arguments give equal bytes.

    Raises:
        InputError: something is at ``path`` already, an item outside the catalogue, an empty
            split, or too few users or items.
    """
    path = Path(path)
    _require_free(path, overwrite)
    if domain not in DOMAINS:
        raise InputError(f"domain is {domain!r}; it must be one of {', '.join(DOMAINS)}")
    if excluded not in EXCLUSIONS:
        raise InputError(f"excluded is {excluded!r}; it must be one of {', '.join(EXCLUSIONS)}")
    if rows is not None:
        if split_rule is None:
            raise InputError("rows were given without split_rule; say how they were divided")
        contents = Contents(catalog, rows, list(sequences or ()))
        rule = SplitRecord(rule=split_rule, seed=None)
    elif sequences:
        contents = Contents.from_sequences(catalog, sequences, seed=seed, window=window)
        rule = SplitRecord(rule=split_rule or BY_USER_RULE, seed=seed)
    else:
        raise InputError("neither sequences nor rows were given; a folder is made of either")
    contents.require_sound(window)
    _require_all_users(contents, user_groups=user_groups, user_names=user_names)
    with atomic_folder(path) as partial:
        _write_contents(partial, contents, user_names)
        candidates = _write_candidates(partial, contents, num_candidates, seed, excluded)
        manifest = Manifest(
            name=name,
            domain=domain,
            counts=contents.counts(),
            window=window,
            split=rule,
            candidates=candidates,
            sha256=file_hashes(partial),
            user_groups=None if user_groups is None else list(user_groups),
            **dict(details or {}),
        )
        write_json(partial / MANIFEST_FILE, manifest.to_dict())
    return DataFolder.open(path)


def _require_free(path: Path, overwrite: bool) -> None:
    if not is_taken(path):
        return
    if not (path / MANIFEST_FILE).is_file():  # never remove what is not ours
        raise InputError(f"{path} exists and is not a data folder; choose another path")
    if not overwrite:
        raise InputError(
            f"{path} is a data folder already; choose another path, or give --overwrite"
        )


def _require_all_users(contents: Contents, **by_user: Sequence[object] | None) -> None:
    last = max(contents.known_items(), default=-1)
    for key, values in by_user.items():
        if values is not None and len(values) <= last:
            raise InputError(
                f"{key} has {len(values)} values, but there is a user {last}; "
                "give one for each user from 0"
            )


def _write_contents(folder: Path, contents: Contents, user_names: Sequence[str] | None) -> None:
    contents.catalog.save(folder / "items.csv")
    for split in SPLITS:
        write_rows(folder / f"{split}.jsonl.gz", contents.rows[split])
    if contents.sequences:
        write_sequences(folder / SEQUENCE_FILE, contents.sequences)
    if user_names is not None:
        with (folder / USER_FILE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["user", "source_id"])
            writer.writerows(enumerate(user_names))


def _write_candidates(
    folder: Path, contents: Contents, wanted: int, seed: int, excluded: Exclusion
) -> CandidateRecord:
    ranked: tuple[Split, ...] = ("val", "test")
    rows = [row for split in ranked for row in contents.rows[split]]
    count = candidate_count(rows, contents.catalog, wanted)
    known = contents.known_items() if excluded == "sequence" else None
    for split in ranked:
        mine = contents.rows[split]
        lists = draw_candidates(
            mine, contents.catalog, split=split, seed=seed, count=count, known=known
        )
        write_candidates(folder / f"candidates.{split}.jsonl.gz", mine, lists)
    return CandidateRecord(
        count=count, seed=seed, excluded=excluded, origin={"val": "drawn", "test": "drawn"}
    )
