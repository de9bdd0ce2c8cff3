"""Any table of (user, item, timestamp), with or without titles, to a data folder."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

from ilora.data.csv_table import read_table
from ilora.data.folder import DataFolder, write_folder
from ilora.data.interactions import (
    Interaction,
    number_ids,
    require_core,
    titled_catalog,
)
from ilora.data.jsonl import shorten
from ilora.data.manifest import Domain
from ilora.data.sequences import WINDOW
from ilora.errors import InputError


@dataclass(frozen=True)
class CsvColumns:
    """Names of the columns, as the header line has them.

    ``title`` is read from the table itself, or from the separate titles file where one is given
    (which then has the columns ``item`` and ``title``). ``rating`` is needed for ``min_rating``.
    """

    user: str = "user"
    item: str = "item"
    timestamp: str = "timestamp"
    title: str | None = None
    rating: str | None = None


def build_csv(
    source: str | Path,
    out: str | Path,
    *,
    columns: CsvColumns = CsvColumns(),
    titles: str | Path | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8-sig",
    name: str | None = None,
    domain: Domain = "item",
    min_rating: float | None = None,
    min_user_count: int = 3,
    min_item_count: int = 1,
    window: int = WINDOW,
    seed: int = 0,
    overwrite: bool = False,
) -> DataFolder:
    """Make a data folder from a CSV or TSV file (also gzipped) with a header line.

    A user's interactions are sorted by time; equal times keep the file's order. Repeated
    interactions are kept. Ids may be any text: they are numbered in order of appearance, and
    stay readable in ``items.csv`` (column ``source_id``) and ``users.csv``. Users are split 8:1:1.

    Args:
        titles: separate file of item ids and titles. Without titles the ids stand in for them.
        delimiter: None takes a tab for ``.tsv`` and ``.tab``, a comma for everything else.
        encoding: of both files.
        name: of the data set; None takes the file's name.
        min_rating: leave out interactions rated lower.
        min_user_count: leave out users with fewer interactions …
        min_item_count: … and items with fewer, again and again until both hold (the k-core of
            He and McAuley 2016).

    Timestamps are numbers or ISO 8601 dates (without a zone: UTC), one kind throughout.

    Raises:
        InputError: a missing column, an empty id, a time or rating that cannot be read, an item
            with two titles (all naming the line), or too little left after filtering.
    """
    source = Path(source)
    if titles is not None and columns.title is None:
        columns = CsvColumns(**{**asdict(columns), "title": "title"})
    if (min_rating is not None) != (columns.rating is not None):
        raise InputError("columns.rating and min_rating go together; give both or neither")
    own_title = columns.title if titles is None else None
    interactions, title_of = _read_interactions(
        source, columns, own_title, delimiter, encoding, min_rating
    )
    if titles is not None:
        title_of = _read_titles(Path(titles), columns, delimiter, encoding)
    kept = require_core(interactions, min_user_count, min_item_count, source)
    users, items, sequences = number_ids(kept)
    return write_folder(
        out,
        name=name or source.name.split(".", maxsplit=1)[0],
        domain=domain,
        catalog=titled_catalog(items, title_of, titles_wanted=columns.title is not None),
        sequences=sequences,
        seed=seed,
        window=window,
        user_names=users,
        details={
            "source": {
                "files": [source.name] + ([] if titles is None else [Path(titles).name]),
                "columns": {key: value for key, value in asdict(columns).items() if value},
                "min_rating": min_rating,
                "min_user_count": min_user_count,
                "min_item_count": min_item_count,
            }
        },
        overwrite=overwrite,
    )


def parse_time(text: str) -> float:
    """A number as it is (whole ones exactly, however long), an ISO 8601 date as seconds.

    Raises:
        ValueError: neither, or not finite.
    """
    try:
        return int(text)  # nanoseconds since 1970 do not fit a double exactly
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        # Python 3.10 knows no Z.
        moment = datetime.fromisoformat(text.removesuffix("Z") + "+00:00" * text.endswith("Z"))
        zone = moment.tzinfo or timezone.utc
        return moment.replace(tzinfo=zone).timestamp()
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def _read_interactions(
    path: Path,
    columns: CsvColumns,
    title: str | None,
    delimiter: str | None,
    encoding: str,
    min_rating: float | None,
) -> tuple[list[Interaction], dict[str, str]]:
    wanted = [columns.user, columns.item, columns.timestamp]
    wanted += [name for name in (title, columns.rating) if name is not None]
    interactions: list[Interaction] = []
    title_of: dict[str, str] = {}
    for number, record in read_table(path, wanted, delimiter, encoding):
        user, item = (_identity(path, number, record, n) for n in (columns.user, columns.item))
        if title is not None:
            _note_title(path, number, title_of, item, record[title])
        text = record[columns.timestamp].strip()
        try:
            time = parse_time(text)
        except ValueError:
            raise InputError(
                f"{path} line {number}: {columns.timestamp} is {shorten(text)}; write a number "
                "or a date such as 2024-05-31T12:00:00"
            ) from None
        if (
            columns.rating is None
            or min_rating is None
            or _rating(path, number, columns.rating, record[columns.rating]) >= min_rating
        ):
            interactions.append(Interaction(user, item, time))
    return interactions, title_of


def _read_titles(
    path: Path, columns: CsvColumns, delimiter: str | None, encoding: str
) -> dict[str, str]:
    title = cast(str, columns.title)
    title_of: dict[str, str] = {}
    for number, record in read_table(path, [columns.item, title], delimiter, encoding):
        item = _identity(path, number, record, columns.item)
        _note_title(path, number, title_of, item, record[title])
    return title_of


def _identity(path: Path, number: int, record: dict[str, str], name: str) -> str:
    value = record[name].strip()
    if not value:
        raise InputError(f"{path} line {number}: {name} is empty; fill it in or drop the line")
    return value


def _rating(path: Path, number: int, name: str, text: str) -> float:
    try:
        rating = float(text)
    except ValueError:
        rating = math.nan
    if math.isnan(rating):
        raise InputError(f"{path} line {number}: {name} is {shorten(text)}; write a number")
    return rating


def _note_title(path: Path, number: int, title_of: dict[str, str], item: str, text: str) -> None:
    title = " ".join(text.split())
    if title and title_of.setdefault(item, title) != title:
        raise InputError(
            f"{path} line {number}: item {shorten(item)} is {shorten(title)} here and "
            f"{shorten(title_of[item])} above; give an item one title"
        )
