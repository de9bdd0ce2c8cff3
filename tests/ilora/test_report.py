"""A report shows every row, the pictures there are, and nothing of an earlier report."""

from __future__ import annotations

import dataclasses
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ilora.errors import InputError
from ilora.gate_map import GateMap
from ilora.plots import run_colours
from ilora.report import Reading, ReportRow, print_table, write_report
from ilora.seeds import SeedRow

LOST = ReportRow("iLoRA", 0.1, (0.05, 0.2), 0.25, 0.4, 95, 12.4, 1_234_567)
WON = ReportRow("LoRA", 0.3, (0.2, 0.4), None, 0.0, 95)
CURVES = {
    "LoRA": {"train": [(1, 3.0), (2, 1.0)], "validation": [(2, 2.0)]},
    "iLoRA": {"train": [(1, 3.0), (2, 2.0)], "validation": []},
}
GATES = GateMap(np.eye(4)[[0, 1, 2, 3, 0]] * 0.6 + 0.1, (0, 1, 1, 0, 0))
PNG = b"\x89PNG\r\n\x1a\n"


def write(out: Path, **changes: object) -> str:
    """A report of everything, or with some of it changed; its text."""
    parts: dict[str, object] = {
        "title": "A title",
        "rows": [LOST, WON],
        "curves": CURVES,
        "gates": GATES,
        "notes": ["Mind this."],
        "chance": 0.05,
    }
    return write_report(out, **(parts | changes)).read_text(encoding="utf-8")  # type: ignore[arg-type]


def test_every_row_is_shown_in_the_order_given(tmp_path: Path) -> None:
    text = write(tmp_path)
    assert text.index("| iLoRA | 0.100 | 0.050–0.200 | 0.250 | 0.400 | 95 | 12 | 1,234,567 |") < (
        text.index("| LoRA | 0.300 | 0.200–0.400 | – | 0.000 | 95 | – | – |")
    )
    assert "- Mind this." in text


def test_seeds_and_the_reading_of_the_papers_code_get_tables_of_their_own(tmp_path: Path) -> None:
    seeds = [SeedRow("LoRA (test-free)", (0, 1, 4), 0.25, 0.05, (0.126, 0.374))]
    read = dataclasses.replace(WON, as_reference=Reading(0.2, 0.5, 0.4))
    text = write(tmp_path, rows=[LOST, read], seeds=seeds)
    assert "| LoRA (test-free) | 0.250 | 0.050 | 0.126–0.374 | 0, 1, 4 |" in text
    assert "| LoRA | 0.200 | 0.500 | 0.400 |" in text
    told = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert told["seeds"][0]["mean"] == 0.25
    assert told["rows"][1]["as_reference"]["valid_ratio"] == 0.4
    plain = write(tmp_path)
    assert "Over seeds" not in plain
    assert "paper's code" not in plain


def test_the_same_is_there_as_json(tmp_path: Path) -> None:
    write(tmp_path)
    told = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in told["rows"]] == ["iLoRA", "LoRA"]
    assert told["rows"][1]["hit_ratio_at_1_valid"] is None
    assert told["curves"]["LoRA"]["train"] == [[1, 3.0], [2, 1.0]]
    assert told["gate_means"][""]["group 0"] == pytest.approx([0.5, 0.1, 0.1, 0.3])


def test_the_pictures_are_small_png_files_that_the_text_shows(tmp_path: Path) -> None:
    text = write(tmp_path)
    for name in ("hit_ratio.png", "loss.png", "gates.png"):
        data = (tmp_path / name).read_bytes()
        assert data.startswith(PNG)
        assert len(data) < 150_000
        assert f"({name})" in text


def test_pictures_of_an_earlier_report_are_gone(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "mine.png").write_bytes(b"kept")
    text = write(tmp_path, curves={}, gates=None)
    assert {path.name for path in tmp_path.glob("*.png")} == {"hit_ratio.png", "mine.png"}
    assert "loss.png" not in text


def test_only_pictures_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    (tmp_path / "gates of Paris.png").write_bytes(b"mine")
    write(tmp_path, gates={"one": GATES, "two": GATES})
    write(tmp_path, gates=None)
    assert [path.name for path in tmp_path.glob("gates*")] == ["gates of Paris.png"]


def test_several_gates_get_a_picture_each(tmp_path: Path) -> None:
    text = write(tmp_path, gates={"one": GATES, "two": GATES})
    assert "Gate of one" in text
    assert {path.name for path in tmp_path.glob("gates*")} == {"gates-1.png", "gates-2.png"}


@pytest.mark.parametrize(
    "gates",
    [
        GateMap(np.full((3, 4), 0.25)),
        GateMap(np.full((1, 8), 0.125), (2,)),
        GateMap(np.array([[1.0, 0.0]])),
    ],
    ids=["even and without groups", "one user", "one expert alone"],
)
def test_gates_at_the_edge_can_be_drawn(gates: GateMap, tmp_path: Path) -> None:
    write(tmp_path, gates=gates)
    assert (tmp_path / "gates.png").read_bytes().startswith(PNG)


def test_hit_ratios_at_the_edge_can_be_drawn(tmp_path: Path) -> None:
    rows = [ReportRow(str(k), k, (k, k), None, None, 1) for k in (0.0, 1.0)]
    write(tmp_path, rows=rows, chance=None)
    assert (tmp_path / "hit_ratio.png").read_bytes().startswith(PNG)


def test_a_name_cannot_break_the_table(tmp_path: Path) -> None:
    row = ReportRow("a|b [red]", 0.5, (0.4, 0.6), 0.5, 1.0, 10)
    assert r"| a\|b [red] |" in write(tmp_path, rows=[row])
    stream = StringIO()
    print_table([row], console=Console(file=stream, width=100))
    assert "a|b [red]" in stream.getvalue()


def test_a_narrow_terminal_folds_names_and_never_figures() -> None:
    row = ReportRow("a method with a rather long name", 0.5, (0.4, 0.6), 0.5, 1.0, 10, 9.0, 104_064)
    stream = StringIO()
    print_table([row], console=Console(file=stream, width=80))
    text = stream.getvalue()
    assert "0.400–0.600" in text
    assert "104,064" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_run_has_one_colour_in_all_pictures() -> None:
    colours = run_colours(["a", "b", "c"])
    assert len(set(colours.values())) == 3
    assert colours["b"] == run_colours(["a", "b"])["b"]


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="evaluate or train something first"):
        write(tmp_path, rows=[], curves={"a": {"train": []}}, gates=None)
    assert list(tmp_path.iterdir()) == []
