"""A study does what its settings say, in the order that results allow, and nothing twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ilora.base_llm import RECORD
from ilora.config import write_settings
from ilora.errors import InputError
from ilora.evaluation.records import METRICS_FILE, evaluation_folder
from ilora.studies.picture import draw_study
from ilora.studies.plan import Row, Study, StudySettings, all_rows, read_study
from ilora.studies.results import _chosen, _tuning, collect, of_both_seeds
from ilora.studies.run import TEST, ready, ready_rows, run_study
from ilora.studies.tables import blocks, read_table, write_into
from ilora.studies.unchanged import require_unchanged
from ilora.studies.workers import FAILED, Task, Worker, work
from ilora.sweep import MEASURE

CONFIGS = Path(__file__).parents[2] / "configs" / "studies"
PLAN: dict[str, Any] = {
    "base": {"data": ["old"]},
    "data": ["one", "two"],
    "learning_rates": [1e-3, 3e-3],
    "seeds": [0, 1],
    "experts": {"data": "two", "experts": [1, 2, 4, 8], "seeds": [0, 1]},
    "gates": {"data": "one", "gates": ["linear", "uniform"]},
}


def study(out: Path = Path("out"), **changes: Any) -> Study:
    return Study(StudySettings.model_validate(PLAN | changes), Path("data"), out)


def names(tasks: list[Task]) -> set[str]:
    return {task.name for task in tasks}


def tuned(data: str, method: str, figures: dict[float, float | None]) -> dict[str, dict[str, Any]]:
    return {
        f"{data}/{method}-{rate:g}-seed0 val-rank": (
            {FAILED: "diverged"} if figure is None else {"val-rank": {MEASURE: figure}}
        )
        for rate, figure in figures.items()
    }


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_studies_of_the_repository_are_sound_and_tune_both_methods_alike(file: Path) -> None:
    own = Study(read_study(file), Path("data"), Path("out"))
    rows = all_rows(own)
    for data in own.settings.data:
        counts = [
            sum(row.data == data and row.trial.variant.name == method for row in rows.values())
            for method in ("lora", "ilora")
        ]
        assert counts[0] == counts[1] == len(own.settings.learning_rates) * len(own.settings.seeds)


def test_a_part_on_another_data_set_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "{base: {data: [old]}, data: [one], learning_rates: [1.0e-3], seeds: [0], gates: {data: two}}"
    )
    with pytest.raises(InputError, match="'two' is not one of the study's data sets"):
        read_study(file)


def test_a_run_waits_for_the_language_model_and_its_encoder() -> None:
    first = {"base", "encoder one", "encoder two"}
    assert names(ready(study(), {})) == first
    told: dict[str, dict[str, Any]] = {"base": {}, "encoder one": {}}
    assert {name for name in names(ready(study(), told)) if name not in first} == {
        "one/unadapted-0.0001-seed0 test-rank+test-free",
        *tuned("one", "lora", {1e-3: 0, 3e-3: 0}),
        *tuned("one", "ilora", {1e-3: 0, 3e-3: 0}),
    }
    assert names(ready(study(), {"base": {FAILED: "no disk"}, "encoder one": {}})) == first


@pytest.mark.parametrize(
    ("figures", "rate"),
    [({1e-3: 0.2, 3e-3: 0.3}, "0.003"), ({1e-3: 0.2, 3e-3: 0.2}, "0.001"),
     ({1e-3: 0.2, 3e-3: None}, "0.001")],
)  # fmt: skip
def test_only_the_rate_chosen_on_validation_gets_other_seeds_and_test_users(
    figures: dict[float, float | None], rate: str
) -> None:
    told = {"base": {}, "encoder two": {}} | tuned("two", "ilora", figures)
    tested = {name for name in names(ready(study(), told)) if name.endswith("test-free")}
    variants = ["ilora", "ilora-2experts", "ilora-8experts"]
    assert tested == {
        "two/unadapted-0.0001-seed0 test-rank+test-free",
        *(f"two/{v}-{rate}-seed{seed} test-rank+test-free" for v in variants for seed in (0, 1)),
    }


def test_a_single_run_needs_the_language_model_its_encoder_and_nothing_else() -> None:
    own = study()
    row = all_rows(own)["one/ilora-uniform-0.001-seed0"]
    assert names(ready_rows(own, [row], {})) == {"base", "encoder one"}
    tasks = ready_rows(own, [row], {"base": {}, "encoder one": {}})
    assert [task.arguments[1:] for task in tasks][2:] == [(row, ("val-rank", *TEST))]


def begun(out: Path, **changes: Any) -> Study:
    """A study whose language model and first run are there, as far as their records."""
    own = study(out, base={"data": ["old"], "preset": "tiny", "pretrain_steps": 7}, **changes)
    own.base.mkdir(parents=True)
    options = {"steps": 7, "disguised": 0.5}
    (own.base / RECORD).write_text(json.dumps({"preset": "tiny", "pretraining_options": options}))
    row = next(iter(all_rows(own).values()))
    write_settings(row.trial.settings(own.run_settings(row.data)), own.run(row) / "settings.yaml")
    return own


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"training": {"max_steps": 30}}, "training.max_steps"),
        ({"adapter": {"rank": 16}}, "adapter.rank"),
        ({"base": {"data": ["old"], "preset": "tiny", "pretrain_steps": 9}}, "base.pretrain_steps"),
        ({"base": {"data": ["old"], "pretrain_steps": 7}}, "base.preset"),
    ],
)
def test_a_study_does_not_go_on_with_other_settings(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    own = begun(tmp_path / "out")
    other = StudySettings.model_validate(own.settings.model_dump() | changes)
    for go_on in (run_study, collect):
        with pytest.raises(InputError, match=f"config: {key} differs from the"):
            go_on(Study(other, own.data_root, own.out))


def test_a_study_goes_on_with_more_runs_and_in_another_place(tmp_path: Path) -> None:
    own = begun(tmp_path / "out")
    moved = own.out.rename(tmp_path / "moved")
    more = own.settings.model_dump() | {"learning_rates": [1e-3, 2e-3, 3e-3], "seeds": [0, 1, 2]}
    require_unchanged(Study(StudySettings.model_validate(more), Path("elsewhere"), moved))


def double(number: int) -> dict[str, Any]:
    if number < 0:
        raise InputError("number: it is negative; give another")
    return {"told": 2 * number}


def die() -> dict[str, Any]:
    raise SystemExit(3)


def test_tasks_follow_from_results_and_a_failed_one_stops_no_other(tmp_path: Path) -> None:
    lines: list[str] = []

    def ready_tasks(results: Any) -> list[Task]:
        tasks = [
            Task(0, "bad", double, (-1,)),
            Task(0, "dead", die, ()),
            Task(1, "a", double, (2,)),
        ]
        if "a" in results:
            tasks.append(Task(2, "b", double, (results["a"]["told"],)))
        return tasks

    told = work(ready_tasks, gpus=[None], jobs=1, logs=tmp_path, tell=lines.append)
    assert told["b"] == {"told": 8}
    assert told["bad"] == {FAILED: "number: it is negative; give another"}
    assert "its process ended" in told["dead"][FAILED]
    assert len(lines) == 4


def test_a_task_that_is_listed_twice_is_done_once(tmp_path: Path) -> None:
    lines: list[str] = []
    tasks = [Task(0, "a", double, (2,)), Task(0, "a", double, (2,))]
    told = work(lambda _: tasks, gpus=[None], jobs=2, logs=tmp_path, tell=lines.append)
    assert told == {"a": {"told": 4}}
    assert len(lines) == 1


@pytest.mark.parametrize("late", [False, True], ids=["before its task", "before it reads its task"])
def test_a_worker_that_ends_early_gives_no_result(tmp_path: Path, late: bool) -> None:
    worker, task = Worker(None, 1, tmp_path / "log"), Task(0, "a", double, (2,))
    steps = [lambda: worker.begin(task), lambda: end(worker)]
    try:
        for step in steps if late else reversed(steps):
            step()
        assert worker.result() is None
    finally:
        worker.stop()


def end(worker: Worker) -> None:
    worker._process.kill()
    worker._process.join()


def sleep_and_tell(connection: Connection) -> dict[str, Any]:
    connection.send(os.getpid())
    time.sleep(60)
    return {}


def work_until_killed(connection: Connection, logs: Path) -> None:
    task = Task(0, "long", sleep_and_tell, (connection,))
    work(lambda _: [task], gpus=[None], jobs=1, logs=logs)


def test_the_workers_of_a_killed_study_end_in_the_middle_of_their_tasks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=work_until_killed, args=(theirs, tmp_path))
    parent.start()
    theirs.close()
    assert ours.poll(60)
    worker = ours.recv()
    assert not ours.poll(0.2)  # at its task, which holds the other end
    parent.kill()
    parent.join()
    assert ours.poll(20), f"worker {worker} goes on"
    with pytest.raises(EOFError):
        ours.recv()


def test_tables_go_between_their_markers_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    rank = {
        MEASURE: 0.25,
        "ci95": [0.2, 0.3],
        "n": 1000,
        "sd": 0.01,
        "seeds": {"0": 0.24, "1": 0.26},
    }
    row = {"name": "ilora", "learning_rate": 1e-3, "rank": rank, "free": rank | {"valid_ratio": 1.0},
           "runs": ["one/ilora-0.001-seed0"], "seconds": [61.2]}  # fmt: skip
    rows = [{"name": "random", "rank": {MEASURE: 0.05}}, {"name": "popularity", "rank": rank}, row]
    comparison = {"first": "ilora", "second": "lora", "n": 1000, "difference": 0.05,
                  "ci95": [0.01, 0.09], "mcnemar_p": None,
                  "permutation_p": 0.00001, "holm": 0.02}  # fmt: skip
    told = {"rows": rows, "tuning": {"ilora": {"0.001": 0.5}}, "chosen": {"ilora": 1e-3}}
    table = {
        "settings": study().settings.model_dump(mode="json"),
        "base": {"num_parameters": 10, "vocab_size": 5, "pretraining": None,
                 "folders": [{"name": "old"}]},
        "versions": {"torch": "2"},
        "devices": ["cpu"],
        "date": "2026-01-31",
        "data": {name: told | {"read_by_llm": name == "two"} for name in ("one", "two")},
        "parts": {},
        "comparisons": {"iLoRA and LoRA": [comparison]},
    }  # fmt: skip
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin main -->\nold\n<!-- end main -->\nafter\n")
    write_into(page, table)
    text = page.read_text()
    assert text.startswith(
        "before\n<!-- begin main -->\n**one**, n = 1,000; the language model has read no"
    )
    assert text.endswith("<!-- end main -->\nafter\n")
    assert ".250 [.200, .300]" in text
    assert "**two**, n = 1,000; the language model has read its training rows" in text
    assert "1.000" in text
    assert "old" not in text
    assert "**.500**" in blocks(table)["tuning"]
    assert "< .0001 | 0.0200" in blocks(table)["tests"]
    assert blocks(table)["seeds"].count("\n") == 1  # LoRA has no seeds here
    lora = row | {"name": "lora", "rank": rank | {"seeds": {"0": 0.1, "1": 0.11}}}
    table["data"]["one"]["rows"] = [*rows, lora]
    assert "| one | rank | .240, .260 against .100, .110 | +0.145 [" in blocks(table)["seeds"]
    page.write_text("nothing")
    with pytest.raises(InputError, match="has no place"):
        write_into(page, table)


@pytest.mark.parametrize("content", [b"x", b"\xee\x00", b"[]", b'{"settings": {}}'])
def test_a_file_that_holds_no_study_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "study.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"file: .*study.json (is not JSON|holds no study)"):
        read_table(file)


@pytest.mark.parametrize(
    ("measured", "tested", "chosen"),
    [
        ({1e-3: 0.2, 3e-3: 0.3}, [], 3e-3),
        ({1e-3: 0.2}, [], None),  # the other rate may still be running
        ({1e-3: 0.2}, [1e-3], 1e-3),  # it failed, and the study went on
        ({1e-3: 0.2, 3e-3: 0.3}, [1e-3], 3e-3),  # a single run that was asked for by name
    ],
)
def test_the_tables_know_the_rate_that_the_study_went_on_with(
    tmp_path: Path, measured: dict[float, float], tested: list[float], chosen: float | None
) -> None:
    own = study(tmp_path)
    for row in all_rows(own).values():
        if row.data != "two" or row.trial.seed or row.trial.variant.name != "ilora":
            continue
        rate = row.trial.learning_rate
        for label, done in (("val-rank", rate in measured), (TEST[0], rate in tested)):
            if done:
                place = evaluation_folder(own.run(row), label)
                place.mkdir(parents=True)
                (place / METRICS_FILE).write_text(json.dumps({MEASURE: measured[rate]}))
    assert _chosen(own, "two", "ilora", _tuning(own, "two", "ilora")) == chosen


def test_the_picture_shows_all_that_has_an_interval(tmp_path: Path) -> None:
    rank = {MEASURE: 0.25, "ci95": [0.2, 0.3]}
    rows = [{"name": "random", "rank": {MEASURE: 0.05}}, {"name": "ilora", "rank": rank}]
    picture = tmp_path / "picture.png"
    draw_study({"data": {"one": {"name": "one", "rows": rows}}}, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="holds no figures yet"):
        draw_study({"data": {}}, picture)


def test_variants_are_compared_over_the_seeds_that_both_have() -> None:
    def runs(name: str, *seeds: int) -> list[Row]:
        rows = all_rows(study()).values()
        return [
            next(r for r in rows if r.trial.variant.name == name and r.trial.seed == seed)
            for seed in seeds
        ]

    ilora, lora = runs("ilora", 0, 1), runs("lora", 1)
    assert of_both_seeds(ilora, lora) == (ilora[1:], lora)
    assert of_both_seeds(ilora[:1], lora) == ([], [])
