"""Amazon reviews of one category to a data folder: a user met a product when he reviewed it.

J. Ni, J. Li and J. McAuley, "Justifying Recommendations using Distantly-Labeled Reviews and
Fine-Grained Aspects", EMNLP 2019 (the collection of 2018); those of 2014 and 2023 are read too. For
academic use; the files are not part of this package.

    reviews     reviewerID, asin, unixReviewTime, overall        2014, 2018
                user_id, parent_asin, timestamp (ms), rating     2023
    metadata    asin or parent_asin, title
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ilora.data.download import Published, fetch
from ilora.data.folder import DataFolder, write_folder
from ilora.data.interactions import (
    Interaction,
    number_ids,
    require_core,
    rows_by_time,
    titled_catalog,
)
from ilora.data.jsonl import shorten
from ilora.data.manifest import Domain
from ilora.data.record_lines import read_records, text_of
from ilora.data.sequences import WINDOW
from ilora.data.splits import BY_TIME_RULE
from ilora.errors import InputError

# No hashes are published; the ones of what came are written into dataset.json.
ADDRESS = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"
REVIEW_NAMES = ("{0}_5.json.gz", "reviews_{0}_5.json.gz", "{0}.json.gz", "{0}.jsonl.gz")
META_NAMES = ("meta_{0}.json.gz", "meta_{0}.jsonl.gz")
_CATEGORY = re.compile(r"\w+")


def build_amazon(
    source: str | Path,
    out: str | Path,
    *,
    category: str = "Video_Games",
    domain: Domain = "product",
    download: bool = False,
    first_day: str | None = None,
    last_day: str | None = None,
    min_rating: float | None = None,
    min_user_count: int = 5,
    min_item_count: int = 5,
    window: int = WINDOW,
    seed: int = 0,
    overwrite: bool = False,
) -> DataFolder:
    """Make a data folder from the reviews and the metadata of ``category`` in the folder ``source``.

    The 5-core is taken of what is left between the days. Lines that repeat user, product and time
    count once; a later review of the same product counts again. **The split is by time**: rows sorted
    by the time of their target are cut 8:1:1, so users of validation and test occur in training.

    Args:
        category: as the files name it, such as ``Video_Games``.
        download: first fetch what is not in ``source`` (collection of 2018, 5-core).
        first_day, last_day: leave out reviews before and after these days (UTC), as 2015-10-01.
        min_rating: leave out lower ratings.
        min_user_count, min_item_count: as in `ilora.data.interactions.k_core`.

    Raises:
        InputError: a missing file, a bad line, naming it, or what `fetch` raises.
    """
    if not _CATEGORY.fullmatch(category):
        raise InputError(f"category is {category!r}; give a name such as Video_Games")
    source = Path(source)
    fetched = _download(source, category) if download else []
    reviews = _find(source, category, REVIEW_NAMES, "reviews")
    meta = _find(source, category, META_NAMES, "metadata")
    since, until = _time_range(first_day, last_day)
    events = read_reviews(reviews, min_rating)
    events = [one for one in events if since <= one.time < until]
    kept = require_core(events, min_user_count, min_item_count, reviews)
    users, items, sequences = number_ids(kept)
    details: dict[str, Any] = {
        "files": [reviews.name, meta.name],
        "first_day": first_day,
        "last_day": last_day,
        "min_rating": min_rating,
        "min_user_count": min_user_count,
        "min_item_count": min_item_count,
    }
    if fetched:
        details["download"] = fetched
    return write_folder(
        out,
        name=f"amazon-{category.lower().replace('_', '-')}",
        domain=domain,
        catalog=titled_catalog(items, read_titles(meta, items)),
        sequences=sequences,
        rows=rows_by_time(kept, sequences, window),
        split_rule=BY_TIME_RULE,
        seed=seed,
        window=window,
        user_names=users,
        details={"source": details},
        overwrite=overwrite,
    )


def read_reviews(path: Path, min_rating: float | None = None) -> list[Interaction]:
    """One event a review, in the file's order, exact repeats once; times in seconds."""
    events: dict[Interaction, None] = {}
    for number, record in read_records(path):
        user = text_of(path, number, record, "reviewerID", "user_id")
        item = text_of(path, number, record, "parent_asin", "asin")
        time = record.get("unixReviewTime", record.get("timestamp"))
        rating = record.get("overall", record.get("rating"))
        if not isinstance(time, int | float) or not isinstance(rating, int | float):
            raise InputError(
                f"{path} line {number}: {shorten(record)} has no time or no rating that is a number; "
                "take the file as it was published"
            )
        if min_rating is None or rating >= min_rating:
            seconds = time if "unixReviewTime" in record else time / 1000
            events[Interaction(user, item, seconds)] = None
    return list(events)


def read_titles(path: Path, items: Iterable[str]) -> dict[str, str]:
    """Titles of these items, HTML entities resolved; what is markup rather than a title is left out."""
    wanted = set(items)
    titles: dict[str, str] = {}
    for _, record in read_records(path):
        item, title = record.get("parent_asin", record.get("asin")), record.get("title")
        if item in wanted and type(title) is str:
            text = " ".join(html.unescape(title).split())
            if text and not text.startswith("<"):
                titles.setdefault(str(item), text)
    return titles


def _download(source: Path, category: str) -> list[dict[str, Any]]:
    wanted = (
        (META_NAMES, f"{ADDRESS}/metaFiles2/meta_{category}.json.gz"),
        (REVIEW_NAMES, f"{ADDRESS}/categoryFilesSmall/{category}_5.json.gz"),
    )
    return [
        fetch(Published(url), source).to_dict()
        for names, url in wanted
        if not list(_candidates(source, category, names))
    ]


def _find(source: Path, category: str, names: tuple[str, ...], what: str) -> Path:
    for path in _candidates(source, category, names):
        return path
    first = names[0].format(category)
    raise InputError(
        f"{source} has no {what} of {category}, such as {first}; put them there, or give --download"
    )


def _candidates(source: Path, category: str, names: tuple[str, ...]) -> Iterable[Path]:
    for name in names:
        packed = source / name.format(category)
        yield from (path for path in (packed, packed.with_name(packed.name[:-3])) if path.is_file())


def _time_range(first_day: str | None, last_day: str | None) -> tuple[float, float]:
    """Seconds since 1970: from the start of the first day, up to the end of the last."""
    since = -math.inf if first_day is None else _midnight("first_day", first_day)
    until = math.inf if last_day is None else _midnight("last_day", last_day) + 24 * 60 * 60
    return since, until


def _midnight(name: str, day: str) -> float:
    try:
        moment = datetime.strptime(day, "%Y-%m-%d")
    except ValueError:
        raise InputError(f"{name} is {day!r}; write it as 2015-10-01") from None
    return moment.replace(tzinfo=timezone.utc).timestamp()
