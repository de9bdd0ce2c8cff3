"""Gzipped JSON lines: read with errors that name the line, written with the same bytes every time."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ilora.errors import InputError


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a ``.jsonl.gz`` file; element ``k`` is the object on line ``k + 1``.

    Raises:
        InputError: no such file, not gzip, cut off, not UTF-8, or a line that is not a JSON
            object (a blank line is one; a missing newline at the end of the file is fine).
    """
    lines = _read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path} line {number}: not JSON ({error.msg} at column {error.colno}); "
                "write one object a line"
            ) from None
        if type(record) is not dict:
            raise InputError(
                f"{path} line {number}: {shorten(record)} is not an object; "
                'write one object a line, as in {"user": 7, "history": [1, 2], "target": 3}'
            )
        records.append(record)
    return records


def write_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one compact JSON object a line, gzipped.

    Neither the time nor the file's name enters the gzip header: equal records give equal bytes,
    so a hash of the file is a hash of its content. The caller provides atomicity.
    """
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        for record in records:
            line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            packed.write(line.encode("utf-8") + b"\n")


def shorten(value: object, limit: int = 60) -> str:
    """``repr(value)``, cut to ``limit`` characters: an error message stays one readable line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _read_text(path: Path) -> str:
    remedy = "take the file from its source again"
    try:
        with gzip.open(path, "rb") as packed:
            return packed.read().decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; restore it or build the folder again") from None
    except EOFError:
        raise InputError(f"{path} is cut off: its gzip stream has no end; {remedy}") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path} is not a sound gzip file ({error}); compress it with `gzip`, or {remedy}"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte {error.start} after decompression); convert it to UTF-8"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
