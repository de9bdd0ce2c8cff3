"""The doctor says what is there, what will run and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ilora.cli import app
from ilora.doctor import choose, diagnose, free_memory_gib

USABLE = {"triton": None, "cuda": "it was not built.", "torch": None}
NO_GPU = {"triton": "there is no GPU.", "cuda": "there is no GPU.", "torch": None}


def test_a_gpu_gets_the_first_usable_backend_and_a_cpu_torch() -> None:
    chosen = choose(USABLE, "", has_gpu=True)
    assert chosen["cuda"].backend == "triton"
    assert chosen["cpu"].backend == "torch"


def test_without_a_gpu_nothing_runs_on_one() -> None:
    chosen = choose(NO_GPU, "", has_gpu=False)
    assert chosen["cuda"].backend is None
    assert "no GPU" in chosen["cuda"].reason


def test_the_environment_overrules_the_choice() -> None:
    chosen = choose(USABLE, "torch", has_gpu=True)
    assert chosen["cuda"].backend == "torch"
    assert "ILORA_BACKEND" in chosen["cuda"].reason


def test_an_unusable_backend_that_was_asked_for_runs_nothing_and_says_why() -> None:
    chosen = choose(USABLE, "cuda", has_gpu=True)
    assert chosen["cuda"].backend is None
    assert "it was not built" in chosen["cuda"].reason


def test_a_container_limits_the_free_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    assert free_memory_gib(meminfo, tmp_path) == 8.0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{2**30}\n")
    assert free_memory_gib(meminfo, tmp_path) == 8.0
    (tmp_path / "memory.max").write_text(f"{4 * 2**30}\n")
    assert free_memory_gib(meminfo, tmp_path) == 3.0


def test_memory_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    assert free_memory_gib(tmp_path / "none", tmp_path) is None


def test_the_command_prints_the_diagnosis_as_json(tmp_path: Path) -> None:
    out = tmp_path / "machine.json"
    result = CliRunner().invoke(app, ["doctor", "--json", "--out", str(out)])
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert json.loads(out.read_text(encoding="utf-8")).keys() == told.keys()
    assert told["chosen"]["cpu"]["backend"] == "torch"
    assert told["backends"]["torch"] is None
    assert told["disk_free_gib"] > 0


def test_the_table_gives_the_reason_of_every_unusable_backend() -> None:
    diagnosis = diagnose()
    table = dict(diagnosis.table())
    for name, reason in diagnosis.backends.items():
        told = table[f"backend {name}"]
        assert told.startswith("usable") if reason is None else told == f"not usable: {reason}"


def test_what_a_usable_backend_could_do_better_elsewhere_is_told() -> None:
    held_back = replace(diagnose(), drawbacks={"torch": "there is a newer one."})
    assert dict(held_back.table())["backend torch"] == "usable; there is a newer one."


def test_what_was_built_of_the_cuda_kernels_is_told() -> None:
    told = dict(diagnose().table())["CUDA kernels"]
    assert told.startswith("built 2") or "Install again" in told


def test_the_machine_is_told_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "on CPU runs" in result.stdout
