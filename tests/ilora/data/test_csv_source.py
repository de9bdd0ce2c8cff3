"""Any table of user, item, timestamp."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import pytest

from ilora.data.check import check_folder
from ilora.data.csv_source import (
    CsvColumns,
    build_csv,
    parse_time,
)
from ilora.data.folder import DataFolder
from ilora.data.interactions import Interaction, k_core, number_ids
from ilora.errors import InputError

TITLED = CsvColumns(title="title")


def table(num_users: int = 12, num_items: int = 30) -> str:
    """Each user's five interactions, latest first, so that an unsorted result would show."""
    lines = ["user,item,timestamp,title"]
    for user in range(num_users):
        for step in reversed(range(5)):
            item = (3 * user + step) % num_items
            lines.append(f'u{user},i{item},{step},"Title, {item}"')
    return "\n".join(lines) + "\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "shop.csv"
    path.write_text(table())
    return path


def test_a_table_becomes_a_sound_folder(source: Path, tmp_path: Path) -> None:
    folder = build_csv(source, tmp_path / "out", columns=TITLED, domain="product", seed=2)
    assert (folder.name, folder.domain) == ("shop", "product")
    report = check_folder(folder.path)
    assert (report.sequences, report.interactions, report.items) == (12, 60, 30)
    names = folder.catalog.columns["source_id"]
    sequences = folder.sequences() or []
    assert [names[item] for item in sequences[1].items] == ["i3", "i4", "i5", "i6", "i7"]
    assert folder.catalog.title(names.index("i4")) == "Title, 4"
    assert (folder.path / "users.csv").read_text().splitlines()[2] == "1,u1"


def test_tabs_gzip_and_other_column_names_change_nothing(source: Path, tmp_path: Path) -> None:
    plain = build_csv(source, tmp_path / "plain", columns=TITLED)
    text = table().replace('"', "").replace("Title, ", "Title; ").replace(",", "\t")
    text = text.replace(";", ",").replace("user\titem\ttimestamp\ttitle", "who\twhat\twhen\tcalled")
    zipped = tmp_path / "shop.tsv.gz"
    zipped.write_bytes(gzip.compress(text.encode(), mtime=0))
    columns = CsvColumns("who", "what", "when", title="called")
    other = build_csv(zipped, tmp_path / "other", columns=columns, name="shop")
    assert other.sha256 == plain.sha256


def test_titles_come_from_a_separate_file(source: Path, tmp_path: Path) -> None:
    titles = tmp_path / "titles.csv"
    titles.write_text("item,title\n" + "".join(f"i{n},Thing {n}\n" for n in range(40)))
    folder = build_csv(source, tmp_path / "out", titles=titles)
    assert set(folder.catalog.titles) == {f"Thing {n}" for n in range(30)}


def test_an_item_without_title_is_called_by_its_id_and_that_is_said(
    source: Path, tmp_path: Path
) -> None:
    titles = tmp_path / "titles.csv"
    titles.write_text("item,title\ni1,Thing 1\ni2, \n")
    with pytest.warns(UserWarning, match="29 of 30 items have no title"):
        folder = build_csv(source, tmp_path / "out", titles=titles)
    assert {"Thing 1", "i2", "i3"} < set(folder.catalog.titles)


def test_without_any_titles_the_ids_are_titles_and_nothing_is_warned(
    source: Path, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = build_csv(source, tmp_path / "out")
    assert folder.catalog.titles == folder.catalog.columns["source_id"]


def test_equal_times_keep_the_order_of_the_file() -> None:
    events = [Interaction("a", item, time) for item, time in (("x", 5), ("y", 5), ("z", 1))]
    users, items, (sequence,) = number_ids(events)
    assert (users, items, sequence.items) == (["a"], ["x", "y", "z"], (2, 0, 1))


def test_nanoseconds_are_told_apart() -> None:
    late, later = "1700000000000000001", "1700000000000000002"
    assert float(late) == float(later)
    assert parse_time(late) < parse_time(later)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12", 12),
        ("1.5e3", 1500),
        ("1970-01-02", 86_400),
        ("1970-01-01T00:01:00Z", 60),
        ("1970-01-01 01:00:00+01:00", 0),
        ("1970-01-01 00:00:05", 5),
    ],
)
def test_times_are_numbers_or_dates(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


def test_the_core_is_what_is_left_when_dropping_has_ended() -> None:
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "y"), ("c", "z")]
    events = [Interaction(user, item, 0) for user, item in pairs]
    # z is too rare; without it c is too short; x and y still have two users each.
    assert k_core(events, 2, 2) == events[:4]
    assert k_core(events, 1, 1) == events
    assert k_core(events, 3, 1) == []


