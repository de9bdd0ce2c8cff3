"""A table with named columns, as CSV or TSV, plain or gzipped; errors name the line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from ilora.data.jsonl import shorten
from ilora.data.progress import open_with_bar
from ilora.errors import InputError


def read_table(
    path: Path, wanted: list[str], delimiter: str | None, encoding: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, fields by column name) of every line below the header.

    Args:
        wanted: columns that the header line must name once, in any order; others are passed on too.
        delimiter: None takes a tab for ``.tsv`` and ``.tab``, a comma for everything else.
            Files whose names end in ``.gz`` are unzipped.

    Raises:
        InputError: naming the file and, where there is one, the line.
    """
    if delimiter is None:
        delimiter = "\t" if path.name.removesuffix(".gz").endswith((".tsv", ".tab")) else ","
    if len(delimiter) != 1:
        raise InputError(f"delimiter is {delimiter!r}; it must be one character")
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise InputError(
            f"encoding is {encoding!r}, which Python does not know; try utf-8 or latin-1"
        ) from None
    try:
        with _open_text(path, encoding) as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            header = list(reader.fieldnames or ())
            for name in wanted:
                if name not in header:
                    raise InputError(
                        f"{path} has no column {name!r}; its header line is "
                        f"{shorten(header)}: name the columns, or the delimiter"
                    )
                if header.count(name) > 1:
                    raise InputError(
                        f"{path} has {header.count(name)} columns {name!r}; rename all but one"
                    )
            for record in reader:
                if None in record or None in record.values():
                    raise InputError(
                        f"{path} line {reader.line_num}: not {len(header)} fields as in the "
                        "header; put fields that hold the delimiter in double quotes"
                    )
                yield reader.line_num, record
    except FileNotFoundError:
        raise InputError(f"{path} is missing; give the path of a CSV or TSV file") from None
    except IsADirectoryError:
        raise InputError(
            f"{path} is a folder; give one CSV or TSV file that holds the rows of all users"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {encoding} ({error.reason}); name its encoding") from None
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: not sound CSV ({error})") from None
    except EOFError:
        raise InputError(f"{path} is cut off: its gzip stream has no end; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a sound gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


@contextmanager
def _open_text(path: Path, encoding: str) -> Iterator[IO[str]]:
    with open_with_bar(path) as raw:  # a zipped file's bar counts zipped bytes
        plain = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        with io.TextIOWrapper(cast(IO[bytes], plain), encoding=encoding, newline="") as text:
            yield text
