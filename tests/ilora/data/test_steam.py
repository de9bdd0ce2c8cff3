"""Steam's files, made up in their format."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ilora.data import steam
from ilora.data.check import check_folder
from ilora.data.download import Published
from ilora.data.steam import build_steam, read_reviews
from ilora.errors import InputError
from tests.ilora.data.file_server import Behaviour

REVIEWS = [
    "{u'username': u'it\\'s me', u'product_id': u'725280', u'date': u'2017-12-17', u'hours': 0.1}",
    "{u'username': u'it\\'s me', u'product_id': u'10', u'date': u'2017-01-05', u'text': u'a\\nb'}",
    "{u'username': u'it\\'s me', u'product_id': u'11', u'date': u'2017-01-05', u'hours': 3}",
    "{u'username': u'it\\'s me', u'product_id': u'725280', u'date': u'2015-12-17', u'page': 2}",
]
REVIEWS += [
    f"{{u'username': u'user {user}', u'product_id': u'{(user * step) % 30}', "
    f"u'date': u'2016-01-{step:02}'}}"
    for user in range(31, 42)
    for step in range(1, 8)
]
GAMES = ["{u'app_name': u'Lost  Summoner', u'id': u'725280', u'price': 4.99}", "{u'price': 1}"]
GAMES += [f"{{u'title': u'Game {n}', u'id': u'{n}'}}" for n in range(30)]


def write(folder: Path, packed: bool = True) -> Path:
    folder.mkdir()
    for name, lines in (("steam_reviews.json", REVIEWS), ("steam_games.json", GAMES)):
        data = ("\n".join(lines) + "\n").encode()
        path = folder / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_a_user_meets_a_game_when_he_first_reviews_it(packed: bool, tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", packed)
    folder = build_steam(raw, tmp_path / "out", min_user_count=1, min_item_count=1)
    sequences = folder.sequences()
    assert sequences is not None
    titles = [folder.catalog.title(item) for item in sequences[0].items]
    assert titles == ["Lost Summoner", "Game 10", "Game 11"]
    assert (folder.name, folder.domain) == ("steam", "game")
    assert (folder.path / "users.csv").read_text().splitlines()[1] == "0,it's me"
    check_folder(folder.path)


@pytest.mark.parametrize(
    "line",
    [
        "{u'username': u'x', u'product_id': u'1'}",
        "{u'username': u'x', u'date': u'2017-12-17'}",
        "{u'username': u'x', u'product_id': u'1', u'date': u'yesterday'}",
        "{u'username': u'x', u'product_id': u'1', u'date': open('ran', 'w')}",
    ],
)
def test_a_bad_review_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(REVIEWS[0] + "\n" + line + "\n")
    with pytest.raises(InputError, match=r"r\.json line 2: "):
        read_reviews(tmp_path / "r.json")


def test_what_was_fetched_is_recorded_with_its_hash_though_none_was_known(
    tmp_path: Path, server: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write(tmp_path / "raw")
    server.content = (raw / "steam_games.json.gz").read_bytes()
    (raw / "steam_games.json.gz").unlink()
    address = server.url.replace("some.zip", "steam_games.json.gz")
    monkeypatch.setattr(steam, "GAMES", Published(address))
    folder = build_steam(raw, tmp_path / "out", download=True, min_item_count=1)
    (record,) = folder.info["source"]["download"]
    assert (record["url"], record["checked"], len(record["sha256"])) == (address, False, 64)
