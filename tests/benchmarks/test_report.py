from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import (
    bench_decode,
    bench_generate,
    bench_linear,
    bench_model,
    bench_overhead,
    bench_peers,
    bench_variants,
)
from benchmarks.cases import (
    DELTA,
    EAGER,
    LAYER,
    MODEL,
    ONTO,
    PEERS,
    PEFT,
    REFERENCE,
    Case,
    plan_for,
)
from benchmarks.report import main
from benchmarks.results import geometric_mean, read_results
from benchmarks.serving_tables import OUR_LOOP, SERVING_BLOCKS
from benchmarks.tables import BLOCKS
from ilora.errors import InputError
from ilora.markers import filled
from tests.benchmarks.made_up import Entry, write_results

PLAN = plan_for(torch.device("cuda"), "triton")
SUITES = {
    "linear": bench_linear,
    "variants": bench_variants,
    "peers": bench_peers,
    "overhead": bench_overhead,
    "model": bench_model,
    "decode": bench_decode,
    "generate": bench_generate,
}
ALL_BLOCKS = BLOCKS | SERVING_BLOCKS
RATIOS = {"triton": 1.25, DELTA: 1.5, REFERENCE: 3.0}  # the others: 2


def all_entries() -> list[Entry]:
    return [
        Entry(suite, case, RATIOS.get(case.backend, 2.0))
        for suite, module in SUITES.items()
        for case in module.cases(PLAN)
    ]


def block(name: str, entries: list[Entry], folder: Path) -> str:
    text = ALL_BLOCKS[name](read_results([write_results(folder / "made-up.json", entries)]))
    assert text is not None
    return text


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of all tables, heads included, rules not."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if set("".join(row)) - set("-:")]


def row_of(text: str, *first: str) -> list[str]:
    [found] = [row for row in rows(text) if tuple(row[: len(first)]) == first]
    return found


def test_every_table_is_rectangular_and_says_where_it_comes_from(tmp_path: Path) -> None:
    for name in ALL_BLOCKS:
        text = block(name, all_entries(), tmp_path)
        tables = [part for part in text.split("\n\n") if part.startswith("|")]
        assert tables, name
        for table in tables:
            assert len({len(row) for row in rows(table)}) == 1, name
            assert len(rows(table)) > 1, name
        assert text.splitlines()[-1].startswith("*NVIDIA H200"), name


def test_the_table_has_a_row_a_shape_and_t_and_means_without_the_narrow_one(
    tmp_path: Path,
) -> None:
    def ratio(case: Case) -> float:
        return 7.0 if case.d_out == 1024 else {2048: 1.0, 4096: 4.0}.get(case.tokens, 2.0)

    entries = [Entry("linear", case, ratio(case)) for case in bench_linear.cases(PLAN)]
    text = block("linear", entries, tmp_path)
    places = [row for row in rows(text) if "×" in row[0]]
    assert len(places) == 25
    assert row_of(text, "4096×4096", "4096")[2:5] == ["4.000"] * 3
    assert row_of(text, "1024×4096", "4096")[2] == "7.000"
    mean = geometric_mean([1.0, 4.0, 2.0, 2.0])
    assert row_of(text, "**geometric mean, T ≥ 2048**")[2] == f"{mean:.3f}"
    assert row_of(text, "**largest, T ≥ 2048**")[2] == "4.000"
    assert row_of(text, "**geometric mean, T < 2048**")[2] == "2.000"
    assert row_of(text, "4096×4096", "4096")[5] == "1.050"  # 210 MiB over 200


def test_a_variant_stands_beside_the_ordinary_form_of_its_rounds(tmp_path: Path) -> None:
    entries = [
        Entry("variants", case, 1.5 if case.rank == 64 else 1.1)
        for case in bench_variants.cases(PLAN)
    ]
    text = block("variants", entries, tmp_path)
    assert row_of(text, "R = 64", "forward")[2:] == ["1.500", "1.500", "+0.400", "+0.400"]
    assert row_of(text, "packed gates", "forward + backward")[4] == "+0.000"


def test_the_update_onto_a_base_is_a_share_of_the_copy(tmp_path: Path) -> None:
    case = Case(ONTO, "forward", 4096, 4096, 4096, "triton")
    text = block("onto", [Entry("variants", case, 1.0)], tmp_path)
    moved = 2 * (3 * 4096 * 4096 + 2 * 16 * 4096)  # x, base and y; A and B
    gb_per_s = moved / 100e-6 / 1e9
    row = row_of(text, "4096×4096", "4096", "onto a base", "forward")
    assert row[5:] == [f"{gb_per_s:,.0f}", "4,000", f"{gb_per_s / 4000:.2f}"]