def test_low_ratings_are_left_out(tmp_path: Path) -> None:
    lines = ["user,item,timestamp,stars"]
    lines += [f"u{u},i{i},{i},{1 + i % 5}" for u in range(10) for i in range(30)]
    (tmp_path / "rated.csv").write_text("\n".join(lines))
    columns = CsvColumns(rating="stars")
    folder = build_csv(tmp_path / "rated.csv", tmp_path / "out", columns=columns, min_rating=4)
    assert len(folder.catalog) == 12
    assert folder.info["source"]["min_rating"] == 4


def test_a_rating_column_without_a_threshold_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give both or neither"):
        build_csv(source, tmp_path / "out", min_rating=3)


def test_a_byte_order_mark_is_no_part_of_the_first_column(source: Path, tmp_path: Path) -> None:
    source.write_text(table(), encoding="utf-8-sig")
    assert isinstance(build_csv(source, tmp_path / "out"), DataFolder)


def test_a_folder_of_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give one CSV or TSV file"):
        build_csv(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n", {}, r"no column 'user'; its header line is \['a', 'b'\]"),
        ("", {}, "no column 'user'"),
        ("user,item,timestamp\n", {}, "holds no interaction"),
        ("user,item,timestamp,item\n1,2,3,4\n", {}, "has 2 columns 'item'; rename all but one"),
        (
            "user,item,timestamp,title\n1,2,3,\n1,4,4,\n1,5,5,\n",
            {"columns": TITLED},
            "none of the 3 items has a title, '2' among them",
        ),
        ("user,item,timestamp\n1,2,soon\n", {}, "line 2: timestamp is 'soon'"),
        ("user,item,timestamp\n1,2,nan\n", {}, "line 2: timestamp is 'nan'"),
        ("user,item,timestamp\n1,2,3\n, 2,3\n", {}, "line 3: user is empty"),
        ("user,item,timestamp\n1,,3\n", {}, "line 2: item is empty"),
        ("user,item,timestamp\n1,2\n", {}, "line 2: not 3 fields"),
        ("user,item,timestamp\n1,2,3,4\n", {}, "line 2: not 3 fields"),
        ('user,item,timestamp\n"1,2,3\n', {}, "not sound CSV"),
        ("user,item,timestamp\n1,2,3\n", {}, "none of its 1 interactions is left"),
        ("user,item,timestamp\n1,2,3\n", {"delimiter": ";;"}, "delimiter is ';;'"),
        ("user,item,timestamp\n1,2,3\n", {"encoding": "klingon"}, "encoding is 'klingon'"),
        ("user,item,timestamp\n1,2,3\n", {"min_user_count": 1}, "1 users cannot be split"),
        (
            "user,item,timestamp,title\n1,2,3,One\n1,2,4,Two\n",
            {"columns": TITLED},
            "line 3: item '2' is 'Two' here and 'One' above",
        ),
        (
            "user,item,timestamp,rating\n1,2,3,good\n",
            {"columns": CsvColumns(rating="rating"), "min_rating": 3},
            "line 2: rating is 'good'",
        ),
    ],
)
def test_a_bad_table_is_refused_in_a_sentence(
    source: Path, tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    source.write_text(text)
    with pytest.raises(InputError, match=message):
        build_csv(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(table().encode(), mtime=0)[:-9], "is cut off"),
        (table().encode(), "not a sound gzip file"),
        (gzip.compress("user,item,timestamp\né,1,2\n".encode("latin-1"), mtime=0), "is not utf-8"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "shop.csv.gz").write_bytes(data)
    with pytest.raises(InputError, match=rf"shop\.csv\.gz.* ({message})"):
        build_csv(tmp_path / "shop.csv.gz", tmp_path / "out")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv is missing"):
        build_csv(tmp_path / "none.csv", tmp_path / "out")
