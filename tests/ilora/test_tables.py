"""Tables fit into a terminal: names are parted where a reader would, figures never."""

from __future__ import annotations

import pytest

from ilora.tables import break_name, counted, fit_names, print_pairs

LONG = "ilora-token-collapsed-0.001-seed0 (test-rank)"


def test_a_name_is_parted_after_its_separators_alone() -> None:
    assert break_name(LONG, 12).split("\n") == [
        "ilora-token-",
        "collapsed-",
        "0.001-seed0",
        "(test-rank)",
    ]
    assert break_name(LONG, len(LONG)) == LONG
    assert break_name("movielens/undivided", 3) == "movielens/\nundivided"
    assert break_name("", 3) == ""


def test_names_get_the_room_that_the_figures_leave() -> None:
    heads, figures = ("method", "Hit\nRatio@1"), ["0.123 [0.100, 0.150]", "0.5"]
    rows = fit_names(heads, [(LONG, figure) for figure in figures], width=60)
    assert [cells[1] for cells in rows] == figures
    lengths = [len(line) for cells in rows for line in cells[0].split("\n")]
    assert 30 < max(lengths) <= 60 - 2 - len(figures[0])


def test_a_long_name_takes_no_room_from_its_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    value = "0.615 ± 0.012 [0.600, 0.630]"
    print_pairs([(f"{LONG} minus {LONG}", value), ("rows", "95")])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.rstrip().endswith(value) for line in lines)
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_one_of_a_thing_is_told_in_the_singular() -> None:
    assert [counted(n, "seed") for n in (0, 1, 1234)] == ["0 seeds", "1 seed", "1,234 seeds"]
