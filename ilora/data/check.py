"""Is a data folder sound, what is in it, and completing one that lacks its candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ilora.data.candidates import (
    EXCLUSIONS,
    NUM_CANDIDATES,
    Exclusion,
    candidate_count,
    draw_candidates,
)
from ilora.data.catalog import Catalog
from ilora.data.contents import Contents
from ilora.data.folder import DataFolder, require_row_files
from ilora.data.manifest import (
    DOMAINS,
    MANIFEST_FILE,
    SEQUENCE_FILE,
    CandidateRecord,
    Domain,
    Manifest,
    SplitRecord,
    file_hashes,
)
from ilora.data.notes import Note, catalog_notes, row_notes
from ilora.data.row_files import read_candidates, read_rows, read_sequences, write_candidates
from ilora.data.sequences import SPLITS, WINDOW, Row, Split
from ilora.errors import InputError
from ilora.files import atomic_file, write_json

GIVEN_SPLIT_RULE = "as given by the files"
PAPER_MIN_HISTORY = 3  # the paper's loaders leave out rows with a shorter history

# What the names of the known data sets say about their items.
DOMAIN_OF_NAME: dict[str, Domain] = {
    "movie": "movie",
    "film": "movie",
    "lastfm": "music",
    "music": "music",
    "steam": "game",
    "game": "game",
}


@dataclass(frozen=True)
class FolderReport:
    """Statistics of a sound data folder.

    Attributes:
        rows: number of rows of each split.
        rows_min_history_3: those with at least 3 history items, the rows the paper uses.
        users: number of known users of each split.
        sequence_lengths: shortest, median and longest sequence; None without sequences.
        candidates: length of every list, target included.
        notes: what is no error but worth knowing.
    """

    path: str
    name: str
    domain: Domain
    sha256: str
    items: int
    rows: dict[Split, int]
    rows_min_history_3: dict[Split, int]
    users: dict[Split, int]
    sequences: int
    interactions: int
    sequence_lengths: tuple[int, float, int] | None
    window: int
    split_rule: str
    candidates: int
    candidate_seed: int
    candidate_exclusion: Exclusion
    notes: tuple[Note, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def table(self) -> list[tuple[str, str]]:
        """Rows of (what, value) for the terminal."""
        lines = [
            ("name", f"{self.name} ({self.domain})"),
            ("items", f"{self.items:,}"),
        ]
        for split in SPLITS:
            lines.append(
                (
                    f"{split} rows",
                    f"{self.rows[split]:,} ({self.rows_min_history_3[split]:,} with history ≥ "
                    f"{PAPER_MIN_HISTORY}; known users: {self.users[split]:,})",
                )
            )
        if self.sequence_lengths is not None:
            low, median, high = self.sequence_lengths
            lines.append(("sequences", f"{self.sequences:,} of {low} / {median:g} / {high} items"))
            lines.append(("interactions", f"{self.interactions:,}"))
        lines += [
            ("window", str(self.window)),
            ("split", self.split_rule),
            (
                "candidates",
                f"{self.candidates} (seed {self.candidate_seed}, negatives outside the "
                f"user's {self.candidate_exclusion})",
            ),
            ("sha256", self.sha256),
        ]
        return lines + [("note", note.text) for note in self.notes]


def check_folder(path: str | Path) -> FolderReport:
    """Read and check every line of every file of a data folder; describe it.

    Raises:
        InputError: the first thing that is wrong, naming file, line, value and remedy.
    """
    folder = DataFolder.open(path)
    catalog = folder.catalog
    rows = {split: folder.rows(split, min_history=0) for split in SPLITS}
    sequences = folder.sequences() or []
    ranked: tuple[Split, ...] = ("val", "test")
    lists = {split: folder.candidates(split) for split in ranked}
    contents = Contents(catalog, rows, sequences)
    _require_counts(folder, contents.counts())
    lengths = [len(sequence.items) for sequence in sequences]
    record = folder.manifest.candidates
    return FolderReport(
        path=str(folder.path),
        name=folder.name,
        domain=folder.domain,
        sha256=folder.sha256,
        items=len(catalog),
        rows=_each(rows, len),
        rows_min_history_3=_each(
            rows, lambda mine: sum(len(row.history) >= PAPER_MIN_HISTORY for row in mine)
        ),
        users=_each(rows, lambda mine: len({row.user for row in mine} - {None})),
        sequences=len(sequences),
        interactions=sum(lengths),
        sequence_lengths=(
            (min(lengths), float(np.median(lengths)), max(lengths)) if lengths else None
        ),
        window=folder.window,
        split_rule=folder.manifest.split.rule,
        candidates=record.count,
        candidate_seed=record.seed,
        candidate_exclusion=record.excluded,
        notes=(*catalog_notes(catalog), *row_notes(catalog, rows, sequences, lists)),
    )


def fix_folder(
    path: str | Path,
    *,
    seed: int = 0,
    domain: Domain | None = None,
    name: str | None = None,
    excluded: Exclusion = "sequence",
) -> tuple[str, ...]:
    """Add what a folder of rows lacks: ``candidates.{val,test}.jsonl.gz`` and ``dataset.json``.

    A complete folder is left as it is (its hashes are compared). Otherwise every line is
    checked before anything is written; a candidate file that is there is kept, and recorded
    as "given" unless it is what this seed draws. Each file appears whole, ``dataset.json``
    last, so a run that was killed is finished by the next.

    Args:
        seed: of the candidates, recorded.
        domain: movie, music, game, product or item; None reads it from ``name`` for the known
            data sets (MovieLens, LastFM, Steam, Video Games) and takes "item" for others.
        name: name of the data set; None takes the folder's.
        excluded: what negatives keep out of; see `draw_candidates` ("sequence" gives it the
            users' known items, "history" does not).

    Returns:
        Names of the files written; empty for a complete folder.

    Raises:
        InputError: anything `check_folder` objects to; a complete folder of another name or domain
            than the ones asked for; a file that is not the one recorded in
            ``dataset.json``; a folder that cannot be written to.
    """
    path = Path(path)
    require_row_files(path)
    if (path / MANIFEST_FILE).exists():
        _require_as_asked(DataFolder.open(path), domain=domain, name=name)
        return ()
    name = path.resolve().name if name is None else name
    domain = domain_of(name) if domain is None else domain
    if domain not in DOMAINS:
        raise InputError(f"domain is {domain!r}; it must be one of {', '.join(DOMAINS)}")
    if excluded not in EXCLUSIONS:
        raise InputError(f"excluded is {excluded!r}; it must be one of {', '.join(EXCLUSIONS)}")
    try:
        return _complete(path, seed=seed, domain=domain, name=name, excluded=excluded)
    except OSError as error:
        raise InputError(
            f"{path} cannot be completed ({error.strerror or error}); "
            "work on a copy that can be written to"
        ) from None


def _require_as_asked(folder: DataFolder, **asked: str | None) -> None:
    for key, value in asked.items():
        if value is not None and value != getattr(folder, key):
            raise InputError(
                f"{key} is {value!r}, but {folder.path / MANIFEST_FILE} has {getattr(folder, key)!r}; "
                "remove it to have it written anew"
            )


def domain_of(name: str) -> Domain:
    """The domain that a data set's name gives away ("movielens" → movie), else "item"."""
    for word, domain in DOMAIN_OF_NAME.items():
        if word in name.casefold():
            return domain
    return "item"


def _complete(
    path: Path, *, seed: int, domain: Domain, name: str, excluded: Exclusion
) -> tuple[str, ...]:
    catalog = Catalog.load(path / "items.csv")
    rows = {split: read_rows(path / f"{split}.jsonl.gz", len(catalog)) for split in SPLITS}
    sequence_file = path / SEQUENCE_FILE
    sequences = read_sequences(sequence_file, len(catalog)) if sequence_file.exists() else []
    contents = Contents(catalog, rows, sequences)
    known = contents.known_items() if excluded == "sequence" else None
    written, record = _complete_candidates(path, contents, seed, known)
    longest = max(len(row.history) for mine in rows.values() for row in mine)
    manifest = Manifest(
        name=name,
        domain=domain,
        counts=contents.counts(),
        window=max(WINDOW, longest),
        split=SplitRecord(rule=GIVEN_SPLIT_RULE, seed=None),
        candidates=record,
        sha256=file_hashes(path),
    )
    write_json(path / MANIFEST_FILE, manifest.to_dict())
    return (*written, MANIFEST_FILE)


def _complete_candidates(
    path: Path,
    contents: Contents,
    seed: int,
    known: Mapping[int, set[int]] | None,
) -> tuple[list[str], CandidateRecord]:
    """Write the missing candidate files; say what was written and how all of them came about."""
    catalog, rows = contents.catalog, contents.rows
    ranked: tuple[Literal["val"], Literal["test"]] = ("val", "test")
    files = {split: path / f"candidates.{split}.jsonl.gz" for split in ranked}
    given: dict[str, list[tuple[int, ...]]] = {}
    count: int | None = None
    for split in ranked:
        if files[split].exists():
            given[split] = read_candidates(files[split], rows[split], len(catalog), count)
            count = len(given[split][0])
    possible = candidate_count([*rows["val"], *rows["test"]], catalog, count or NUM_CANDIDATES)
    count = count or possible
    written: list[str] = []
    origin: dict[Literal["val", "test"], Literal["drawn", "given"]] = {}
    for split in ranked:
        if split in given and possible < count:  # more than could be drawn: not ours
            origin[split] = "given"
            continue
        drawn = draw_candidates(
            rows[split], catalog, split=split, seed=seed, count=count, known=known
        )
        origin[split] = "drawn" if given.get(split, drawn) == drawn else "given"
        if split not in given:
            with atomic_file(files[split]) as partial:
                write_candidates(partial, rows[split], drawn)
            written.append(files[split].name)
    excluded: Exclusion = "history" if known is None else "sequence"
    return written, CandidateRecord(count=count, seed=seed, excluded=excluded, origin=origin)


def _require_counts(folder: DataFolder, actual: dict[str, int]) -> None:
    for key, recorded in folder.manifest.counts.items():
        if actual.get(key, recorded) != recorded:
            raise InputError(
                f"{folder.path / MANIFEST_FILE} records {recorded} {key} where the files hold "
                f"{actual[key]}; remove it and run `ilora data check --fix`"
            )


def _each(
    rows: Mapping[Split, Sequence[Row]], count: Callable[[Sequence[Row]], int]
) -> dict[Split, int]:
    return {split: count(mine) for split, mine in rows.items()}
