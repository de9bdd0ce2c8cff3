"""One record a line, as JSON or, as older collections have it, as a Python literal; maybe gzipped."""

from __future__ import annotations

import ast
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from ilora.data.jsonl import shorten
from ilora.data.progress import open_with_bar
from ilora.errors import InputError

LONGEST_LINE = 1 << 22


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, record); blank lines are skipped.

    A line is JSON or a Python literal such as ``{u'username': u'x', 'hours': 0.5}``. Literals are
    parsed, never evaluated: a call or a name in one is refused.

    Raises:
        InputError: no such file, not gzip, not UTF-8, or a line that is neither, naming it.
    """
    number = 0
    try:
        with open_with_bar(path) as raw:  # a zipped file's bar counts zipped bytes
            plain = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            with io.TextIOWrapper(cast(IO[bytes], plain), encoding="utf-8") as lines:
                while line := lines.readline(LONGEST_LINE):
                    number += 1
                    if line.strip():
                        yield number, _record(path, number, line)
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing; give the folder that holds it, or fetch it with --download"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} line {number + 1}: not UTF-8 ({error.reason}); convert it"
        ) from None
    except EOFError:
        raise InputError(f"{path} is cut off: its gzip stream has no end; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a sound gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def text_of(path: Path, number: int, record: dict[str, Any], *keys: str) -> str:
    """The first of ``keys`` that the record has, as text; raises `InputError` if it has none."""
    for key in keys:
        value = record.get(key)
        if type(value) in (str, int) and str(value).strip():
            return str(value).strip()
    raise InputError(
        f"{path} line {number}: {shorten(record)} has no {' or '.join(keys)}; take the file as it "
        "was published"
    )


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        try:
            record = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            record = None
    if type(record) is not dict:
        raise InputError(
            f"{path} line {number}: {shorten(line[:200])} is neither a JSON object nor a Python "
            "literal of one; take the file as it was published"
        )
    return record
