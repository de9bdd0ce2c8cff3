"""Runs are compared on the same rows or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ilora.cli import app
from ilora.comparison import average, compare, find_evaluation, read_answers
from ilora.errors import InputError
from ilora.evaluation.evaluate import evaluate
from ilora.evaluation.paired import holm, mcnemar, permutation_p
from tests.ilora.tiny_world import World

HITS = {
    "a": [1, 1, 1, 1, 1, 1, 1, 0, 1, 1],
    "b": [0, 0, 0, 0, 0, 0, 1, 1, 1, 0],
    "c": [1, 1, 0, 0, 1, 1, 1, 0, 1, 1],
}


def write(run: Path, hits: list[int], *, label: str = "test-free", **changes: Any) -> Path:
    """What `ilora evaluate` leaves in a run folder, as far as it matters here."""
    folder = run / "evaluation" / label
    folder.mkdir(parents=True)
    lines = [
        {"user": k, "history": [1, 2], "target": 3, "candidates": [3, 4, 5], "hit": bool(hit)}
        | ({"rank": 0.0 if hit else 2.0} if label.endswith("rank") else {})
        | changes.get("line", {})
        for k, hit in enumerate(hits)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = {"data": {"sha256": changes.get("data", "d")}}
    (folder / "metrics.json").write_text(json.dumps(told))
    return run


def answers(tmp_path: Path, names: str = "abc") -> list[Any]:
    runs = [write(tmp_path / name, HITS[name]) for name in names]
    return [read_answers(find_evaluation(run, "test-free"), run.name) for run in runs]


def test_every_pair_is_tested_and_corrected_together(tmp_path: Path) -> None:
    found = compare(answers(tmp_path), seed=3)
    assert [(one.first, one.second) for one in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    for one in found:
        both = HITS[one.first], HITS[one.second]
        test = mcnemar(*both)
        assert (one.only_first, one.only_second, one.mcnemar_p) == (
            test.only_first,
            test.only_second,
            test.p,
        )
        assert one.permutation_p == permutation_p(*both, seed=3)
        assert one.difference == pytest.approx(np.mean(both[0]) - np.mean(both[1]))
        assert one.ci95[0] <= one.difference <= one.ci95[1]
        assert one.n == 10
    assert [one.holm for one in found] == holm([one.mcnemar_p or 0 for one in found])


def test_the_first_alone_can_be_compared_with_all_others(tmp_path: Path) -> None:
    found = compare(answers(tmp_path), first_only=True)
    assert [(one.first, one.second) for one in found] == [("a", "b"), ("a", "c")]
    assert [one.holm for one in found] == holm([one.mcnemar_p or 0 for one in found])


def test_seeds_count_as_one_method_by_their_mean_over_each_row(tmp_path: Path) -> None:
    a, b, c = answers(tmp_path)
    (one,) = compare([average([a, b], "a and b"), c])
    mean = np.mean([HITS["a"], HITS["b"]], axis=0)
    assert one.mcnemar_p is None
    assert one.only_first is None
    assert one.permutation_p == one.holm == permutation_p(mean, HITS["c"], seed=0)
    assert one.mean_first == pytest.approx(mean.mean())


def test_a_ranking_is_compared_by_any_of_its_measures(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, HITS[name], label="test-rank") for name in "ab"]
    folders = [find_evaluation(run, "test-rank") for run in runs]
    (one,) = compare([read_answers(folder, str(folder), "mrr") for folder in folders])
    assert one.mean_first == pytest.approx(np.mean([1 if hit else 1 / 3 for hit in HITS["a"]]))
    assert one.mcnemar_p is None
    (hit,) = compare([read_answers(folder, str(folder), "hr@1") for folder in folders])
    assert hit.mcnemar_p == mcnemar(HITS["a"], HITS["b"]).p


def test_the_order_of_candidates_does_not_make_another_row(tmp_path: Path) -> None:
    first = write(tmp_path / "a", HITS["a"])
    second = write(tmp_path / "b", HITS["b"], line={"candidates": [5, 3, 4]})
    folders = [find_evaluation(run, "test-free") for run in (first, second)]
    assert compare([read_answers(folder, str(folder)) for folder in folders])


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"data": "e"}, "different data"),
        ({"line": {"candidates": [3, 4, 6]}}, "same rows and candidates"),
        ({"line": {"target": 4}}, "same rows and candidates"),
    ],
)
def test_other_rows_are_refused(tmp_path: Path, other: Any, told: str) -> None:
    first, second = write(tmp_path / "a", HITS["a"]), write(tmp_path / "b", HITS["b"], **other)
    folders = [find_evaluation(run, "test-free") for run in (first, second)]
    both = [read_answers(folder, str(folder)) for folder in folders]
    with pytest.raises(InputError, match=told):
        compare(both)
    with pytest.raises(InputError, match=told):
        average(both, "both")


@pytest.mark.parametrize("label", ["test-free", "test-rank", "val-constrained"])
def test_an_encoder_is_compared_by_its_ranking_however_the_others_answered(
    tmp_path: Path, label: str
) -> None:
    split = label.split("-")[0]
    encoder = write(tmp_path / "sasrec", HITS["a"], label=f"{split}-encoder")
    run = write(tmp_path / "ilora", HITS["b"], label=label)
    folders = [find_evaluation(path, label) for path in (encoder, run)]
    (one,) = compare([read_answers(folder, str(folder)) for folder in folders])
    assert one.mcnemar_p == mcnemar(HITS["a"], HITS["b"]).p


def test_a_trained_encoder_is_compared_with_an_evaluated_model(
    world: World, tmp_path: Path
) -> None:
    evaluate(world.recommender(), world.folder, out=tmp_path / "free")
    done = run("compare", world.encoder, tmp_path / "free", "--out", tmp_path / "table.json")
    assert done.exit_code == 0, done.output
    (one,) = json.loads((tmp_path / "table.json").read_text())["comparisons"]
    ranking = json.loads((world.encoder / "metrics.json").read_text())["test"]
    assert (one["n"], one["mean_first"]) == (ranking["n"], ranking["hr@1"])


def test_an_encoder_is_compared_on_the_rows_that_a_run_of_fewer_has(tmp_path: Path) -> None:
    encoder = write(tmp_path / "sasrec", HITS["a"], label="test-encoder")
    runs = [write(tmp_path / name, HITS[name][:4], label="test-free-first-4") for name in "bc"]
    folders = [run / "evaluation" / "test-free-first-4" for run in runs]
    done = run("compare", encoder, *folders, "--out", tmp_path / "table.json")
    assert done.exit_code == 0, done.output
    assert "4 rows" in done.stdout
    first = json.loads((tmp_path / "table.json").read_text())["comparisons"][0]
    assert first["n"] == 4
    assert first["mcnemar_p"] == mcnemar(HITS["a"][:4], HITS["b"][:4]).p
    other = write(tmp_path / "other", HITS["c"][:4], line={"target": 4})
    done = run("compare", encoder, other)
    assert "were not measured on the same rows" in done.stderr
    done = run("compare", folders[0], write(tmp_path / "whole", HITS["c"]))
    assert "were not measured on the same rows" in done.stderr


def test_a_run_with_fewer_rows_is_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", HITS["a"]), write(tmp_path / "b", HITS["b"][:9])
    folders = [find_evaluation(run, "test-free") for run in (first, second)]
    with pytest.raises(InputError, match=r"\(10 rows\) and .* \(9 rows\)"):
        compare([read_answers(folder, str(folder)) for folder in folders])


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_prints_and_writes_the_table(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, HITS[name]) for name in "abc"]
    done = run("compare", runs[0], f"{runs[1]},{runs[2]}", "--out", tmp_path / "table.json")
    assert done.exit_code == 0, done.output
    assert "+0.400" in done.stdout
    assert "b, c" in done.stdout
    (one,) = json.loads((tmp_path / "table.json").read_text())["comparisons"]
    assert one["difference"] == pytest.approx(0.4)


def test_the_table_names_the_evaluations_that_were_read(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / name, HITS[name], label="val-rank") / "evaluation" / "val-rank"
        for name in "ab"
    ]
    done = run("compare", *folders, "--measure", "mrr", "--out", tmp_path / "table.json")
    assert done.exit_code == 0, done.output
    assert "val-rank, mrr: 10 rows" in done.stdout
    assert json.loads((tmp_path / "table.json").read_text())["evaluation"] == "val-rank"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{a} {r}", "holds no evaluation test-free (but test-rank)"),
        ("{a}", "give 2 or more"),
        ("{a} {tmp}/none", "holds no evaluation test-free"),
        ("{a} {b} --split val", "holds no evaluation val-free"),
        ("{a} {b} --measure mrr", "needs ranked candidates"),
        ("{r} {r} --decode rank --measure nonsense", "measure is 'nonsense'"),
        ("{a} {b} --measure nonsense", "measure is 'nonsense'"),
        ("{a} {damaged}", "evaluate again"),
    ],
)
def test_what_cannot_be_compared_gets_one_sentence(tmp_path: Path, line: str, told: str) -> None:
    damaged = write(tmp_path / "damaged", HITS["a"])
    (damaged / "evaluation" / "test-free" / "predictions.jsonl").write_text('{"user": 1}\n')
    places = {
        "tmp": tmp_path,
        "a": write(tmp_path / "a", HITS["a"]),
        "b": write(tmp_path / "b", HITS["b"]),
        "r": write(tmp_path / "r", HITS["b"], label="test-rank"),
        "damaged": damaged,
    }
    done = run("compare", *line.format(**places).split())
    assert done.exit_code == 1
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
