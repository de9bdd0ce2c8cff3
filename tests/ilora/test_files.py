"""What is on the disk after a write that was broken off."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from ilora.files import atomic_file, atomic_folder, write_json

INTERRUPTIONS = [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]


def content(folder: Path) -> dict[str, str]:
    """Every file below ``folder`` with its text."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in files}


def break_off(file: Path, interruption: BaseException) -> None:
    file.write_text("half of the ne", encoding="utf-8")
    raise interruption


@pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=["full disk", "Ctrl-C"])
def test_a_file_keeps_its_content_when_writing_it_fails(
    tmp_path: Path, interruption: BaseException
) -> None:
    file = tmp_path / "figures.txt"
    file.write_text("old", encoding="utf-8")
    with pytest.raises(type(interruption)), atomic_file(file) as partial:
        break_off(partial, interruption)
    assert content(tmp_path) == {"figures.txt": "old"}


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "figures.txt"
    for text in ("old", "new"):
        with atomic_file(file) as partial:
            assert partial.parent == file.parent  # a rename within one file system is atomic
            partial.write_text(text, encoding="utf-8")
    assert content(tmp_path) == {"deep/figures.txt": "new"}


@pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=["full disk", "Ctrl-C"])
def test_a_folder_keeps_its_content_when_writing_it_fails(
    tmp_path: Path, interruption: BaseException
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old", encoding="utf-8")
    with pytest.raises(type(interruption)), atomic_folder(folder) as partial:
        break_off(partial / "weights", interruption)
    assert content(tmp_path) == {"model/weights": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    for name in ("first", "second"):
        with atomic_folder(folder) as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / name).write_text(name, encoding="utf-8")
    assert content(tmp_path) == {"deep/model/inner/second": "second"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_earlier_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old", encoding="utf-8")
    rename = Path.rename

    def refuse_the_new_one(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(PermissionError), atomic_folder(folder) as partial:
        (partial / "weights").write_text("new", encoding="utf-8")
    assert content(tmp_path) == {"model/weights": "old"}


def _write_until_killed(folder: Path) -> None:
    with atomic_folder(folder) as partial:
        (partial / "weights").write_text("half of the ne", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_behind_does_not_disturb_the_next_write(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old", encoding="utf-8")
    writer = multiprocessing.get_context("fork").Process(target=_write_until_killed, args=(folder,))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert content(folder) == {"weights": "old"}

    leftover = tmp_path / f".model.{os.getpid()}.partial"  # a new process can get an old number
    leftover.mkdir()
    (leftover / "stale").write_text("stale", encoding="utf-8")
    with atomic_folder(folder) as partial:
        (partial / "weights").write_text("new", encoding="utf-8")
    assert content(folder) == {"weights": "new"}


def test_json_is_readable_utf8_and_survives_what_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    write_json(file, {"title": "Café №5", "ratio": 0.5})
    text = file.read_text(encoding="utf-8")
    assert "Café №5" in text
    with pytest.raises(TypeError):
        write_json(file, {"ratio": object()})
    assert json.loads(text) == {"title": "Café №5", "ratio": 0.5}
    assert content(tmp_path) == {"metrics.json": text}
