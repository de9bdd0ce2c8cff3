"""The benchmarks as a user runs them: a process, a JSON, a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import conftest
from benchmarks.provenance import command
from benchmarks.report import main

ROOT = Path(__file__).parents[2]
KEYS = {
    "op", "mode", "d_out", "d_in", "T", "R", "K", "B", "gate", "dropout", "dtype", "backend",
    "device_us", "frozen_us", "ratio", "tflops", "gb_per_s", "peak_mib", "peak_ratio", "cpu_us",
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("results") / "results.json"
    chosen = ["benchmarks/bench_linear.py", "benchmarks/bench_peers.py", "-k", "not reference"]
    options = ["--benchmark-only", "--quick", "--device=cpu", "-p", "no:cacheprovider"]
    stored = [f"--benchmark-json={file}", "--commit=abcdef0"]
    # A worker of pytest-xdist would hand down that it is one, and those measure nothing.
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, *options, *stored],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return file


def test_every_record_carries_what_it_measured_and_of_what(results: Path) -> None:
    content = json.loads(results.read_text())
    assert content["commit_info"] == {"id": "abcdef0"}
    assert content["benchmarks"]
    for line in content["benchmarks"]:
        record = line["extra_info"]
        assert record.keys() >= KEYS
        assert record["ratio"] == pytest.approx(record["device_us"] / record["frozen_us"], rel=1e-4)
        # pytest-benchmark's own statistics are of the device's time
        assert line["stats"]["median"] * 1e6 == pytest.approx(record["device_us"], rel=1e-4)
        assert line["stats"]["rounds"] == record["rounds"] == 3


def test_cases_that_share_a_frozen_layer_are_measured_in_the_same_rounds(results: Path) -> None:
    records = [line["extra_info"] for line in json.loads(results.read_text())["benchmarks"]]
    peers = [record for record in records if record["suite"] == "peers"]
    yardsticks = {(record["mode"], record["frozen_us"]) for record in peers}
    assert len(peers) == 2 * 2 * 4  # modes, dropout, backends: the reference was not selected
    assert len(yardsticks) == 2


def test_a_result_names_no_host_and_no_path(results: Path) -> None:
    content = json.loads(results.read_text())
    told = json.dumps(content["machine_info"])
    assert "node" not in content["machine_info"]
    assert str(results) not in told
    assert content["machine_info"]["torch"]


def test_a_report_can_be_made_of_it(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("<!-- begin linear -->\n<!-- end linear -->\n")
    assert main([str(results), "--into", str(document)]) == 0
    assert "256×256" in document.read_text()


@pytest.mark.parametrize(("limit", "skips"), [(None, False), (100.0, False), (5.0, True)])
def test_what_would_start_after_the_time_limit_is_skipped(limit: float | None, skips: bool) -> None:
    options = {"time_limit": limit}
    began = {conftest.BEGAN: time.monotonic() - 10.0}
    config = SimpleNamespace(getoption=options.__getitem__, stash=began)
    with pytest.raises(pytest.skip.Exception) if skips else nullcontext():
        conftest.pytest_runtest_setup(SimpleNamespace(config=config))  # type: ignore[arg-type]


def test_the_command_is_stored_without_where_its_output_went() -> None:
    arguments = [
        "benchmarks/",
        "--benchmark-json=/tmp/out.json",
        "--commit",
        "abc",
        "-k",
        "not compiled",
    ]
    assert command(arguments) == "pytest benchmarks/ -k 'not compiled'"
