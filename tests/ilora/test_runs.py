"""What run folders tell a report: nothing is left out, and what cannot be compared is said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ilora.data.synthetic import build_synthetic
from ilora.errors import InputError
from ilora.evaluation.popularity import popularity_metrics
from ilora.gate import GATES
from ilora.gate_map import gate_map
from ilora.model_folder import save_model
from ilora.runs import collect_runs, read_gates
from tests.ilora.tiny_world import World

LOG = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}]
SETTINGS = "data: nowhere\nllm: l\nencoder: e\nadapter: {method: lora}\n"


def write_run(path: Path, *, finished: bool = True, **record: Any) -> Path:
    """A training run as far as its log."""
    path.mkdir(parents=True)
    (path / "settings.yaml").write_text(SETTINGS)
    if finished:
        (path / "model").mkdir()
        told = {"seconds": 1.5, "trainable_parameters": 7, "resumed_from": None, "log": LOG}
        (path / "training.json").write_text(json.dumps(told | record))
    return path


def write_evaluation(run: Path, name: str = "test-free", **metrics: Any) -> Path:
    """What `ilora evaluate` leaves there."""
    folder = run / "evaluation" / name
    folder.mkdir(parents=True)
    told = {
        "hit_ratio_at_1": 0.25,
        "hit_ratio_at_1_valid": None,
        "valid_ratio": 0.0,
        "n": 8,
        "ci95": {"hit_ratio_at_1": [0.0, 0.5]},
        "split": name.split("-")[0],
        "data": {"sha256": "d"},
    }
    (folder / "metrics.json").write_text(json.dumps(told | metrics))
    (folder / "predictions.jsonl").write_text('{"candidates": [1, 2, 3, 4]}\n')
    return folder


def test_an_evaluated_run_gives_a_row_and_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    write_evaluation(run)
    found = collect_runs([run])
    (row,) = found.rows
    assert (row.name, row.hit_ratio_at_1, row.ci95, row.n) == (
        "mine (test-free)",
        0.25,
        (0, 0.5),
        8,
    )
    assert (row.seconds, row.trainable_parameters) == (1.5, 7)
    assert found.curves == {"mine": {"train": [(1, 3.0), (2, 2.0)], "validation": [(2, 2.5)]}}
    assert found.chance == 0.25
    assert found.notes == []


def test_an_encoder_gives_a_row_for_each_split(world: World) -> None:
    test, val = collect_runs([world.encoder]).rows
    assert (test.name, val.name) == ("encoder (test-encoder)", "encoder (val-encoder)")
    assert test.valid_ratio == 1.0
    assert test.trainable_parameters is not None


def test_popularity_is_a_row_beside_the_encoder_where_its_data_is_given(world: World) -> None:
    rows = collect_runs([world.encoder], world.folder.path).rows
    names = ["popularity (test)", "encoder (test-encoder)"]
    assert [row.name for row in rows[:2]] == names
    expected = popularity_metrics(world.folder, "test")
    assert (rows[0].hit_ratio_at_1, rows[0].n) == (expected["hr@1"], rows[1].n)
    assert rows[0].trainable_parameters is None


def test_the_test_rows_come_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    for name in ("val-free", "test-free"):
        write_evaluation(run, name)
    other = write_run(tmp_path / "other")
    write_evaluation(other)
    names = [row.name for row in collect_runs([run, other]).rows]
    assert names == ["mine (test-free)", "other (test-free)", "mine (val-free)"]


def test_a_folder_of_runs_stands_for_the_runs_in_it_and_none_counts_twice(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_evaluation(write_run(tmp_path / name))
    found = collect_runs([tmp_path, tmp_path / "a"])
    assert [row.name for row in found.rows] == ["a (test-free)", "b (test-free)"]


def test_what_a_killed_process_left_half_written_is_no_run(tmp_path: Path) -> None:
    write_evaluation(write_run(tmp_path / "whole"))
    write_evaluation(write_run(tmp_path / ".other.4711.partial"))
    assert [row.name for row in collect_runs([tmp_path]).rows] == ["whole (test-free)"]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / place / "same") for place in ("x", "y")]
    for run in runs:
        write_evaluation(run)
    names = {row.name for row in collect_runs(runs).rows}
    assert names == {f"{run} (test-free)" for run in runs}


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ({"finished": False}, "has not finished training"),
        ({}, "has not been evaluated"),
        ({"resumed_from": "checkpoint-3"}, "was resumed from checkpoint-3"),
    ],
)
def test_what_is_odd_about_a_run_is_noted(tmp_path: Path, kind: Any, told: str) -> None:
    run = write_run(tmp_path / "odd", **kind)
    assert any("odd " in note and told in note for note in collect_runs([run]).notes)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"n": 7}, "different numbers of rows"),
        ({"data": {"sha256": "other"}}, "come from different data"),
    ],
)
def test_rows_that_cannot_be_compared_are_noted(tmp_path: Path, other: Any, told: str) -> None:
    for name, metrics in (("a", {}), ("b", other)):
        write_evaluation(write_run(tmp_path / name), **metrics)
    (note,) = collect_runs([tmp_path]).notes
    assert told in note


def seeded(path: Path, seed: int, hit_ratio: float, settings: str = SETTINGS) -> None:
    run = write_run(path / f"lora-seed{seed}")
    (run / "settings.yaml").write_text(f"{settings}seed: {seed}\n")
    write_evaluation(run, hit_ratio_at_1=hit_ratio)


def test_runs_that_differ_in_the_seed_alone_are_summed_up(tmp_path: Path) -> None:
    for seed, hit_ratio in enumerate((0.2, 0.3, 0.1)):
        seeded(tmp_path, seed, hit_ratio)
    write_evaluation(write_run(tmp_path / "other", seed=0), n=8)
    (tmp_path / "other" / "settings.yaml").write_text(SETTINGS.replace("l\n", "another\n"))
    (row,) = collect_runs([tmp_path]).seeds
    assert (row.name, row.seeds) == ("lora (test-free)", (0, 1, 2))
    assert (row.mean, row.sd) == (pytest.approx(0.2), pytest.approx(0.1))
    assert row.ci95 == pytest.approx((0.2 - 0.2484, 0.2 + 0.2484), abs=1e-4)  # t(.975, 2) = 4.303


def test_other_rows_or_settings_are_not_another_seed(tmp_path: Path) -> None:
    seeded(tmp_path / "a", 0, 0.2)
    seeded(tmp_path / "b", 1, 0.2, SETTINGS.replace("method: lora", "method: lora, rank: 4"))
    assert collect_runs([tmp_path / "a", tmp_path / "b"]).seeds == []
    file = tmp_path / "c" / "lora-seed2" / "evaluation" / "test-free" / "metrics.json"
    seeded(tmp_path / "c", 2, 0.2)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"n": 5}))
    assert collect_runs([tmp_path / "a", tmp_path / "c"]).seeds == []


def test_the_reading_of_the_papers_code_is_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    told = {"hit_ratio_at_1": 0.5, "hit_ratio_at_1_valid": 0.75, "valid_ratio": 0.6}
    write_evaluation(run, as_reference=told)
    (row,) = collect_runs([run]).rows
    assert row.as_reference is not None
    assert dataclasses.asdict(row.as_reference) == told


def test_candidate_lists_of_several_lengths_have_no_one_chance(tmp_path: Path) -> None:
    for name, line in (("a", '{"candidates": [1, 2]}'), ("b", '{"candidates": [1, 2, 3]}')):
        folder = write_evaluation(write_run(tmp_path / name))
        (folder / "predictions.jsonl").write_text(line + "\n")
    assert collect_runs([tmp_path]).chance is None


def test_gates_are_read_without_the_language_model(tmp_path: Path, world: World) -> None:
    model, config = world.built()
    save_model(tmp_path / "run" / "model", model, config, world.folder.catalog)
    run = tmp_path / "run"
    text = f"data: {world.folder.path}\nllm: gone\nencoder: gone\n"
    (run / "settings.yaml").write_text(text)
    told = {"seconds": 1.0, "trainable_parameters": 7, "resumed_from": None, "log": LOG}
    (run / "training.json").write_text(json.dumps(told))
    found = collect_runs([run]).gates["run"]
    assert found.num_experts == 4
    assert len(found.weights) == len({row.user for row in world.folder.rows("test", 3)})


@pytest.mark.parametrize("gate", GATES)
def test_every_kind_of_gate_is_read_without_the_language_model(
    tmp_path: Path, world: World, gate: str
) -> None:
    model, config = world.built({"adapter.gate": gate})
    save_model(tmp_path / "model", model, config, world.folder.catalog)
    before = torch.get_rng_state()
    found = read_gates(tmp_path / "model", world.folder.path)
    assert torch.equal(torch.get_rng_state(), before)
    expected = gate_map(model.encoder, model.gate, world.folder)
    assert found.weights.tolist() == expected.weights.tolist()


def test_gates_whose_model_is_gone_are_a_note(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    (run / "settings.yaml").write_text(SETTINGS.replace("lora", "ilora"))
    write_evaluation(run)
    found = collect_runs([run])
    assert found.gates == {}
    assert any("gates of mine are not shown" in note for note in found.notes)


def test_gates_over_other_data_are_refused(tmp_path: Path, world: World) -> None:
    model, config = world.built()
    save_model(tmp_path / "model", model, config, world.folder.catalog)
    other = build_synthetic(tmp_path / "data", num_users=60, num_items=28, lengths=(5, 7), seed=9)
    with pytest.raises(InputError, match=r"is not what .* was trained on"):
        read_gates(tmp_path / "model", other.path)


@pytest.mark.parametrize("damage", ["", "[1]", "{}", '{"log": 3}'])
def test_a_damaged_log_is_named(tmp_path: Path, damage: str) -> None:
    run = write_run(tmp_path / "mine")
    (run / "training.json").write_text(damage)
    with pytest.raises(InputError, match=r"training\.json"):
        collect_runs([run])


def test_damaged_metrics_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    folder = write_evaluation(run)
    (folder / "metrics.json").write_text('{"n": 3}')
    with pytest.raises(InputError, match="evaluate again"):
        collect_runs([run])


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no training run and no encoder"):
        collect_runs([tmp_path])
