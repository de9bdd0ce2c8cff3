"""items.csv: what is read, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilora.data.catalog import Catalog
from ilora.errors import InputError


def test_titles_with_commas_quotes_and_other_scripts_survive_saving(tmp_path: Path) -> None:
    catalog = Catalog(
        ("Storm, Calm", 'The "Best" One', "Depths :: Knossos", "Café №5", "Twin", "Twin"),
        {"title_ref": ("a", "", "c,d", "é", "e", "f")},
    )
    catalog.save(tmp_path / "items.csv")
    loaded = Catalog.load(tmp_path / "items.csv")
    assert loaded == catalog
    assert loaded.columns == catalog.columns


def test_equal_catalogues_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Catalog(("A", "B")).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_white_space_within_a_title_becomes_one_blank() -> None:
    assert Catalog((" Two\n  lines ",)).titles == ("Two lines",)


def test_items_with_the_same_title_in_another_case_are_one_title_group() -> None:
    groups = Catalog(("Twin", "Portal", "TWIN", "Portal 2")).title_groups()
    assert groups.tolist() == [0, 1, 0, 2]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n0,A\n", encoding="utf-8-sig")
    assert Catalog.load(tmp_path / "items.csv").titles == ("A",)


def test_an_id_outside_the_catalogue_has_no_title() -> None:
    with pytest.raises(InputError, match=r"item -1 .* 0 to 1"):
        Catalog(("A", "B")).title(-1)


def test_an_empty_catalogue_is_refused() -> None:
    with pytest.raises(InputError, match="at least one item"):
        Catalog(())


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"'raw'.* 1 values for 2"):
        Catalog(("A", "B"), {"raw": ("a",)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item_id,title\n0,A\n2,B\n", "line 3: item_id is '2' where 1"),
        ("item_id,title\n1,A\n", "line 2: item_id is '1' where 0"),
        ("item_id,title\n0,A\n0,B\n", "line 3: item_id is '0' where 1"),
        ("item_id,title\nx,A\n", "line 2: item_id is 'x' where 0"),
        ("item_id,title\n0, \n", "line 2: item 0 has no title"),
        ("item_id,title\n0,A,B\n", "line 2: not 2 fields"),
        ("item_id,title\n0\n", "line 2: not 2 fields"),
        ("id,title\n0,A\n", "line 1: .* item_id"),
        ("item_id,title\n", "lists no item"),
        ("", "line 1: .* item_id"),
        ('item_id,title\n0,"A\n', "not sound CSV"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "items.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"items.csv.*{message}"):
        Catalog.load(tmp_path / "items.csv")


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_bytes("item_id,title\n0,Café\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        Catalog.load(tmp_path / "items.csv")


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"items\.csv is missing"):
        Catalog.load(tmp_path / "items.csv")
