"""Last.fm's files, made up in their format."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from ilora.data import lastfm
from ilora.data.check import check_folder
from ilora.data.download import Published
from ilora.data.lastfm import build_lastfm, read_artists, read_tags
from ilora.errors import InputError
from tests.ilora.data.file_server import Behaviour

ARTISTS = "id\tname\turl\tpictureURL\n" + "".join(
    f"{n}\tArtist  {n}\thttp://x/{n}\thttp://y/{n}\n" for n in range(10, 40)
)
# User 2 tags artist 12 twice, and 11 and 10 on one day, 11 first.
TAGS = "userID\tartistID\ttagID\ttimestamp\n2\t12\t5\t300\n2\t11\t5\t200\n2\t10\t6\t200\n2\t12\t6\t100\n"
TAGS += "".join(
    f"{user}\t{10 + (user * step) % 30}\t1\t{step}\n"
    for user in range(31, 42)
    for step in range(1, 8)
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The unpacked folder, with Windows line ends as published."""
    folder = tmp_path / "hetrec"
    folder.mkdir()
    (folder / "artists.dat").write_bytes(ARTISTS.replace("\n", "\r\n").encode())
    (folder / lastfm.TAG_FILE).write_bytes(TAGS.replace("\n", "\r\n").encode())
    return folder


def test_a_user_meets_an_artist_when_he_first_tags_him(raw: Path, tmp_path: Path) -> None:
    folder = build_lastfm(raw, tmp_path / "out", min_user_count=1, min_item_count=1)
    sequences = folder.sequences()
    assert sequences is not None
    titles = [folder.catalog.title(item) for item in sequences[0].items]
    assert titles == ["Artist 12", "Artist 11", "Artist 10"]
    assert (folder.name, folder.domain) == ("lastfm-2k", "music")
    assert (folder.path / "users.csv").read_text().splitlines()[1] == "0,2"
    check_folder(folder.path)


def test_users_and_artists_met_too_rarely_are_left_out(raw: Path, tmp_path: Path) -> None:
    folder = build_lastfm(raw, tmp_path / "out", min_user_count=5, min_item_count=1)
    assert len(folder.sequences() or []) == 10  # one more tags but three
    with pytest.raises(InputError, match="min_user_count 99"):
        build_lastfm(raw, tmp_path / "other", min_user_count=99)


def test_an_artist_without_a_name_is_noted(raw: Path, tmp_path: Path) -> None:
    (raw / "artists.dat").write_text(ARTISTS.replace("12\tArtist  12", "12\t "))
    with pytest.warns(UserWarning, match="1 of 27 items have no title"):
        build_lastfm(raw, tmp_path / "out", min_user_count=1, min_item_count=1)


def test_names_of_other_artists_are_refused(raw: Path, tmp_path: Path) -> None:
    (raw / "artists.dat").write_text("id\tname\turl\tpictureURL\n7\tOf another collection\n")
    with pytest.raises(InputError, match=r"none of the \d+ items has a title"):
        build_lastfm(raw, tmp_path / "out", min_user_count=1, min_item_count=1)
    assert not (tmp_path / "out").exists()


def test_bytes_that_are_no_text_are_noted(raw: Path) -> None:
    (raw / "artists.dat").write_bytes(b"id\tname\n1\tCaf\xe9\n")
    with pytest.warns(UserWarning, match="1 bytes of artists.dat are not UTF-8"):
        assert read_artists(raw / "artists.dat") == {"1": "Caf\ufffd"}


@pytest.mark.parametrize(
    ("name", "line"),
    [("artists.dat", "x\tName"), ("artists.dat", "7"), (lastfm.TAG_FILE, "1\t2\t3")],
)
def test_a_bad_line_is_named(name: str, line: str, raw: Path) -> None:
    with (raw / name).open("a") as file:
        file.write(line + "\n")
    read = read_artists if name == "artists.dat" else read_tags
    with pytest.raises(InputError, match=rf"{name} line \d+: "):
        read(raw / name)


def test_the_archive_is_fetched_once_and_recorded(
    raw: Path, tmp_path: Path, server: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name in ("artists.dat", lastfm.TAG_FILE):
            packed.write(raw / name, name)
    server.content = buffer.getvalue()
    sha256 = hashlib.sha256(server.content).hexdigest()
    monkeypatch.setattr(lastfm, "ARCHIVE", Published(server.url, sha256))
    source = tmp_path / "fetched"
    folder = build_lastfm(source, tmp_path / "out", download=True, min_item_count=1)
    record = folder.info["source"]["download"]
    assert record == [
        {"url": server.url, "bytes": len(server.content), "sha256": sha256, "checked": True}
    ]
    build_lastfm(source, tmp_path / "again", download=True, min_item_count=1)
    assert len(server.asked) == 1
