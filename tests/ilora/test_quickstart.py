"""The quickstart, on a smaller world and with fewer steps."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from ilora import quickstart
from ilora.data.synthetic import build_synthetic
from ilora.errors import InputError

METHODS = ["random", "popularity", "SASRec", "LoRA", "iLoRA"]


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        quickstart, "build_synthetic", functools.partial(build_synthetic, num_users=80)
    )
    monkeypatch.setattr(quickstart, "PRETRAIN_STEPS", 2)
    monkeypatch.setattr(quickstart, "ENCODER_EPOCHS", 1)
    monkeypatch.setattr(
        quickstart,
        "SETTINGS",
        {
            **quickstart.SETTINGS,
            "training.max_steps": 4,
            "training.batch_size": 4,
            "training.evaluations": 2,
            "training.checkpoints": 2,
        },
    )


def stamps(folder: Path) -> dict[Path, int]:
    """When each file of the finished stages was written."""
    names = ("data", "foreign-data", "base-llm", "encoder", "lora/model", "ilora/model")
    files = [f for name in names for f in (folder / name).rglob("*") if f.is_file()]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.usefixtures("_small")
def test_it_compares_all_methods_and_a_second_run_trains_nothing_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "quickstart"
    rows = quickstart.run_quickstart(out, seed=3)
    assert [row.name for row in rows] == METHODS
    assert all(row.n == 8 and 0 <= row.hit_ratio_at_1 <= 1 for row in rows)
    by_name = {row.name: row for row in rows}
    # The same rank for both: they differ by the gate, 4 experts times 64 inputs.
    assert by_name["iLoRA"].trainable_parameters - by_name["LoRA"].trainable_parameters == 4 * 64
    printed = capsys.readouterr().out
    assert all(name in printed for name in METHODS)
    report = (out / "report.md").read_text(encoding="utf-8")
    for picture in ("hit_ratio.png", "loss.png", "gates.png"):
        assert f"({picture})" in report
        assert (out / picture).stat().st_size > 1000
    assert [row["name"] for row in json.loads((out / "report.json").read_text())["rows"]] == METHODS

    before = stamps(out)
    assert quickstart.run_quickstart(out, seed=3) == rows
    assert stamps(out) == before


@pytest.mark.usefixtures("_small")
def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quickstart, "evaluate", stop)  # after the first training
        with pytest.raises(KeyboardInterrupt):
            quickstart.run_quickstart(tmp_path / "out")
    before = stamps(tmp_path / "out")
    assert [row.name for row in quickstart.run_quickstart(tmp_path / "out")] == METHODS
    after = stamps(tmp_path / "out")
    assert {file: after[file] for file in before} == before


@pytest.mark.usefixtures("_small")
def test_another_seed_needs_another_folder(tmp_path: Path) -> None:
    quickstart.build_synthetic(tmp_path / "out" / "data", seed=0)
    with pytest.raises(InputError, match="not the data of seed 1"):
        quickstart.run_quickstart(tmp_path / "out", seed=1)
