"""Folders as LLaRA and iLoRA publish them, made up in their format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ilora.data.check import check_folder
from ilora.data.llara import build_llara, read_id2name
from ilora.errors import InputError
from tests.ilora.pickle_writer import Made, Named, frame, written

NUM_ITEMS = 30
WINDOW = 4
HISTORIES = [[], [3], [1, 2], [5, 6, 7], [8, 9, 10, 11], [0, 29, 0, 29]]


def columns(pairs: bool = False, **changes: Any) -> dict[str, list[Any]]:
    """The published columns of the histories above, each with the target 12."""

    def entry(item: int) -> Any:
        return (item, 4 if item < NUM_ITEMS else 0) if pairs else item

    padded = [history + [NUM_ITEMS] * (WINDOW - len(history)) for history in HISTORIES]
    made: dict[str, list[Any]] = {
        "seq": [[entry(item) for item in items] for items in padded],
        "len_seq": [max(1, len(history)) for history in HISTORIES],
        "next": [entry(12)] * len(HISTORIES),
    }
    return {**made, **changes}


def write_frames(folder: Path, made: dict[str, list[Any]]) -> None:
    for name in ("train_data.df", "Val_data.df", "Test_data.df"):
        (folder / name).write_bytes(written(frame(made)))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder ``steam``, whose item 7 holds the separator of its file."""
    folder = tmp_path / "steam"
    folder.mkdir()
    titles = [f"{n}::Game {n}" for n in range(NUM_ITEMS)]
    titles[7] = "7::Depths :: Knossos"
    (folder / "id2name.txt").write_text("\n".join(titles[::-1]) + "\n", encoding="utf-8")
    write_frames(folder, columns())
    return folder


def test_rows_come_out_in_order_without_their_padding(published: Path, tmp_path: Path) -> None:
    folder = build_llara(published, tmp_path / "out")
    for split in ("train", "val", "test"):
        rows = folder.rows(split, min_history=0)
        assert [list(row.history) for row in rows] == HISTORIES
        assert {(row.user, row.target) for row in rows} == {(None, 12)}
    assert (folder.name, folder.domain, folder.window) == ("steam", "game", WINDOW)
    assert folder.catalog.titles[6:8] == ("Game 6", "Depths :: Knossos")
    assert folder.info["candidates"]["excluded"] == "history"
    check_folder(folder.path)


def test_movielens_has_its_ratings_taken_away_and_its_titles_from_u_item(
    published: Path, tmp_path: Path
) -> None:
    (published / "id2name.txt").unlink()
    films = [f"{n + 1}|Film {n}, The (1999)|x\n" for n in range(NUM_ITEMS)]
    (published / "u.item").write_text("".join(films), encoding="iso-8859-1")
    write_frames(published, columns(pairs=True))
    folder = build_llara(published, tmp_path / "out", name="movielens")
    assert [list(row.history) for row in folder.rows("val", 0)] == HISTORIES
    assert (folder.domain, folder.catalog.titles[3]) == ("movie", "The Film 3")


SHORT = columns()["seq"][:-1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seq": [*SHORT, [0, NUM_ITEMS, 1, NUM_ITEMS]]}, "row 5"),
        ({"seq": [*SHORT, [0, NUM_ITEMS + 1, 1, 2]]}, "row 5"),
        ({"seq": [*SHORT, [0, -1, 1, 2]]}, "row 5"),
        ({"seq": [*SHORT, [0, 1.0, 1, 2]]}, "row 5"),
        ({"seq": [*SHORT, [0, True, 1, 2]]}, "row 5"),
        ({"seq": [], "len_seq": [], "next": []}, "has no row"),
        ({"seq": [*SHORT, [0, 1]]}, "lists of one length"),
        ({"seq": [*SHORT, 7]}, "lists of one length"),
        ({"seq": [*SHORT, "text"]}, "lists of one length"),
        ({"next": [*[12] * 5, NUM_ITEMS]}, "row 5"),
        ({"next": [*[12] * 5, "12"]}, "row 5"),
        ({"len_seq": [1, 1, 2, 3, 4, 3]}, "row 5"),
        ({"len_seq": [3, 1, 2, 3, 4, 4]}, "row 0"),
        ({"len_seq": ["1"] * 6}, "row 0"),
    ],
)
def test_a_row_that_does_not_add_up_is_named(
    changes: dict[str, Any], told: str, published: Path, tmp_path: Path
) -> None:
    (published / "Val_data.df").write_bytes(written(frame(columns(**changes))))
    with pytest.raises(InputError, match=rf"Val_data\.df.*{told}"):
        build_llara(published, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_frame_of_other_columns_is_named(published: Path, tmp_path: Path) -> None:
    (published / "Test_data.df").write_bytes(written(frame({"a": [1], "seq": [[1]]})))
    with pytest.raises(InputError, match=r"Test_data\.df has no column len_seq"):
        build_llara(published, tmp_path / "out")


@pytest.mark.parametrize("name", ["train_data.df", "Val_data.df", "Test_data.df", "id2name.txt"])
def test_a_missing_file_is_named(name: str, published: Path, tmp_path: Path) -> None:
    (published / name).unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        build_llara(published, tmp_path / "out")


def test_a_frame_that_wants_to_run_something_is_refused(published: Path, tmp_path: Path) -> None:
    cells = [*[12] * 5, Made(Named("os", "system"), (f"touch {tmp_path / 'ran'}",))]
    (published / "train_data.df").write_bytes(written(frame(columns(next=cells))))
    with pytest.raises(InputError, match=r"os\.system, which is not allowed"):
        build_llara(published, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0::A\n2::B\n", "has no item 1"),
        ("0::A\n0::B\n", "line 2"),
        ("0::A\nB\n", "line 2"),
        ("zero::A\n", "line 1"),
        ("", "line 1"),
        ("0::A\n-1::B\n", "line 2"),
        (f"0::A\n{'9' * 5000}::B\n", "line 2"),  # Python refuses to read so long a number
    ],
)
def test_titles_that_do_not_add_up_are_named(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "id2name.txt").write_text(text)
    with pytest.raises(InputError, match=told):
        read_id2name(tmp_path / "id2name.txt")


def test_an_item_without_a_title_gets_one(tmp_path: Path) -> None:
    (tmp_path / "id2name.txt").write_text("0::A\n1:: \n")
    assert read_id2name(tmp_path / "id2name.txt").titles == ("A", "Item 1")