def test_decoding_is_told_a_layer_and_as_a_share_of_the_copy(tmp_path: Path) -> None:
    entries = [e for e in all_entries() if e.suite == "decode" and e.case.d_in == 4096]
    text = block("decode", entries, tmp_path)
    row = row_of(text, "4096×4096", "8")
    assert row[2] == "1.250"
    moved = 2 * (4096 * 4096 + 2 * 8 * 4096)  # W, x and y
    assert row[-3] == f"{100 / 16:.1f}"  # sixteen layers in 100 µs
    assert row[-2] == f"{16 * moved / 100e-6 / 4e12:.2f}"
    assert row[-1] == f"{16 * (moved + 2 * 16 * 2 * 4096) / 125e-6 / 4e12:.2f}"  # and A and B
    assert row_of(text, "**geometric mean**")[2] == "1.250"


def test_answers_are_told_in_tokens_a_second_over_the_frozen_models(tmp_path: Path) -> None:
    entries = [entry for entry in all_entries() if entry.suite == "generate"]
    text = block("generate", entries, tmp_path)
    assert row_of(text, "frozen model", OUR_LOOP, "8")[3:5] == [f"{8 * 64 / 1e-4:,.0f}", "1.000"]
    told = row_of(text, "triton", OUR_LOOP, "8")
    assert told[3:5] == [f"{8 * 64 / 1.25e-4:,.0f}", "0.800"]
    assert row_of(text, PEFT, "transformers' generate", "64")[4] == "0.500"


def test_losers_and_winners_stand_in_one_table_of_peers(tmp_path: Path) -> None:
    entries = [replace(e, ratio=1.7) if e.case.backend == "triton" else e for e in all_entries()]
    text = block("peers", entries, tmp_path)
    assert row_of(text, "triton")[1:5] == ["1.700"] * 4
    assert row_of(text, DELTA)[1:5] == ["1.500"] * 4
    assert {row[0] for row in rows(text)[1:]} == {"triton", *PEERS}


def test_peers_are_averaged_over_what_all_of_them_ran(tmp_path: Path) -> None:
    entries = [
        replace(entry, ratio=50.0) if entry.case.tokens == 1024 else entry
        for entry in all_entries()  # at T = 1024 only the fused layer and the delta are measured
    ]
    text = block("peers", entries, tmp_path)
    assert row_of(text, "triton")[1] == "1.250"
    assert "T = 2048, 4096, 16384, commit" in text
    assert row_of(block("floor", entries, tmp_path), "4096×4096", "1024")[2] == "1.000"


def test_the_fused_layer_is_compared_with_the_vendors_product_and_a_delta(tmp_path: Path) -> None:
    text = block("floor", all_entries(), tmp_path)
    assert row_of(text, "14336×4096", "8192")[2:] == [f"{1.25 / 1.5:.3f}"] * 4


def test_the_fused_layer_is_compared_with_what_took_turns_with_it(tmp_path: Path) -> None:
    entries = [entry for entry in all_entries() if entry.suite == "peers"]
    mine = [entry for entry in entries if entry.case.backend == "triton"]
    slower = [replace(entry, ratio=5.0) for entry in mine]
    files = [
        write_results(tmp_path / "first.json", entries),
        write_results(tmp_path / "later.json", slower, command="of another run"),
    ]
    together = BLOCKS["floor"](read_results(files[:1]))
    assert together
    assert rows(together)[-1][2:] == [f"{1.25 / 2:.3f}"] * 4
    assert f"triton / {EAGER}" in together
    assert BLOCKS["floor"](read_results(files)) == together
    assert BLOCKS["floor"](read_results(files[1:])) is None


def test_peers_of_two_runs_have_a_table_each(tmp_path: Path) -> None:
    entries = [entry for entry in all_entries() if entry.suite == "peers"]
    few = [e for e in entries if e.case.backend in ("triton", EAGER) and e.case.tokens == 2048]
    files = [
        write_results(tmp_path / "few.json", few, command="of few"),
        write_results(tmp_path / "most.json", entries),
    ]
    for given in (files, files[::-1]):
        text = str(BLOCKS["peers"](read_results(given)))
        assert text.count("| triton | 1.250 |") == text.count(f"| {EAGER} | 2.000 |") == 2
        assert text.count(f"| {DELTA} |") == 1
        assert "T = 2048, commit" in text
        assert "T = 2048, 4096, 16384, commit" in text


