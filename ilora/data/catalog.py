"""The catalogue: which title belongs to which item id."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ilora.errors import InputError
from ilora.files import atomic_file


@dataclass(frozen=True)
class Catalog:
    """Items ``0 … len - 1`` and their titles. The id is the truth; the title is for the prompt.

    Titles are not unique, may contain one another, commas, ``::`` and any script. None is empty
    (an empty title would be "found" in every generated answer), and white space inside one is
    a single blank (a line break would break the prompt's lines).

    Attributes:
        titles: ``titles[item_id]``.
        columns: further columns of ``items.csv`` (``title_raw``, ``source_id``, …), each as long
            as ``titles``; kept from load to save and used by nobody.

    Raises:
        InputError: no items, an empty title, or a column of another length.
    """

    titles: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        titles = tuple(" ".join(title.split()) for title in self.titles)
        object.__setattr__(self, "titles", titles)
        if not titles:
            raise InputError("titles is empty; a catalogue needs at least one item")
        if "" in titles:
            raise InputError(
                f"titles[{titles.index('')}] is empty; give the item a title, "
                "if need be its id in words"
            )
        for name, values in self.columns.items():
            if len(values) != len(titles):
                raise InputError(
                    f"columns[{name!r}] has {len(values)} values for {len(titles)} titles; "
                    "give one value for each item"
                )

    def __len__(self) -> int:
        return len(self.titles)

    def title(self, item: int) -> str:
        """Title of one item; raises `InputError` for an id outside ``0 … len - 1``."""
        if not 0 <= item < len(self.titles):  # a negative index would silently name another item
            raise InputError(
                f"item {item} is not in the catalogue; its ids run from 0 to {len(self) - 1}"
            )
        return self.titles[item]

    def title_groups(self) -> NDArray[np.int64]:
        """``[len]``: equal numbers for items whose titles a reader cannot tell apart (case folded)."""
        first: dict[str, int] = {}
        keys = (title.casefold() for title in self.titles)
        return np.array([first.setdefault(key, len(first)) for key in keys], dtype=np.int64)

    @classmethod
    def load(cls, path: Path) -> Catalog:
        """Read ``items.csv``: UTF-8, columns ``item_id`` and ``title``, ids 0, 1, 2, … in order.

        Raises:
            InputError: naming the file and the line.
        """
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                return cls._parse(path, csv.DictReader(file, strict=True))
        except FileNotFoundError:
            raise InputError(
                f"{path} is missing; write the catalogue with the columns item_id and title"
            ) from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error.reason}); convert it") from None
        except csv.Error as error:
            raise InputError(f"{path} is not sound CSV ({error}); quote its fields") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None

    @classmethod
    def _parse(cls, path: Path, reader: csv.DictReader[str]) -> Catalog:
        names = list(reader.fieldnames or ())
        for name in ("item_id", "title"):
            if names.count(name) != 1:
                raise InputError(
                    f"{path} line 1: the header {','.join(names)!r} must name {name} once; "
                    "write item_id,title"
                )
        columns: dict[str, list[str]] = {name: [] for name in names}
        for expected, record in enumerate(reader):
            line = f"{path} line {reader.line_num}"
            if None in record or None in record.values():
                raise InputError(
                    f"{line}: not {len(names)} fields; put titles with commas in double quotes"
                )
            if record["item_id"] != str(expected):
                raise InputError(
                    f"{line}: item_id is {record['item_id']!r} where {expected} must stand; "
                    "ids are dense and sorted, from 0"
                )
            if not record["title"].strip():
                raise InputError(
                    f"{line}: item {expected} has no title; give it one, if need be its id in words"
                )
            for name in names:
                columns[name].append(record[name])
        if not columns["title"]:
            raise InputError(f"{path} lists no item; a catalogue needs at least one")
        further = {n: tuple(v) for n, v in columns.items() if n not in ("item_id", "title")}
        return cls(tuple(columns["title"]), further)

    def save(self, path: Path) -> None:
        """Write ``items.csv`` atomically; equal catalogues give equal bytes."""
        with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["item_id", "title", *self.columns])
            writer.writerows(
                [item, title, *(values[item] for values in self.columns.values())]
                for item, title in enumerate(self.titles)
            )
