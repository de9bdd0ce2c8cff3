"""The command line: every command explains itself, every mistake gets one sentence, and it works."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ilora.base_llm import build_base_llm
from ilora.cli import app
from ilora.cli.assignments import parse_assignments
from ilora.cli.failures import explain
from ilora.config import AdapterSettings, TrainingSettings
from ilora.data.synthetic import build_synthetic
from ilora.encoders import EncoderTraining
from ilora.errors import InputError
from ilora.model_folder import save_model
from tests.ilora.tiny_world import World

ROOT = typer.main.get_command(app)


def leaves(
    command: Any = ROOT, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that lead to it."""
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, sub in inner.items():
        yield from leaves(sub, (*path, name))


COMMANDS = dict(leaves())
EXAMPLES = [
    (path, line)
    for path, command in COMMANDS.items()
    for line in (command.epilog or "").split("\n\n")[1:]
]


def run(*words: object) -> Any:
    """Run ``ilora WORDS`` in this process."""
    return CliRunner().invoke(app, [str(word) for word in words])


def refusal(*words: object) -> str:
    """The one sentence with which a command refuses."""
    result = run(*words)
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    return lines[0]


def test_all_commands_of_the_contract_are_there() -> None:
    assert {" ".join(path) for path in COMMANDS} == {
        "doctor",
        "quickstart",
        "data build movielens-100k",
        "data build csv",
        "data build llara",
        "data build lastfm",
        "data build steam",
        "data build amazon",
        "data build synthetic",
        "data check",
        "base-llm build",
        "encoder train",
        "import reference",
        "train",
        "sweep",
        "study run",
        "study collect",
        "study tables",
        "evaluate",
        "recommend",
        "compare",
        "report",
        "explain gates",
        "explain usage",
        "explain gradients",
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_shows_an_example_of_the_command(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"ilora {' '.join(path)}" in result.output


@pytest.mark.parametrize(("path", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_every_example_is_understood(path: tuple[str, ...], line: str) -> None:
    words = shlex.split(line.split(">")[0])
    assert words[: 1 + len(path)] == ["ilora", *path]
    COMMANDS[path].make_context(path[-1], words[1 + len(path) :])  # raises on an unknown option


def test_help_starts_without_any_heavy_library() -> None:
    code = (
        "import sys, ilora.cli; print(sorted({'torch', 'transformers', 'numpy', 'matplotlib', "
        "'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_version_is_told() -> None:
    assert run("--version").stdout.startswith("ilora")


def test_an_unknown_option_is_a_usage_error() -> None:
    assert run("train", "--nonsense").exit_code == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("data check {tmp}/none", "is not a folder"),
        ("data check {data} --name x", "give --fix"),
        ("data build csv --source {tmp}/none.csv --out {tmp}/o", "is missing"),
        ("data build movielens-100k --source {tmp} --out {tmp}/o", "u.item is missing"),
        ("data build llara --source {tmp} --out {tmp}/o", "neither id2name.txt nor u.item"),
        ("data build lastfm --source {tmp} --out {tmp}/o", "artists.dat is missing"),
        ("data build steam --source {tmp} --out {tmp}/o", "steam_games.json.gz is missing"),
        ("data build amazon --source {tmp} --out {tmp}/o", "no reviews of Video_Games"),
        ("data build amazon --source {tmp} --category ../x --out {tmp}/o", "category is '../x'"),
        ("data build synthetic --users 3 --out {tmp}/o", "num_users: 3"),
        ("data build synthetic --out {tmp}/file/o", "a file is in the way"),
        ("base-llm build --data {tmp}/none --out {tmp}/o", "is not a folder"),
        ("base-llm build --data {data} --preset big --out {tmp}/o", "preset: 'big'"),
        ("encoder train --data {data} --encoder x --out {tmp}/o", "encoder is 'x'"),
        ("encoder train --data {data} --set x --out {tmp}/o", "KEY=VALUE"),
        ("import reference --checkpoint {tmp}/file --data {data} --out {tmp}/o", "is refused"),
        ("import reference --checkpoint {tmp}/none --data {data} --out {tmp}/o", "does not exist"),
        ("train --out {tmp}/o", "give --data"),
        ("train --out {tmp}/o --config {tmp}/none.yaml", "does not exist"),
        ("train --out {tmp}/o --data d --llm l --encoder e", "d is not a folder"),
        ("train --out {tmp}/o --data d --llm l --encoder e --method dora", "'dora'"),
        ("train --out {tmp}/o --data d --llm l --encoder e --rank 6", "not a multiple of 4"),
        ("train --out {tmp}/o --data d --llm l --encoder e --set x.y=1", "unknown key x"),
        ("train --out {tmp}/o --data {data} --llm l.pt --encoder {encoder}", "pickle"),
        ("evaluate --data {data} --model {tmp}/model.pt", "pickle"),
        ("evaluate --data {data} --model m --seed -1", "seed is -1"),
        ("data build synthetic --out {tmp}/d --seed -1", "seed is -1"),
        ("data check {data} --fix --seed -2", "seed is -2"),
        ("data check {data} --fix --domain music", "domain is 'music'"),
        ("evaluate --data {data} --model {tmp}/none", "is not a folder"),
        ("evaluate --data {data} --model {tmp}", "config.yaml is missing"),
        ("evaluate --data {data} --model m --split train", "only val and test"),
        ("sweep --out {tmp}/o --learning-rates 1e-3", "give --data"),
        ("sweep --out {tmp}/o --learning-rates 1e-3;2e-3", "numbers with commas between"),
        ("sweep --out {tmp}/o --learning-rates 1e-3 --seeds 0,x", "such as 0,1,2"),
        ("recommend --model {tmp}/model.pt --history 1", "pickle"),
        ("report {tmp}", "holds no training run"),
        ("report {encoder} --data {tmp}/none", "is not a folder"),
        ("train --out {tmp}/o --data d --llm l --encoder e --gate x", "'x'; choose one of linear"),
        ("explain gates --data {data} --model {tmp}/none", "is not a folder"),
        ("explain usage --data {data} --model {tmp}", "config.yaml is missing"),
        ("explain usage --data {data} --model m --split all", "split is 'all'"),
        ("explain gradients --data {data} --model m --split all", "split is 'all'"),
        ("explain gradients --data {tmp}/none --model m", "is not a folder"),
        ("report {tmp}/none", "is not a folder"),
    ],
)
def test_a_mistake_gets_one_sentence_and_leaves_nothing(
    line: str, told: str, tmp_path: Path, world: World
) -> None:
    (tmp_path / "file").touch()
    places = {"tmp": tmp_path, "data": world.folder.path, "encoder": world.encoder}
    assert told in refusal(*(word.format(**places) for word in line.split()))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_key_in_a_configuration_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("training: {learning_speed: 1}\ndata: d\nllm: l\nencoder: e\n")
    told = refusal("train", "--config", file, "--out", tmp_path / "run")
    assert "training.learning_speed" in told
    assert not (tmp_path / "run").exists()


def test_an_environment_that_asks_for_a_missing_backend_is_refused(
    monkeypatch: pytest.MonkeyPatch, world: World, tmp_path: Path
) -> None:
    monkeypatch.setenv("ILORA_BACKEND", "cuda")
    monkeypatch.setattr("ilora_kernels.backends", lambda: {"cuda": "there is no GPU."})
    told = refusal("evaluate", "--model", tmp_path, "--data", world.folder.path)
    assert "ILORA_BACKEND is cuda" in told
    assert "there is no GPU" in told


def test_a_full_disk_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/x")

    monkeypatch.setattr("ilora.doctor.diagnose", fail)
    assert refusal("doctor").startswith("error: /somewhere/x: the disk is full")


def test_a_full_disk_is_recognised_in_the_words_of_a_library() -> None:
    told = explain(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert told is not None
    assert "disk is full" in told
    assert explain(RuntimeError("shapes do not match")) is None
    assert explain(OSError(errno.EPIPE, "Broken pipe")) is None


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("ilora.doctor.diagnose", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        CliRunner().invoke(app, ["doctor"], catch_exceptions=False)


def test_an_interrupted_training_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ilora.training.train", interrupt)
    out = tmp_path / "run"
    result = run("train", "--out", out, *["--data", "d", "--llm", "l", "--encoder", "e"])
    assert result.exit_code == 130
    assert f"ilora train --out {out} --resume" in result.stderr


def test_a_run_that_had_finished_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = {"method": "lora", "train_rows": 9, "steps": 3, "seconds": 1.0, "device": "cpu"}
    record |= {"trainable_parameters": 7, "log": []}
    finished = SimpleNamespace(record=record, was_finished=True)
    monkeypatch.setattr("ilora.training.train", lambda *_, **__: finished)
    result = run(
        "train", "--out", tmp_path, *["--data", "d", "--llm", "l", "--encoder", "e", "--resume"]
    )
    assert result.exit_code == 0
    assert "had finished" in result.stderr


@pytest.mark.parametrize(("rank", "lines"), [("0", True), ("1", False)])
def test_of_several_processes_the_first_prints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: str, lines: bool
) -> None:
    record = {"method": "lora", "train_rows": 9, "steps": 3, "seconds": 1.0, "device": "cpu"}
    record |= {"trainable_parameters": 7, "log": []}
    made = SimpleNamespace(record=record, was_finished=False)
    monkeypatch.setattr("ilora.training.train", lambda *_, **__: made)
    monkeypatch.setenv("RANK", rank)
    result = run("train", "--out", tmp_path, *["--data", "d", "--llm", "l", "--encoder", "e"])
    assert result.exit_code == 0
    assert bool(result.stdout) == lines


def test_options_and_assignments_reach_the_settings_and_a_file_comes_after_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class ReachedError(Exception):
        pass

    def note(settings: Any, out: Path, *, resume: bool) -> None:
        raise ReachedError(settings)

    monkeypatch.setattr("ilora.training.train", note)
    file = tmp_path / "mine.yaml"
    file.write_text("data: d\nllm: l\nencoder: e\nseed: 5\ntraining: {max_steps: 7, epochs: 2}\n")
    words = "--max-steps 9 --method lora --set adapter.dropout=0.3 --set training.bf16=true"
    with pytest.raises(ReachedError) as reached:
        CliRunner().invoke(
            app,
            ["train", "--config", str(file), "--out", str(tmp_path / "run"), *words.split()],
            catch_exceptions=False,
        )
    settings = reached.value.args[0]
    assert (settings.training.max_steps, settings.training.epochs, settings.seed) == (9, 2, 5)
    assert (settings.adapter.method, settings.adapter.dropout) == ("lora", 0.3)
    assert settings.training.bf16 is True


def test_assignments_are_yaml() -> None:
    assert parse_assignments(["a.b=1", "c=[x, y]", "d = 1=2"]) == {
        "a.b": 1,
        "c": ["x", "y"],
        "d": "1=2",
    }


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=null", "a=[1"])
def test_an_assignment_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="set: "):
        parse_assignments([text])


def test_a_folder_is_fixed_and_its_statistics_written(tmp_path: Path, world: World) -> None:
    for name in ("items.csv", "train.jsonl.gz", "val.jsonl.gz", "test.jsonl.gz"):
        (tmp_path / name).write_bytes((world.folder.path / name).read_bytes())
    assert "--fix" in refusal("data", "check", tmp_path)
    result = run(
        *("data", "check", tmp_path, "--fix", "--name", "mine", "--domain", "game"),
        *("--out", tmp_path / "report.json"),
    )
    assert result.exit_code == 0
    assert "dataset.json" in result.stderr
    assert "mine (game)" in result.stdout
    assert json.loads((tmp_path / "report.json").read_text())["items"] == len(world.folder.catalog)


def test_items_of_a_table_without_titles_are_noted(tmp_path: Path) -> None:
    titles = ["user,item,timestamp,name"]
    titles += [f"u{u},i{(u + k) % 25},{k},{'' if u else 'x'}" for u in range(30) for k in range(4)]
    (tmp_path / "plays.csv").write_text("\n".join(titles).replace("0,x", "0,") + "\n")
    result = run(
        *("data", "build", "csv", "--source", tmp_path / "plays.csv", "--out", tmp_path / "out"),
        *("--title-column", "name"),
    )
    assert result.exit_code == 0, result.output
    assert "note: " in result.stderr
    assert "have no title" in result.stderr


def test_the_whole_way_from_data_to_report(tmp_path: Path) -> None:
    """Every command, on made-up data, the way a user types them."""
    data, llm, encoder = tmp_path / "data", tmp_path / "llm", tmp_path / "sasrec"
    runs = {method: tmp_path / "runs" / method for method in ("lora", "ilora")}

    def do(*words: object) -> Any:
        result = run(*words)
        assert result.exit_code == 0, result.output
        return result

    do("data", "build", "synthetic", "--users", 60, "--out", data)
    do("data", "check", data)
    do("base-llm", "build", "--data", data, "--out", llm)
    do("encoder", "train", "--data", data, "--max-epochs", 1, "--out", encoder)
    budget = "--max-steps 2 --batch-size 4 --micro-batch-size 2 --set training.evaluations=1"
    for method, out in runs.items():
        inputs = ("--data", data, "--llm", llm, "--encoder", encoder, "--method", method)
        done = do("train", *inputs, "--out", out, *budget.split())
        assert "trainable parameters" in done.stdout
        assert "ilora evaluate --model" in done.stderr
    for decode in ("free", "rank"):
        do("evaluate", "--model", runs["ilora"], "--data", data, "--decode", decode)
    words = ("--decode", "constrained", "--beams", 3, "--candidate-orders", 2)
    done = do("evaluate", "--model", runs["ilora"], "--data", data, *words)
    assert "HitRatio@1 over 2 orders" in done.stdout
    do("evaluate", "--model", runs["lora"] / "model", "--data", data, "--max-rows", 2)
    other = tmp_path / "other"
    do("data", "build", "synthetic", "--users", 60, "--seed", 1, "--out", other)
    words = ("--data", other, "--max-rows", 1, "--out", tmp_path / "elsewhere")
    assert "seen these users" in do("evaluate", "--model", runs["lora"], *words).stderr
    folders = sorted(p.parent.name for p in tmp_path.glob("runs/*/evaluation/*/metrics.json"))
    assert folders == [
        "test-constrained-beams-3-orders-2",
        "test-free",
        "test-free-first-2",
        "test-rank",
    ]

    title = (data / "items.csv").read_text().splitlines()[4].split(",")[1]  # of item 3
    out = tmp_path / "recommendation.json"
    words = ("--history", "1,2", "--history", title, "--candidates", "4,5,6", "--top", 2)
    shown = do("recommend", "--model", runs["ilora"], *words, "--out", out)
    found = json.loads(out.read_text())
    assert found["history"] == [1, 2, 3]
    assert {one["item"] for one in found["ranking"]} < {4, 5, 6}
    assert found["ranking"][0]["title"] in shown.stdout
    assert "99 is not in the catalogue" in refusal(
        "recommend", "--model", runs["ilora"], "--history", "3,99"
    )

    reported = do("report", tmp_path / "runs", encoder, "--out", tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.md", "report.json", "hit_ratio.png", "loss.png", "gates.png"}
    text = (tmp_path / "report" / "report.md").read_text()
    for name in ("ilora (test-free)", "ilora (test-rank)", "lora (test-free-first-2)"):
        assert name in text
    assert "sasrec (test-encoder)" in text
    assert "different numbers of rows" in reported.stderr


def test_baselines_and_explanations_the_way_a_user_types_them(tmp_path: Path, world: World) -> None:
    def do(*words: object) -> Any:
        result = run(*words)
        assert result.exit_code == 0, result.output
        return result

    data, runs = world.folder.path, tmp_path / "runs"
    inputs = ("--data", data, "--llm", world.llm, "--encoder", world.encoder)
    budget = ["--max-steps", "1", "--batch-size", "4", "--set", "training.evaluations=0"]
    chosen = ("--gate", "per-layer", "--rank", 16, "--experts", 8)
    do("train", *inputs, "--out", runs / "ilora", *chosen, *budget)
    file = runs / "ilora" / "settings.yaml"
    for method in ("lora", "none"):
        do("train", "--config", file, "--method", method, "--out", runs / method)
    do("evaluate", "--model", runs / "none", "--data", data, "--max-rows", 2)
    do("report", runs, "--data", data, "--out", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| popularity (test) |" in text
    assert "| none (test-free-first-2) |" in text

    whose = ("--data", data, "--split", "train")
    do("explain", "gates", "--model", runs / "ilora", *whose, "--clusters", 3)
    assert "of 8" in do("explain", "usage", "--model", runs / "ilora", *whose).stdout
    short = ("--clusters", 2, "--users", 3)
    told = do("explain", "gradients", "--model", runs / "lora", "--data", data, *short)
    assert "between the halves of one cluster" in told.stdout
    assert "note" not in told.stderr
    words = ("--by", "groups", "--users", 2, "--out", tmp_path / "elsewhere")
    told = do("explain", "gradients", "--model", runs / "ilora", "--data", data, *words)
    assert "has 8 experts" in told.stderr
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("explain/*")}
    pairs = {("ilora", "gates"), ("ilora", "usage"), ("lora", "gradients")}
    endings = ("png", "csv")
    assert made == {f"runs/{run}/explain/{name}.{end}" for run, name in pairs for end in endings}
    assert {p.name for p in (tmp_path / "elsewhere").iterdir()} == {
        "gradients.png",
        "gradients.csv",
    }
    refused = refusal("explain", "usage", "--model", runs / "lora", "--data", data)
    assert "one expert" in refused
    other = build_synthetic(tmp_path / "other", num_users=60, num_items=28, lengths=(5, 7), seed=9)
    refused = refusal("explain", "gates", "--model", runs / "ilora", "--data", other.path)
    assert "is not what" in refused


def stated_defaults(*command: str) -> dict[str, float]:
    """Numbers that a command's options state as their defaults."""
    stated = {}
    for option in COMMANDS[command].params:
        found = re.search(r"Default: ([\d.e+-]+)\.$", option.help or "")
        if found:
            stated[option.name] = float(found[1])
    return stated


def test_options_state_the_defaults_of_the_settings_behind_them() -> None:
    encoder = dataclasses.asdict(EncoderTraining())
    training = {**AdapterSettings().model_dump(), **TrainingSettings().model_dump(), "seed": 0}
    training["experts"] = training.pop("num_experts")
    for stated, used in (
        (stated_defaults("encoder", "train"), encoder),
        (stated_defaults("train"), training),
    ):
        assert len(stated) >= 5
        assert stated == {name: used[name] for name in stated}


def test_options_of_base_models_have_the_defaults_of_the_function_behind_them() -> None:
    parameters = inspect.signature(build_base_llm).parameters
    for option in COMMANDS["base-llm", "build"].params:
        if option.name in parameters and not option.required:
            assert option.default == parameters[option.name].default, option.name


def test_candidates_can_be_drawn_by_the_rule_of_the_papers_code(
    tmp_path: Path, world: World
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(world.folder.path, folder)
    for name in ("candidates.val.jsonl.gz", "candidates.test.jsonl.gz", "dataset.json"):
        (folder / name).unlink()
    sentence = refusal("data", "check", folder, "--fix", "--excluded", "nothing")
    assert "excluded is 'nothing'" in sentence
    assert not (folder / "dataset.json").exists()
    assert run("data", "check", folder, "--fix", "--excluded", "history").exit_code == 0
    manifest = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert manifest["candidates"]["excluded"] == "history"
    assert "--fix" in refusal("data", "check", folder, "--excluded", "history")


@pytest.mark.usefixtures("one_thread")
def test_figures_on_other_data_do_not_take_the_place_of_those_on_the_models_own(
    world: World, tmp_path: Path
) -> None:
    other = build_synthetic(tmp_path / "other", num_users=40, num_items=28, lengths=(5, 7), seed=9)
    model, config = world.built()
    save_model(tmp_path / "model", model, config, world.folder.catalog)
    for data in (world.folder, other):
        asked = ("--data", data.path, "--decode", "rank", "--max-rows", 1)
        assert run("evaluate", "--model", tmp_path / "model", *asked).exit_code == 0
    written = {path.name for path in (tmp_path / "model" / "evaluation").iterdir()}
    assert written == {"test-rank-first-1", f"test-rank-first-1-on-{other.sha256[:8]}"}
