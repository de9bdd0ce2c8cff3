"""Raw MovieLens files, made up in their format."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from ilora.data import movielens
from ilora.data.check import check_folder
from ilora.data.download import Published
from ilora.data.movielens import build_movielens, clean_title, read_sequences
from ilora.errors import InputError
from tests.ilora.data.file_server import Behaviour


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Forty films and twelve users; user 7's first liked film is on the first line."""
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    titles = [f"Film {number} (199{number % 10})" for number in range(1, 39)]
    titles += ["unknown", "Été, L' (1995)"]
    films = [f"{n}|{title}|01-Jan-1995||http://x|0|1" for n, title in enumerate(titles, 1)]
    (folder / "u.item").write_bytes("".join(f"{f}\n" for f in films).encode("iso-8859-1"))
    lines = ["7\t5\t4\t100", "7\t6\t2\t101", "7\t9\t3\t90", "7\t8\t5\t100"]
    lines += [
        f"{user}\t{(user * step) % 40 + 1}\t4\t{step}"
        for user in range(20, 31)
        for step in range(1, 8)
    ]
    (folder / "u.data").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_the_first_rating_is_kept_low_ones_are_not_and_ties_keep_their_order(raw: Path) -> None:
    first = read_sequences(raw / "u.data", 40, min_rating=3)[0]
    # Time 90 comes first; of the two at 100 the one that stands first; the rating of 2 is out.
    assert (first.user, first.items) == (7, (8, 4, 7))


def test_a_header_line_is_skipped(raw: Path) -> None:
    file = raw / "u.data"
    file.write_text("user\titem\trating\ttimestamp\n" + file.read_text())
    assert read_sequences(file, 40, min_rating=3)[0].items == (8, 4, 7)


def test_the_raw_files_make_a_sound_folder(raw: Path, tmp_path: Path) -> None:
    folder = build_movielens(raw, tmp_path / "out", seed=1)
    assert folder.domain == "movie"
    assert len(folder.catalog) == 40
    assert folder.catalog.titles[-2:] == ("unknown", "L'Été")
    assert folder.catalog.columns["title_raw"][-1] == "Été, L' (1995)"
    report = check_folder(folder.path)
    assert report.interactions == 3 + 11 * 7
    assert [report.rows["val"], report.rows["test"]] == [1, 2]


def test_the_archive_is_fetched_where_the_files_are_not(
    raw: Path, tmp_path: Path, server: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name in movielens.FILES:
            packed.write(raw / name, f"ml-100k/{name}")
    server.content = buffer.getvalue()
    monkeypatch.setattr(movielens, "ARCHIVE", Published(server.url, "0" * 64))
    with pytest.raises(InputError, match="is not the file that was published"):
        build_movielens(tmp_path / "new", tmp_path / "out", download=True)
    sha256 = hashlib.sha256(server.content).hexdigest()
    monkeypatch.setattr(movielens, "ARCHIVE", Published(server.url, sha256))
    folder = build_movielens(tmp_path / "new", tmp_path / "out", download=True)
    assert folder.info["source"]["download"][0]["checked"] is True
    here = build_movielens(raw, tmp_path / "here", download=True)
    assert "download" not in here.info["source"]
    assert here.rows("train") == folder.rows("train")


@pytest.mark.parametrize(
    ("raw_title", "title"),
    [
        ("Toy Box (1995)", "Toy Box"),
        ("Long Road, The (1995)", "The Long Road"),
        ("Autumn in Oslo, An (1951)", "An Autumn in Oslo"),
        ("Little Rain, A (1994)", "A Little Rain"),
        ("Pluie, La (1996)", "La Pluie"),
        ("Hiver, L' (1994)", "L'Hiver"),
        ("Snow, The (Neige, La) (1994)", "The Snow (La Neige)"),
        ("Rain (Pluie, La) (1993)", "Rain (La Pluie)"),
        ("Dune Sea 3: The Return (1995) (V)", "Dune Sea 3: The Return"),
        ("1984 Revisited (1996) ", "1984 Revisited"),
        ("Hello, Dolly Parton (1969)", "Hello, Dolly Parton"),
        ("unknown", "unknown"),
        ("(1995)", "(1995)"),
        ("", ""),
    ],
)
def test_titles_lose_their_year_and_get_their_article_back(raw_title: str, title: str) -> None:
    assert clean_title(raw_title) == title


def test_a_film_without_title_gets_one(raw: Path, tmp_path: Path) -> None:
    film = (raw / "u.item").read_bytes().replace(b"|unknown|", b"||")
    (raw / "u.item").write_bytes(film)
    assert build_movielens(raw, tmp_path / "out").catalog.titles[38] == "Film 39"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("u.data", "1\t2\t3\t4\n1\t2\tx\t4\n", r"u\.data line 2: .* is not user, item, rating"),
        ("u.data", "1,2,3,4\n", r"u\.data line 1: "),
        ("u.data", "1\t41\t5\t4\n", r"u\.data line 1: item 41 is not in u\.item"),
        ("u.data", "1\t0\t5\t4\n", r"u\.data line 1: item 0 is not in u\.item"),
        ("u.data", "", r"u\.data has no rating of 3 or more"),
        ("u.item", "1|A (1990)|x\n3|B (1990)|x\n", r"u\.item line 2: .* begin with 2\|title"),
        ("u.item", "", "at least one item"),
    ],
)
def test_a_bad_line_is_named(raw: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
    (raw / name).write_text(text)
    with pytest.raises(InputError, match=message):
        build_movielens(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["u.data", "u.item"])
def test_a_missing_file_is_named(raw: Path, tmp_path: Path, name: str) -> None:
    (raw / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        build_movielens(raw, tmp_path / "out")