def test_the_cost_to_the_cpu_has_a_row_a_contender_and_a_launch(tmp_path: Path) -> None:
    text = block("overhead", all_entries(), tmp_path)
    assert row_of(text, "frozen layer", "eager")[2:5] == ["10"] * 3
    assert row_of(text, "triton", "CUDA graph")[2:5] == ["50"] * 3
    assert "slowest of these first calls took 1.25 s" in text


def test_a_step_of_the_model_is_compared_with_the_frozen_one(tmp_path: Path) -> None:
    text = block("model", all_entries(), tmp_path)
    assert row_of(text, "one decoder layer", "nothing (frozen)")[2:4] == ["0.10", "1.000"]
    assert row_of(text, "the whole model, 32 layers", PEFT)[2:4] == ["0.20", "2.000"]
    assert "recomputes every layer" in text
    only_layer = [entry for entry in all_entries() if entry.case.op == LAYER]
    assert "recomputes" not in block("model", only_layer, tmp_path)
    assert MODEL not in {entry.case.op for entry in only_layer}


def test_a_launch_that_the_device_waited_for_is_admitted(tmp_path: Path) -> None:
    lines = read_results([write_results(tmp_path / "made-up.json", all_entries())])
    lines = [line for line in lines if line["suite"] == "linear"]
    assert "waited for the host" not in str(BLOCKS["linear"](lines))
    lines[0].record["enqueued_ahead"] = 0.1
    assert "In 1 of 75 lines the device mostly waited for the host." in str(BLOCKS["linear"](lines))


def test_tables_go_between_their_markers_and_nothing_else_changes(tmp_path: Path) -> None:
    results = write_results(tmp_path / "made-up.json", all_entries())
    document = tmp_path / "docs" / "performance.md"
    document.parent.mkdir()
    parts = [
        f"## {name}\n\n<!-- begin {name} -->\nold\n<!-- end {name} -->\n" for name in ALL_BLOCKS
    ]
    document.write_text("# Words\n\n" + "\nMore words.\n\n".join(parts) + "\nThe end.\n")
    assert main([str(results), "--into", str(document)]) == 0
    once = document.read_text()
    assert once.startswith("# Words\n\n## linear\n\n<!-- begin linear -->\n![")
    assert once.endswith("<!-- end generate -->\n\nThe end.\n")
    assert once.count("More words.") == len(ALL_BLOCKS) - 1
    assert "old" not in once
    for picture in ("ratios.png", "peers.png"):
        assert f"](performance/{picture})" in once
        assert (document.parent / "performance" / picture).stat().st_size > 10_000
    assert main([str(results), "--into", str(document)]) == 0
    assert document.read_text() == once


def test_a_block_without_a_place_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [entry for entry in all_entries() if entry.suite in ("model", "overhead")]
    results = write_results(tmp_path / "made-up.json", entries)
    document = tmp_path / "performance.md"
    document.write_text("<!-- begin model -->\n<!-- end model -->\n")
    assert main([str(results), "--into", str(document)]) == 0
    notes = capsys.readouterr().err
    assert "'overhead'" in notes
    assert "'model'" not in notes
    document.write_text("no place at all\n")
    assert main([str(results), "--into", str(document)]) == 1
    assert "no place for a table" in capsys.readouterr().err
    assert document.read_text() == "no place at all\n"


BROKEN: tuple[Callable[[str, str], str], ...] = (
    lambda begin, end: begin,
    lambda begin, end: end + begin,
    lambda begin, end: begin + begin + end,
)


@pytest.mark.parametrize("text", BROKEN)
def test_markers_that_do_not_pair_are_refused(text: Callable[[str, str], str]) -> None:
    with pytest.raises(InputError, match="markers of 'model'"):
        filled(text("<!-- begin model -->", "<!-- end model -->"), {"model": "table"})


def test_without_a_file_the_tables_are_printed_and_pictures_drawn_only_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [entry for entry in all_entries() if entry.suite == "linear"]
    results = write_results(tmp_path / "made-up.json", entries)
    monkeypatch.chdir(tmp_path)
    assert main([str(results)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("## linear\n")
    assert "## model" not in printed
    assert list(tmp_path.iterdir()) == [results]
    assert main([str(results), "--pictures", "pictures"]) == 0
    assert [picture.name for picture in Path("pictures").iterdir()] == ["ratios.png"]
