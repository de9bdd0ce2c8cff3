"""Fetching a published file: checked by its hash, resumed where it broke off, or a clear sentence.

What has arrived of a file is kept beside it under a hidden name until it is whole and its SHA-256 is
the known one. A later attempt asks the server for the rest alone (HTTP ``Range`` with ``If-Range``, so
that a file that changed meanwhile comes anew).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ilora.errors import InputError
from ilora.files import atomic_file

ATTEMPTS = 3  # in one call; each goes on where the last one broke off
TIMEOUT_S = 30.0
BLOCK = 1 << 16
_TRANSFER_ERRORS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


@dataclass(frozen=True, slots=True)
class Published:
    """A file at a public address. ``sha256`` is None where none is known."""

    url: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came: ``checked`` says whether ``sha256`` was known before."""

    url: str
    bytes: int
    sha256: str
    checked: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``dataset.json``."""
        return asdict(self)


class _BrokenError(Exception):
    """A transfer that another attempt may finish."""


def fetch(file: Published, folder: Path, *, attempts: int = ATTEMPTS) -> Fetched:
    """Put the file into ``folder`` under its own name; one that is there already is only checked.

    Raises:
        InputError: no network, no such file, a transfer that breaks off again and again (what came
            is kept for the next call), or another hash than the known one (what came is removed).
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file.name
    if path.is_file():
        return _check(file, path, path, f"remove {path} to have it fetched anew")
    partial = folder / f".{file.name}.partial"
    trouble = ""
    for _ in range(attempts):
        try:
            _transfer(file.url, partial)
            break
        except _BrokenError as error:
            trouble = str(error)
    else:
        come = partial.stat().st_size if partial.is_file() else 0
        raise InputError(
            f"{file.url} broke off {attempts} times ({trouble}) with {come:,} bytes here; run again "
            f"to go on from there, or fetch it otherwise and put it into {folder}"
        )
    try:
        fetched = _check(
            file, partial, path, "what came is removed; run again, or fetch it otherwise"
        )
    except InputError:
        _forget(partial)
        raise
    partial.replace(path)
    _forget(partial)
    return fetched


def unpack(archive: Path, members: Sequence[str], folder: Path) -> None:
    """Put the named files of a zip archive into ``folder``, wherever in it they are.

    Raises:
        InputError: not a sound zip archive, or one without such a file.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            inside = {name.rpartition("/")[2]: name for name in packed.namelist()}
            for member in members:
                if member not in inside:
                    raise InputError(f"{archive} holds no {member}; remove it and fetch it again")
                with (
                    packed.open(inside[member]) as source,
                    atomic_file(folder / member) as partial,
                    partial.open("wb") as target,
                ):
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise InputError(
            f"{archive} is not a sound zip archive ({error}); remove it and fetch it again"
        ) from None


def _transfer(url: str, partial: Path) -> None:
    """Bring ``partial`` to its full length, from what is there of it.

    Raises:
        _BrokenError: the transfer stopped; what came is in ``partial``.
        InputError: another attempt would not help.
    """
    tag_file = partial.with_name(partial.name + ".tag")
    tag = tag_file.read_text(encoding="utf-8") if tag_file.is_file() else ""
    start = partial.stat().st_size if partial.is_file() and tag else 0
    headers = {"User-Agent": "ilora", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": tag}
    with _answer(url, headers, partial) as answer:
        if answer.status == 206:
            if not _continues(answer, start):
                _forget(partial)
                raise _BrokenError("the server sent another part than the one asked for")
        else:
            start = 0
        # A weak tag promises equal meaning, not equal bytes.
        found = answer.headers.get("ETag", "")
        tag = found if found.startswith('"') else answer.headers.get("Last-Modified", "")
        tag_file.write_text(tag, encoding="utf-8")
        length = answer.headers.get("Content-Length")
        whole = start + int(length) if length is not None and length.isdigit() else None
        with partial.open("ab" if start else "wb") as target:
            _copy(answer, target, url, start, whole)
            target.flush()
            os.fsync(target.fileno())


def _copy(answer: Any, target: BinaryIO, url: str, start: int, whole: int | None) -> None:
    come = start
    with _bar(url, start, whole) as advance:
        while True:
            try:
                block = answer.read(BLOCK)
            except http.client.IncompleteRead as error:
                target.write(error.partial)
                raise _BrokenError("the connection closed early") from None
            except _TRANSFER_ERRORS as error:
                raise _BrokenError(_reason(error)) from None
            if not block:
                break
            target.write(block)  # an error here is the disk's, and passes
            come += len(block)
            advance(len(block))
    if whole is not None and come != whole:
        raise _BrokenError(f"{come:,} of {whole:,} bytes came")


@contextmanager
def _answer(url: str, headers: dict[str, str], partial: Path) -> Iterator[Any]:
    if not url.startswith(("https://", "http://")):
        raise InputError(f"{url} is no http address; give one that begins with https://")
    try:
        answer = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing lies beyond what is here: begin anew
            _forget(partial)
            raise _BrokenError("what was here did not fit the file") from None
        if error.code >= 500 or error.code == 429:
            raise _BrokenError(f"the server answered {error.code}") from None
        raise InputError(
            f"{url} cannot be fetched: the server answered {error.code} ({error.reason}); fetch the "
            "file otherwise and give it with --source"
        ) from None
    except _TRANSFER_ERRORS as error:
        raise InputError(
            f"{url} cannot be reached ({_reason(error)}); check the network, or fetch the file "
            "elsewhere and give it with --source"
        ) from None
    with answer:
        yield answer


def _continues(answer: Any, start: int) -> bool:
    return answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    return " ".join(str(reason or type(error).__name__).split())


def _check(file: Published, path: Path, shown: Path, remedy: str) -> Fetched:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if file.sha256 not in (None, found):
        raise InputError(
            f"{shown} is not the file that was published: its SHA-256 is {found[:12]}… and should be "
            f"{str(file.sha256)[:12]}…; {remedy}"
        )
    return Fetched(file.url, path.stat().st_size, found, checked=file.sha256 is not None)


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    partial.with_name(partial.name + ".tag").unlink(missing_ok=True)


@contextmanager
def _bar(url: str, start: int, whole: int | None) -> Iterator[Any]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(url.rpartition("/")[2], total=whole, completed=start)
        yield lambda size: progress.advance(task, size)
