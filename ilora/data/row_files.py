"""Rows, sequences and candidate lists as files; every value is checked where its line is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from ilora.data.jsonl import read_json_lines, shorten, write_json_lines
from ilora.data.progress import with_bar
from ilora.data.sequences import Row, Split, UserSequence
from ilora.errors import InputError


def read_rows(path: Path, num_items: int, window: int | None = None) -> list[Row]:
    """Read ``{"user": int or null, "history": [ids], "target": id}`` lines; other keys are ignored.

    Args:
        num_items: ids must lie in ``0 … num_items - 1``.
        window: the longest history allowed; None allows any.

    Raises:
        InputError: naming file, line and value; also for a file without a row.
    """
    rows = []
    for number, record in enumerate(read_json_lines(path), start=1):
        try:
            user, history, target = record["user"], record["history"], record["target"]
        except KeyError as error:
            raise _missing_key(path, number, error, "user, history and target") from None
        if user is not None and type(user) is not int:
            raise _bad_user(path, number, user)
        _check_items(path, number, "history", history, num_items)
        if type(target) is not int or not 0 <= target < num_items:
            raise _bad_item(path, number, "target", target, num_items)
        if window is not None and len(history) > window:
            raise InputError(
                f"{path} line {number}: history has {len(history)} items, more than the "
                f"folder's window of {window}; keep the latest {window}"
            )
        rows.append(Row(user, tuple(history), target))
    if not rows:
        raise InputError(f"{path} has no row; each split needs at least one")
    return rows


def read_sequences(path: Path, num_items: int) -> list[UserSequence]:
    """Read ``{"user": …, "split": "train", "val", "test" or null, "items": [ids]}`` lines.

    Raises:
        InputError: naming file, line and value; also for an empty sequence or a user met twice.
    """
    sequences = []
    line_of: dict[int, int] = {}
    for number, record in enumerate(read_json_lines(path), start=1):
        try:
            user, items, split = record["user"], record["items"], record["split"]
        except KeyError as error:
            raise _missing_key(path, number, error, "user, split and items") from None
        if user is not None and type(user) is not int:
            raise _bad_user(path, number, user)
        if split is not None and split not in get_args(Split):
            raise InputError(
                f"{path} line {number}: split is {shorten(split)}; "
                "it must be train, val, test or null"
            )
        _check_items(path, number, "items", items, num_items)
        if not items:
            raise InputError(f"{path} line {number}: items is empty; leave the line out")
        if user is not None and line_of.setdefault(user, number) != number:
            raise InputError(
                f"{path} line {number}: user {user} has a sequence on line {line_of[user]} "
                "already; join the two"
            )
        sequences.append(UserSequence(user, tuple(items), split))
    return sequences


def read_candidates(
    path: Path, rows: Sequence[Row], num_items: int, count: int | None = None
) -> list[tuple[int, ...]]:
    """Read ``{"user": …, "target": id, "candidates": [ids]}`` lines, line ``k`` for ``rows[k - 1]``.

    Args:
        rows: what the lists belong to, all rows of the split's file.
        count: length of every list; None takes the first one's.

    Raises:
        InputError: naming file, line and value: another number of lines than rows, another user
            or target than the row's, a list without its target, with an item twice, of another
            length or with an id outside the catalogue.
    """
    records = read_json_lines(path)
    if len(records) != len(rows):
        raise InputError(
            f"{path} has {len(records)} lines for {len(rows)} rows; line k belongs to row k: "
            "remove it and dataset.json, then run `ilora data check --fix` to draw it anew"
        )
    lists: list[tuple[int, ...]] = []
    for number, (record, row) in enumerate(zip(records, rows, strict=True), start=1):
        items = _candidate_list(path, number, record, row, num_items)
        count = len(items) if count is None else count
        if len(items) != count:
            raise InputError(
                f"{path} line {number}: {len(items)} candidates where {count} must stand; "
                "every list of a folder has the same length"
            )
        lists.append(items)
    return lists


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a split's rows; the format of `read_rows`."""
    write_json_lines(
        path,
        (
            {"user": row.user, "history": list(row.history), "target": row.target}
            for row in with_bar(rows, f"writing {path.name}")
        ),
    )


def write_sequences(path: Path, sequences: Iterable[UserSequence]) -> None:
    """Write the users' whole sequences; the format of `read_sequences`."""
    write_json_lines(
        path, ({"user": s.user, "split": s.split, "items": list(s.items)} for s in sequences)
    )


def write_candidates(path: Path, rows: Sequence[Row], lists: Sequence[Sequence[int]]) -> None:
    """Write one candidate list a row; the format of `read_candidates`."""
    write_json_lines(
        path,
        (
            {"user": row.user, "target": row.target, "candidates": list(items)}
            for row, items in zip(rows, lists, strict=True)
        ),
    )


def _candidate_list(
    path: Path, number: int, record: dict[str, Any], row: Row, num_items: int
) -> tuple[int, ...]:
    try:
        user, target, items = record["user"], record["target"], record["candidates"]
    except KeyError as error:
        raise _missing_key(path, number, error, "user, target and candidates") from None
    if type(target) is not type(row.target) or (user, target) != (row.user, row.target):
        raise InputError(
            f"{path} line {number}: user {shorten(user)} and target {shorten(target)} do not "
            f"match the row's user {row.user} and target {row.target}; keep the rows' order"
        )
    _check_items(path, number, "candidates", items, num_items)
    if len(items) < 2:
        raise InputError(
            f"{path} line {number}: {len(items)} candidates; a choice needs at least 2"
        )
    if target not in items:
        raise InputError(
            f"{path} line {number}: the target {target} is not among the candidates; add it, "
            "or nobody can answer"
        )
    if len(set(items)) < len(items):
        twice = next(item for item in items if items.count(item) > 1)
        raise InputError(
            f"{path} line {number}: candidate {twice} stands twice; every candidate is distinct"
        )
    return tuple(items)


def _check_items(path: Path, number: int, key: str, items: Any, num_items: int) -> None:
    if type(items) is not list:
        raise InputError(
            f"{path} line {number}: {key} is {shorten(items)}; write a list of item ids"
        )
    for item in items:
        if type(item) is not int or not 0 <= item < num_items:  # True is an int to isinstance
            raise _bad_item(path, number, key, item, num_items)


def _bad_item(path: Path, number: int, key: str, item: object, num_items: int) -> InputError:
    return InputError(
        f"{path} line {number}: {key} holds {shorten(item)}, which is not an item of the "
        f"catalogue (ids 0 to {num_items - 1}); add it to items.csv or drop the line"
    )


def _bad_user(path: Path, number: int, user: object) -> InputError:
    return InputError(f"{path} line {number}: user is {shorten(user)}; write an integer or null")


def _missing_key(path: Path, number: int, error: KeyError, wanted: str) -> InputError:
    return InputError(f"{path} line {number}: no key {error}; a line has {wanted}")
