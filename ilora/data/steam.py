"""Steam reviews to a data folder: a user met a game when he reviewed it.

W.-C. Kang and J. McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, who published
the files; LLaRA and iLoRA filter them in a way that is not published (their rows: `ilora.data.llara`).
Both files hold a Python literal a line, which is parsed and never evaluated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ilora.data.csv_source import parse_time
from ilora.data.download import Published, fetch
from ilora.data.folder import DataFolder, write_folder
from ilora.data.interactions import (
    Interaction,
    number_ids,
    require_core,
    titled_catalog,
    without_repeats,
)
from ilora.data.jsonl import shorten
from ilora.data.record_lines import read_records, text_of
from ilora.data.sequences import WINDOW
from ilora.errors import InputError

# No hash of these files is published; the one of what came is written into dataset.json.
REVIEWS = Published("https://cseweb.ucsd.edu/~wckang/steam_reviews.json.gz")
GAMES = Published("https://cseweb.ucsd.edu/~wckang/steam_games.json.gz")


def build_steam(
    source: str | Path,
    out: str | Path,
    *,
    download: bool = False,
    min_user_count: int = 5,
    min_item_count: int = 5,
    window: int = WINDOW,
    seed: int = 0,
    overwrite: bool = False,
) -> DataFolder:
    """Make a data folder from ``steam_reviews.json[.gz]`` and ``steam_games.json[.gz]`` in ``source``.

    A user is a user name; of several reviews of one game the first counts. Reviews have dates alone:
    those of one day keep the file's order. Users are split 8:1:1.

    Args:
        download: first fetch what is not in ``source`` (1.4 GB of reviews).
        min_user_count, min_item_count: as in `ilora.data.interactions.k_core`; 5 as in SASRec.

    Raises:
        InputError: a missing file, a bad line, naming it, or what `fetch` raises.
    """
    source = Path(source)
    fetched = []
    if download:
        fetched = [
            fetch(file, source).to_dict()
            for file in (GAMES, REVIEWS)
            if not find_file(source, file).is_file()
        ]
    reviews, games = find_file(source, REVIEWS), find_file(source, GAMES)
    title_of = read_games(games)
    met = without_repeats(read_reviews(reviews))
    kept = require_core(met, min_user_count, min_item_count, reviews)
    users, items, sequences = number_ids(kept)
    details: dict[str, Any] = {
        "files": [reviews.name, games.name],
        "min_user_count": min_user_count,
        "min_item_count": min_item_count,
    }
    if fetched:
        details["download"] = fetched
    return write_folder(
        out,
        name="steam",
        domain="game",
        catalog=titled_catalog(items, title_of),
        sequences=sequences,
        seed=seed,
        window=window,
        user_names=users,
        details={"source": details},
        overwrite=overwrite,
    )


def find_file(folder: Path, file: Published) -> Path:
    """The published file in a folder, or its unpacked form where that is there instead."""
    unpacked = folder / file.name.removesuffix(".gz")
    return unpacked if unpacked.is_file() else folder / file.name


def read_games(path: Path) -> dict[str, str]:
    """Titles by product id; a record without either is left out, as some are without."""
    titles: dict[str, str] = {}
    for _, record in read_records(path):
        title = record.get("app_name") or record.get("title")
        if type(record.get("id")) is str and type(title) is str and title.strip():
            titles[record["id"]] = " ".join(title.split())
    return titles


def read_reviews(path: Path) -> list[Interaction]:
    """``username``, ``product_id`` and ``date`` of every review, in the file's order."""
    events = []
    for number, record in read_records(path):
        user = text_of(path, number, record, "username", "user_id")
        item = text_of(path, number, record, "product_id")
        date = text_of(path, number, record, "date")
        try:
            events.append(Interaction(user, item, parse_time(date)))
        except ValueError:
            raise InputError(
                f"{path} line {number}: date is {shorten(date)}, not one such as 2017-12-17; take "
                "the file as it was published"
            ) from None
    return events
