"""Amazon's files, made up in the formats of the three collections."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ilora.data import amazon
from ilora.data.amazon import build_amazon, read_reviews, read_titles
from ilora.data.check import check_folder
from ilora.data.interactions import Interaction
from ilora.errors import InputError
from tests.ilora.data.file_server import Behaviour

DAY = 24 * 60 * 60
START = 1_443_657_600  # 2015-10-01 00:00 UTC


def review(user: int, item: int, day: float, rating: float = 5.0) -> dict[str, Any]:
    return {
        "overall": rating,
        "reviewerID": f"A{user}",
        "asin": f"B{item:03}",
        "unixReviewTime": START + int(day * DAY),
    }


# Every user buys one thing a day; user u begins on day u, so late targets are of late users.
REVIEWS = [review(u, (u * 7 + step) % 30, u + step) for u in range(20) for step in range(6)]
META = [{"asin": f"B{n:03}", "title": f"Thing {n}"} for n in range(30)]
META[3]["title"] = "Salt &amp; Sanctuary\n"
META[4]["title"] = '<span class="a-size-medium">'


def write(path: Path, records: list[Any]) -> None:
    text = "".join((r if type(r) is str else json.dumps(r)) + "\n" for r in records)
    path.write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Reviews and metadata of 2018."""
    folder = tmp_path / "raw"
    folder.mkdir()
    write(folder / "Video_Games_5.json.gz", REVIEWS)
    write(folder / "meta_Video_Games.json.gz", META)
    return folder


def build(raw: Path, tmp_path: Path, **options: Any) -> Any:
    counts = {"min_user_count": 1, "min_item_count": 1}
    with pytest.warns(UserWarning, match="1 of 30 items have no title"):
        return build_amazon(raw, tmp_path / "out", **{**counts, **options})


def test_rows_are_cut_by_the_time_of_their_target(raw: Path, tmp_path: Path) -> None:
    folder = build(raw, tmp_path, domain="game")
    time_of = {(r["reviewerID"], r["asin"]): r["unixReviewTime"] for r in REVIEWS}
    users = (folder.path / "users.csv").read_text().splitlines()[1:]
    user_of = dict(line.split(",") for line in users)
    ids = folder.catalog.columns["source_id"]
    times = {
        split: [time_of[user_of[str(row.user)], ids[row.target]] for row in folder.rows(split, 0)]
        for split in ("train", "val", "test")
    }
    assert [len(times[split]) for split in times] == [80, 10, 10]
    assert max(times["train"]) <= min(times["val"])
    assert max(times["val"]) <= min(times["test"])
    assert all(row.history for split in ("train", "val", "test") for row in folder.rows(split, 0))
    assert (folder.name, folder.domain) == ("amazon-video-games", "game")
    assert {one.split for one in folder.sequences()} == {None}
    check_folder(folder.path)


def test_titles_lose_their_entities_and_markup_is_none(raw: Path, tmp_path: Path) -> None:
    folder = build(raw, tmp_path)
    titles = dict(zip(folder.catalog.columns["source_id"], folder.catalog.titles, strict=True))
    assert (titles["B003"], titles["B004"]) == ("Salt & Sanctuary", "B004")


def test_days_are_bounds_that_count_themselves(raw: Path, tmp_path: Path) -> None:
    write(raw / "Video_Games_5.json.gz", [review(1, n, n) for n in range(30)] * 2)
    with pytest.warns(UserWarning, match="1 of 26 items"):
        folder = build_amazon(
            raw,
            tmp_path / "out",
            first_day="2015-10-03",
            last_day="2015-10-28",
            min_user_count=1,
            min_item_count=1,
        )
    assert sorted(folder.catalog.columns["source_id"]) == [f"B{n:03}" for n in range(2, 28)]
    with pytest.raises(InputError, match="first_day is 'May'"):
        build_amazon(raw, tmp_path / "other", first_day="May")


def test_users_and_products_met_too_rarely_are_left_out(raw: Path, tmp_path: Path) -> None:
    write(raw / "Video_Games_5.json.gz", [*REVIEWS, review(99, 29, 3)])
    folder = build(raw, tmp_path, min_user_count=2)
    assert "A99" not in (folder.path / "users.csv").read_text()


def test_exact_repeats_count_once_and_later_purchases_again(tmp_path: Path) -> None:
    write(tmp_path / "x.json.gz", [review(1, 2, 0), review(1, 2, 0), review(1, 2, 1)])
    assert len(read_reviews(tmp_path / "x.json.gz")) == 2


def test_low_ratings_can_be_left_out(tmp_path: Path) -> None:
    write(tmp_path / "x.json.gz", [review(1, 2, 0, 3.0), review(1, 3, 0, 4.0)])
    assert [one.item for one in read_reviews(tmp_path / "x.json.gz", min_rating=4)] == ["B003"]


def test_the_collections_of_2014_and_2023_are_read_too(tmp_path: Path) -> None:
    new = {"user_id": "A1", "asin": "C1", "parent_asin": "B1", "timestamp": 1000, "rating": 5.0}
    write(tmp_path / "Toys.jsonl.gz", [new])
    assert read_reviews(tmp_path / "Toys.jsonl.gz") == [Interaction("A1", "B1", 1.0)]
    write(tmp_path / "meta.json.gz", ["{'asin': 'B1', 'title': \"It's\"}"])
    assert read_titles(tmp_path / "meta.json.gz", ["B1"]) == {"B1": "It's"}


@pytest.mark.parametrize("key", ["reviewerID", "asin", "unixReviewTime", "overall"])
def test_a_review_that_lacks_something_is_named(key: str, tmp_path: Path) -> None:
    bad = {name: value for name, value in review(1, 2, 3).items() if name != key}
    write(tmp_path / "x.json.gz", [review(1, 2, 3), bad])
    with pytest.raises(InputError, match=r"x\.json\.gz line 2: "):
        read_reviews(tmp_path / "x.json.gz")


def test_what_is_not_there_is_fetched_by_category(
    raw: Path, tmp_path: Path, server: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = (raw / "meta_Video_Games.json.gz").read_bytes()
    (raw / "meta_Video_Games.json.gz").unlink()
    with pytest.raises(InputError, match=r"no metadata of Video_Games.*--download"):
        build_amazon(raw, tmp_path / "out")
    monkeypatch.setattr(amazon, "ADDRESS", server.url.removesuffix("/some.zip"))
    folder = build(raw, tmp_path, download=True)
    (record,) = folder.info["source"]["download"]
    assert record["url"].endswith("/metaFiles2/meta_Video_Games.json.gz")
    assert record["checked"] is False
