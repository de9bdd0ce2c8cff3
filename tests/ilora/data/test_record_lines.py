"""Records a line, as JSON or as Python literals."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ilora.data.record_lines import read_records, text_of
from ilora.errors import InputError

LINES = [
    '{"a": 1, "b": "\\u00e9"}',
    "",
    "{u'a': u'it\\'s', 'b': [1, 2.5, None, True], u'c': \"x\"}",
    '{"a": null}',
]


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_json_and_literals_are_read_line_by_line(name: str, tmp_path: Path) -> None:
    data = ("\n".join(LINES) + "\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert list(read_records(tmp_path / name)) == [
        (1, {"a": 1, "b": "é"}),
        (3, {"a": "it's", "b": [1, 2.5, None, True], "c": "x"}),
        (4, {"a": None}),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "__import__('os').system('touch ran')",
        "{'a': __import__('os').system('touch ran')}",
        "{'a': open('ran', 'w')}",
        "{'a': [x for x in ()]}",
        "{'a': f'{1}'}",
        "{**{}}",
        "[1]",
        "7",
        "text",
        "{" * 10_000,
        "-" * 100_000 + "1",
        "{'a': " + "(" * 5_000 + ")" * 5_000 + "}",
        "{[]: 1}",
        "{'a': 1",
    ],
    ids=lambda line: line[:30],
)
def test_anything_but_a_record_of_plain_values_is_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(InputError, match=r"x\.json line 2: .* is neither a JSON object"):
        list(read_records(tmp_path / "x.json"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "is cut off"),
        (b"no gzip", "not a sound gzip file"),
        (gzip.compress(b'{"a": 1}\n{"a": "\xff"}\n', mtime=0), "not UTF-8"),
    ],
)
def test_a_damaged_file_is_named(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "x.json.gz").write_bytes(data)
    with pytest.raises(InputError, match=told):
        list(read_records(tmp_path / "x.json.gz"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.json is missing.*--download"):
        list(read_records(tmp_path / "x.json"))


def test_the_first_key_that_has_a_text_counts() -> None:
    path = Path("x")
    assert text_of(path, 1, {"b": " y ", "a": 7}, "a", "b") == "7"
    assert text_of(path, 1, {"a": " ", "b": " y "}, "a", "b") == "y"
    with pytest.raises(InputError, match=r"x line 1: .* has no a or b"):
        text_of(path, 1, {"a": None, "b": [1]}, "a", "b")
