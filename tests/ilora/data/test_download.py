"""Fetching files, from a server on this machine that misbehaves as asked."""

from __future__ import annotations

import io
import re
import socket
import zipfile
from pathlib import Path

import pytest

from ilora.data.download import Published, fetch, unpack
from ilora.errors import InputError
from tests.ilora.data.file_server import CONTENT, SHA256, Behaviour


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_is_checked(server: Behaviour, tmp_path: Path) -> None:
    fetched = fetch(server.file(), tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "some.zip").read_bytes() == CONTENT
    assert fetched.to_dict() == {
        "url": server.url,
        "bytes": len(CONTENT),
        "sha256": SHA256,
        "checked": True,
    }
    assert names(tmp_path / "new" / "folder") == ["some.zip"]


def test_a_file_without_a_known_hash_has_its_hash_recorded(
    server: Behaviour, tmp_path: Path
) -> None:
    fetched = fetch(server.file(None), tmp_path)
    assert (fetched.sha256, fetched.checked) == (SHA256, False)


def test_a_file_that_is_there_is_not_fetched_again(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "some.zip").write_bytes(CONTENT)
    assert fetch(server.file(), tmp_path).bytes == len(CONTENT)
    assert server.asked == []


def test_another_file_of_that_name_is_named_and_kept(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "some.zip").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"is not the file that was published.*remove"):
        fetch(server.file(), tmp_path)
    assert (tmp_path / "some.zip").read_bytes() == b"mine"


def test_a_wrong_file_is_refused_and_removed(server: Behaviour, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match=r"its SHA-256 is .* what came is removed"):
        fetch(server.file(), tmp_path)
    assert names(tmp_path) == []


def test_a_broken_transfer_goes_on_where_it_broke(server: Behaviour, tmp_path: Path) -> None:
    server.closes_after = [300_000, 200_000]
    fetch(server.file(), tmp_path)
    assert (tmp_path / "some.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=500000-"]
    assert names(tmp_path) == ["some.zip"]


def test_a_later_call_goes_on_where_the_last_one_gave_up(server: Behaviour, tmp_path: Path) -> None:
    server.closes_after = [100_000] * 2
    with pytest.raises(InputError, match=r"broke off 2 times .* 200,000 bytes .* run again"):
        fetch(server.file(), tmp_path, attempts=2)
    assert "some.zip" not in names(tmp_path)
    fetch(server.file(), tmp_path)
    assert server.asked[-1] == "bytes=200000-"
    assert (tmp_path / "some.zip").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_comes_anew(server: Behaviour, tmp_path: Path) -> None:
    server.closes_after = [100_000]
    with pytest.raises(InputError, match="broke off"):
        fetch(server.file(), tmp_path, attempts=1)
    server.content, server.tag = CONTENT[::-1], '"second"'
    fetch(server.file(None), tmp_path)
    assert (tmp_path / "some.zip").read_bytes() == CONTENT[::-1]


def test_a_date_serves_where_there_is_no_tag(server: Behaviour, tmp_path: Path) -> None:
    server.tag, server.modified = None, "Mon, 01 Jan 2024 00:00:00 GMT"
    server.closes_after = [100_000]
    fetch(server.file(), tmp_path)
    assert server.asked == [None, "bytes=100000-"]


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_strong_tag_a_transfer_begins_anew(
    tag: str | None, server: Behaviour, tmp_path: Path
) -> None:
    server.tag, server.closes_after = tag, [100_000]
    fetch(server.file(), tmp_path)
    assert server.asked == [None, None]
    assert (tmp_path / "some.zip").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_again(server: Behaviour, tmp_path: Path) -> None:
    server.ranges, server.closes_after = False, [100_000]
    fetch(server.file(), tmp_path)
    assert (tmp_path / "some.zip").read_bytes() == CONTENT


def test_another_part_than_the_one_asked_for_is_not_appended(
    server: Behaviour, tmp_path: Path
) -> None:
    server.wrong_part, server.closes_after = True, [100_000]
    fetch(server.file(), tmp_path)
    assert server.asked == [None, "bytes=100000-", None]
    assert (tmp_path / "some.zip").read_bytes() == CONTENT


def test_more_bytes_than_the_file_has_are_thrown_away(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / ".some.zip.partial").write_bytes(CONTENT + b"more")
    (tmp_path / ".some.zip.partial.tag").write_text('"first"')
    fetch(server.file(), tmp_path)
    assert (tmp_path / "some.zip").read_bytes() == CONTENT


def test_a_server_in_trouble_is_asked_again(server: Behaviour, tmp_path: Path) -> None:
    server.status = [503, 429]
    fetch(server.file(), tmp_path)
    server.status = [503] * 3
    with pytest.raises(InputError, match="the server answered 503"):
        fetch(Published(server.url.replace("some", "other")), tmp_path)


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_file_that_is_gone_is_told_at_once(
    status: int, server: Behaviour, tmp_path: Path
) -> None:
    server.status = [status]
    with pytest.raises(InputError, match=rf"the server answered {status} .*--source"):
        fetch(server.file(), tmp_path)
    assert len(server.asked) == 1


def test_no_network_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/x.zip", "http://name.invalid/x.zip"):
        with pytest.raises(InputError) as refused:
            fetch(Published(url), tmp_path)
        assert re.fullmatch(r"http\S+ cannot be reached \(.*\); check the .*", str(refused.value))
    assert names(tmp_path) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "x.zip"])
def test_no_address_but_http_is_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no http address"):
        fetch(Published(url), tmp_path)


def test_named_files_come_out_of_an_archive_wherever_they_lie_in_it(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("../../evil/a.dat", "a")
        packed.writestr("inside/b.dat", "b")
        packed.writestr("inside/c.dat", "c")
    (tmp_path / "x.zip").write_bytes(buffer.getvalue())
    unpack(tmp_path / "x.zip", ["a.dat", "b.dat"], tmp_path / "out")
    assert names(tmp_path / "out") == ["a.dat", "b.dat"]
    assert names(tmp_path) == ["out", "x.zip"]
    with pytest.raises(InputError, match=r"holds no d\.dat"):
        unpack(tmp_path / "x.zip", ["d.dat"], tmp_path / "out")


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"x\.zip is not a sound zip archive"):
        unpack(tmp_path / "x.zip", ["a"], tmp_path)
