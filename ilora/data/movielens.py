"""MovieLens 100K from its raw files ``u.data`` and ``u.item`` to a data folder.

F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
The files are not part of this package; GroupLens gives them out under its own licence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ilora.data.catalog import Catalog
from ilora.data.download import Published, fetch, unpack
from ilora.data.folder import DataFolder, write_folder
from ilora.data.jsonl import shorten
from ilora.data.sequences import WINDOW, UserSequence
from ilora.errors import InputError

ARCHIVE = Published(
    "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
    "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
)
FILES = ("u.data", "u.item")
MIN_RATING = 3  # what LLaRA and iLoRA count as liked
ENCODING = "iso-8859-1"

# "… (1995)", also "… (1995) (V)": the catalogue marks videos so.
_YEAR = re.compile(r"\s*\(\d{4}\)(\s*\(V\))?\s*$")
# The longest article that fits is moved. L' joins its noun; the others stand before it.
_ARTICLES = "The|An|A|La|Le|Les|Il|Lo|Los|Las|El|Das|Der|Die|Det|Den|L'"
_TRAILING_ARTICLE = re.compile(rf"^(?P<noun>.+), (?P<article>{_ARTICLES})$")
_TWO_NAMES = re.compile(r"^(?P<title>.+?) \((?P<other>.+)\)$")


def build_movielens(
    source: str | Path,
    out: str | Path,
    *,
    download: bool = False,
    seed: int = 0,
    min_rating: int = MIN_RATING,
    window: int = WINDOW,
    overwrite: bool = False,
) -> DataFolder:
    """Make a data folder from the folder ``source`` that holds ``u.data`` and ``u.item``.

    Item id = MovieLens id − 1; user id = MovieLens id. Ratings below ``min_rating`` are left out
    (all 1,682 films stay in the catalogue); a user's films are ordered by time and, where the
    clock does not tell them apart, by their order in ``u.data``. Users are split 8:1:1.

    The reference files differ: they lack the first line of ``u.data`` and order ties at random.

    With ``download`` the files are first fetched from GroupLens, unless they are in ``source``.

    Raises:
        InputError: a missing file, a bad line, naming it, or what `fetch` raises.
    """
    source = Path(source)
    details: dict[str, Any] = {"files": list(FILES), "min_rating": min_rating}
    if download and not all((source / name).is_file() for name in FILES):
        details["download"] = [fetch(ARCHIVE, source).to_dict()]
        unpack(source / ARCHIVE.name, FILES, source)
    catalog = read_catalog(source / "u.item")
    sequences = read_sequences(source / "u.data", len(catalog), min_rating)
    if not sequences:
        raise InputError(f"{source / 'u.data'} has no rating of {min_rating} or more; lower it")
    return write_folder(
        out,
        name="movielens-100k",
        domain="movie",
        catalog=catalog,
        sequences=sequences,
        seed=seed,
        window=window,
        details={"source": details},
        overwrite=overwrite,
    )


def read_catalog(path: Path) -> Catalog:
    """Read ``u.item`` (``id|title|…``, ISO-8859-1); the raw titles stay as column ``title_raw``.

    Raises:
        InputError: naming the line, unless ids run 1, 2, 3, …
    """
    raw_titles = []
    for number, line in enumerate(_lines(path), start=1):
        fields = line.split("|")
        if len(fields) < 2 or fields[0] != str(number):
            raise InputError(
                f"{path} line {number}: {shorten(line)} does not begin with {number}|title|; "
                "take u.item as it comes in ml-100k"
            )
        raw_titles.append(fields[1])
    titles = [clean_title(raw) or f"Film {number}" for number, raw in enumerate(raw_titles, 1)]
    return Catalog(tuple(titles), {"title_raw": tuple(raw_titles)})


def read_sequences(path: Path, num_items: int, min_rating: int) -> list[UserSequence]:
    """Read ``u.data`` (``user TAB item TAB rating TAB time``), users in order of appearance.

    A line of column names at the top, which some copies have, is skipped; a first line of
    numbers is a rating like any other.

    Raises:
        InputError: naming the line.
    """
    events: dict[int, list[tuple[int, int]]] = {}
    for number, line in enumerate(_lines(path), start=1):
        fields = line.split("\t")
        if number == 1 and not any(character.isdigit() for character in line):
            continue
        try:
            user, item, rating, time = (int(field) for field in fields)
        except ValueError:
            raise InputError(
                f"{path} line {number}: {shorten(line)} is not user, item, rating and time "
                "with tabs between; take u.data as it comes in ml-100k"
            ) from None
        if not 1 <= item <= num_items:
            raise InputError(
                f"{path} line {number}: item {item} is not in u.item (ids 1 to {num_items}); "
                "take both files from one source"
            )
        if rating >= min_rating:
            events.setdefault(user, []).append((time, item - 1))
    return [
        # Sorting by time alone is stable: ties keep the file's order.
        UserSequence(user, tuple(item for _, item in sorted(mine, key=lambda event: event[0])))
        for user, mine in events.items()
    ]


def clean_title(raw: str) -> str:
    """``"Usual Suspects, The (1995)"`` → ``"The Usual Suspects"``.

    The year goes, a trailing article (English, French, Italian, Spanish, German, Scandinavian)
    comes to the front, in a second name in brackets too. A title that is nothing but a year in
    brackets stays as it is; an empty one stays empty.
    """
    title = _YEAR.sub("", raw).strip() or raw.strip()
    if two := _TWO_NAMES.match(title):
        return f"{_article_first(two['title'])} ({_article_first(two['other'])})"
    return _article_first(title)


def _article_first(title: str) -> str:
    found = _TRAILING_ARTICLE.match(title)
    if found is None:
        return title
    gap = "" if found["article"].endswith("'") else " "
    return f"{found['article']}{gap}{found['noun']}"


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding=ENCODING)
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing; give the unpacked ml-100k folder, with u.data and u.item, or "
            "--download"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    # Not splitlines(): it would also cut at U+0085, which ISO-8859-1 text can hold.
    return [line.rstrip("\r") for line in text.rstrip("\r\n").split("\n")] if text.strip() else []
