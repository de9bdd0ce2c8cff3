from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cases import FORWARD, LINEAR, Case
from benchmarks.results import geometric_mean, read_results
from ilora.errors import InputError
from tests.benchmarks.made_up import Entry, write_results

CASE = Case(LINEAR, FORWARD, 4096, 4096, 2048, "triton")


def test_a_geometric_mean_averages_ratios() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([3.0]) == pytest.approx(3.0)
    assert geometric_mean([1.0, 10.0, 100.0]) == pytest.approx(10.0)


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [-1.0]])
def test_a_geometric_mean_of_nothing_or_of_what_is_not_positive_is_refused(
    values: list[float],
) -> None:
    with pytest.raises(ValueError, match="positive"):
        geometric_mean(values)


def test_a_case_that_is_in_two_files_counts_as_in_the_later(tmp_path: Path) -> None:
    other = Entry("linear", Case(LINEAR, FORWARD, 4096, 4096, 4096, "triton"), 1.5)
    first = write_results(tmp_path / "1.json", [Entry("linear", CASE, 1.2), other])
    second = write_results(
        tmp_path / "2.json", [Entry("linear", CASE, 1.1)], command="pytest -k new"
    )
    lines = {line["T"]: line for line in read_results([first, second])}
    assert {tokens: line["ratio"] for tokens, line in lines.items()} == {2048: 1.1, 4096: 1.5}
    assert "pytest -k new" in str(lines[2048].run)
    assert "pytest -k new" not in str(lines[4096].run)


def test_results_of_two_devices_are_not_mixed(tmp_path: Path) -> None:
    entries = [Entry("linear", CASE, 1.2)]
    other = [Entry("linear", Case(LINEAR, FORWARD, 4096, 4096, 4096, "triton"), 1.5)]
    files = [
        write_results(tmp_path / "1.json", entries, device="NVIDIA H100"),
        write_results(tmp_path / "2.json", other, device="NVIDIA H200"),
    ]
    with pytest.raises(InputError, match="NVIDIA H100, NVIDIA H200"):
        read_results(files)


@pytest.mark.parametrize("content", ["no JSON", "[]", json.dumps({"benchmarks": []})])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(InputError, match=r"other\.json"):
        read_results([file])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_results([tmp_path / "missing.json"])


def test_the_line_of_provenance_names_device_versions_date_commit_and_command(
    tmp_path: Path,
) -> None:
    file = write_results(tmp_path / "1.json", [Entry("linear", CASE, 1.2)])
    text = str(read_results([file])[0].run)
    for part in ("NVIDIA H200", "torch 2.11.0", "Python 3.12.3", "2026-11-24", "commit 0123456"):
        assert part in text
    assert "`pytest benchmarks/ --benchmark-only`" in text
