"""Last.fm 2K of HetRec 2011 to a data folder: who met which artist when.

I. Cantador, P. Brusilovsky and T. Kuflik, "2nd Workshop on Information Heterogeneity and Fusion in
Recommender Systems", RecSys 2011. For non-commercial use; the files are not part of this package.

Play counts have no time. Tags have one, so a user meets an artist when he first tags him. The dates
are those of the month: many events of a user fall on one day, and then keep the file's order.
This is a reading of the public files; the exact rows of the paper are in the folder that its authors
publish (`ilora.data.llara`), which does not say how they were made.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ilora.data.download import Published, fetch, unpack
from ilora.data.folder import DataFolder, write_folder
from ilora.data.interactions import (
    Interaction,
    number_ids,
    require_core,
    titled_catalog,
    without_repeats,
)
from ilora.data.jsonl import shorten
from ilora.data.sequences import WINDOW
from ilora.errors import InputError

ARCHIVE = Published(
    "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
    "6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c",
)
ARTIST_FILE = "artists.dat"
TAG_FILE = "user_taggedartists-timestamps.dat"


def build_lastfm(
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
    """Make a data folder from ``artists.dat`` and ``user_taggedartists-timestamps.dat`` in ``source``.

    Args:
        download: first fetch what is not in ``source`` from GroupLens.
        min_user_count, min_item_count: as in `ilora.data.interactions.k_core`.

    Users are split 8:1:1.

    Raises:
        InputError: a missing file, a bad line, naming it, or what `fetch` raises.
    """
    source = Path(source)
    details: dict[str, Any] = {"files": [ARTIST_FILE, TAG_FILE]}
    if download and not all((source / name).is_file() for name in (ARTIST_FILE, TAG_FILE)):
        details["download"] = [fetch(ARCHIVE, source).to_dict()]
        unpack(source / ARCHIVE.name, (ARTIST_FILE, TAG_FILE), source)
    title_of = read_artists(source / ARTIST_FILE)
    met = without_repeats(read_tags(source / TAG_FILE))
    kept = require_core(met, min_user_count, min_item_count, source / TAG_FILE)
    users, items, sequences = number_ids(kept)
    return write_folder(
        out,
        name="lastfm-2k",
        domain="music",
        catalog=titled_catalog(items, title_of),
        sequences=sequences,
        seed=seed,
        window=window,
        user_names=users,
        details={
            "source": {
                **details,
                "min_user_count": min_user_count,
                "min_item_count": min_item_count,
            }
        },
        overwrite=overwrite,
    )


def read_artists(path: Path) -> dict[str, str]:
    """``id TAB name TAB url TAB picture`` below a header line -> names by id."""
    names: dict[str, str] = {}
    for number, fields in _lines(path):
        if len(fields) < 2 or not fields[0].isdigit():
            raise _bad_line(path, number, fields, "id, name, url and picture")
        if name := " ".join(fields[1].split()):
            names[fields[0]] = name
    return names


def read_tags(path: Path) -> list[Interaction]:
    """``user TAB artist TAB tag TAB milliseconds`` below a header line; one event a line."""
    events = []
    for number, fields in _lines(path):
        try:
            user, artist, _tag, time = (int(field) for field in fields)
        except ValueError:
            raise _bad_line(path, number, fields, "user, artist, tag and milliseconds") from None
        events.append(Interaction(str(user), str(artist), time))
    return events


def _bad_line(path: Path, number: int, fields: list[str], wanted: str) -> InputError:
    return InputError(
        f"{path} line {number}: {shorten(fields)} is not {wanted} with tabs between; take the file "
        "as it comes in hetrec2011-lastfm-2k"
    )


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing; give the unpacked hetrec2011-lastfm-2k folder, or --download"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if lost := text.count("\ufffd"):
        warnings.warn(f"{lost} bytes of {path.name} are not UTF-8 and show as \ufffd", stacklevel=3)
    lines = enumerate(text.rstrip("\r\n").split("\n"), start=1)
    return [(number, line.rstrip("\r").split("\t")) for number, line in lines if number > 1]
