"""The folders that LLaRA and iLoRA publish, ``data/ref/<name>``, to a data folder.

    train_data.df, Val_data.df, Test_data.df    pickled frames: seq, len_seq, next
    id2name.txt  (id::title)  or  u.item        titles

Liao et al., "LLaRA: Large Language-Recommendation Assistant", SIGIR 2024; Kong et al., NeurIPS 2024.
The frames are the one kind of pickle that is read to make data; `ilora.data.pandas_frames` reads them
without pandas and without running anything in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ilora.data.catalog import Catalog
from ilora.data.check import domain_of
from ilora.data.folder import DataFolder, write_folder
from ilora.data.jsonl import shorten
from ilora.data.manifest import Domain
from ilora.data.movielens import read_catalog
from ilora.data.pandas_frames import read_frame
from ilora.data.progress import with_slow_bar
from ilora.data.sequences import Row, Split
from ilora.errors import InputError

FRAME_FILES: dict[Split, str] = {
    "train": "train_data.df",
    "val": "Val_data.df",
    "test": "Test_data.df",
}
COLUMNS = ("seq", "len_seq", "next")
LONGEST_ID = 18  # digits
SPLIT_RULE = "as published: the rows of train_data.df, Val_data.df and Test_data.df, in their order"


def build_llara(
    source: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    domain: Domain | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> DataFolder:
    """Make a data folder from a published folder; rows and their order stay as they are.

    Histories are padded on the right with the number of items; that padding goes, and ratings
    beside items go. ``len_seq`` is checked against what is left (1 stands for an empty history too).
    Titles are those of the files, whole: the loaders that came with them cut titles at ``::`` and
    misplace articles. The frames name no users, so candidates can only keep out of a row's own history.

    Args:
        name: of the data set; None takes the folder's.
        domain: what an item is; None tells it by the name.
        seed: of the candidates.

    Raises:
        InputError: a missing file, a pickle that needs more than frames do (nothing in it is run),
            or a row that does not add up, naming it.
    """
    source = Path(source)
    name = name or source.resolve().name
    catalog = _read_titles(source)
    frames = {
        split: read_frame(source / FRAME_FILES[split])
        for split in with_slow_bar(FRAME_FILES, "reading frames", len(FRAME_FILES))
    }
    window = max(1, *(_window(source / FRAME_FILES[split], frames[split]) for split in frames))
    return write_folder(
        out,
        name=name,
        domain=domain or domain_of(name),
        catalog=catalog,
        rows={
            split: list(_rows(source / FRAME_FILES[split], frame, len(catalog), window))
            for split, frame in frames.items()
        },
        seed=seed,
        window=window,
        excluded="history",
        split_rule=SPLIT_RULE,
        details={"source": {"files": [*FRAME_FILES.values(), _titles_file(source).name]}},
        overwrite=overwrite,
    )


def read_id2name(path: Path) -> Catalog:
    """Read ``id::title`` lines in any order; a title may hold ``::`` itself.

    Raises:
        InputError: naming the line; also for an id that is missing or there twice.
    """
    titles: dict[int, str] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); convert it") from None
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        item, separator, title = line.partition("::")
        sound = separator and item.isascii() and item.isdigit() and len(item) <= LONGEST_ID
        if not sound or int(item) in titles:
            raise InputError(
                f"{path} line {number}: {shorten(line)} does not begin with a new id and ::; "
                "take id2name.txt as it was published"
            )
        titles[int(item)] = title.strip() or f"Item {item}"
    for expected in range(len(titles)):
        if expected not in titles:
            raise InputError(
                f"{path} has no item {expected}; its ids must run from 0 without a gap"
            )
    return Catalog(tuple(titles[item] for item in sorted(titles)))


def _titles_file(source: Path) -> Path:
    for name in ("id2name.txt", "u.item"):
        if (source / name).is_file():
            return source / name
    raise InputError(
        f"{source} has neither id2name.txt nor u.item; give a folder such as LLaRA's data/ref/steam"
    )


def _read_titles(source: Path) -> Catalog:
    path = _titles_file(source)
    return read_catalog(path) if path.name == "u.item" else read_id2name(path)


def _window(path: Path, frame: dict[str, list[Any]]) -> int:
    """The padded length of the histories, one for the whole file."""
    for column in COLUMNS:
        if column not in frame:
            raise InputError(
                f"{path} has no column {column}; its columns are {shorten(list(frame))}, and "
                f"{', '.join(COLUMNS)} are needed"
            )
    if not frame["seq"]:
        raise InputError(f"{path} has no row; take it as published")
    lengths = {len(seq) if type(seq) in (list, tuple) else -1 for seq in frame["seq"]}
    if len(lengths) != 1 or min(lengths) < 0:
        raise InputError(f"{path}: seq does not hold lists of one length; take it as published")
    return lengths.pop()


def _rows(path: Path, frame: dict[str, list[Any]], num_items: int, window: int) -> Iterator[Row]:
    columns = (frame[column] for column in COLUMNS)
    for number, (padded, length, target) in enumerate(zip(*columns, strict=True)):
        items = [_item(entry) for entry in padded]
        try:
            history = items[: items.index(num_items)]
        except ValueError:
            history = items
        sound = (
            all(type(item) is int and 0 <= item < num_items for item in (*history, _item(target)))
            and all(item == num_items for item in items[len(history) :])
            and (length == len(history) or (length == 1 and not history))
        )
        if not sound:
            raise InputError(
                f"{path} row {number}: seq {shorten(padded)}, len_seq {shorten(length)}, next "
                f"{shorten(target)} is not a history of items below {num_items}, padded on the right "
                f"with {num_items}, its length and a target; take frame and titles of one data set"
            )
        yield Row(None, tuple(history), _item(target))


def _item(entry: Any) -> Any:
    """MovieLens has pairs of item and rating where the others have items."""
    return entry[0] if type(entry) is tuple and len(entry) == 2 else entry
