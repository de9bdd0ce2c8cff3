"""Training runs: what a step is, what a killed run loses (nothing), and what is refused."""

from __future__ import annotations

import gc
import json
import math
import shutil
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from ilora.config import TrainingSettings
from ilora.data.prompts import IGNORED_LABEL
from ilora.data.synthetic import build_synthetic
from ilora.encoders import EncoderTraining, train_encoder
from ilora.errors import InputError
from ilora.evaluation.evaluate import evaluate
from ilora.model import ILoRARecommender
from ilora.model_folder import load_model, load_weights
from ilora.run_folder import last_complete_checkpoint, loss_curve
from ilora.trainer import RecommenderTrainer
from ilora.training import TrainingResult, _arguments, train
from tests.ilora.child_runs import start, train_and_die_while_saving, train_together
from tests.ilora.tiny_world import CPU, World

pytestmark = pytest.mark.usefixtures("one_thread")

# Eight rows a step: 143 rows make 18 steps a pass, the last one of 7 rows.
ROWS = 143
STEPS_A_PASS = 18


def weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder or a checkpoint."""
    names = ("adapter_model.safetensors", "recommender.safetensors")
    return {name: tensor for file in names for name, tensor in load_file(folder / file).items()}


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# What a step is


SMALL_STEPS = {
    "training.max_steps": 6,
    "training.evaluations": 2,
    "training.curriculum": "text-to-hybrid",
    "adapter.dropout": 0.0,  # its masks are drawn for each micro-batch
}


@pytest.fixture(scope="module")
def whole_batches(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """Six steps, eight rows at once."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "run"
    return train(world.settings(SMALL_STEPS), out, device="cpu")


def assert_same_training(one: TrainingResult, record: dict[str, Any], path: Path) -> None:
    """Losses, and weights that have moved by much more than rounding."""
    for key in ("loss", "eval_loss"):
        curve, other = loss_curve(one.record, key), loss_curve(record, key)
        assert [step for step, _ in curve] == [step for step, _ in other]
        assert [loss for _, loss in curve] == pytest.approx([x for _, x in other], rel=1e-5)
    # Adam divides by the gradient's size: where that is rounding alone, it amplifies it.
    torch.testing.assert_close(weights(one.path), weights(path), rtol=1e-2, atol=2e-3)


def test_two_rows_at_a_time_train_as_eight_at_once_do(
    world: World, tmp_path: Path, whole_batches: TrainingResult
) -> None:
    result = train(
        world.settings({**SMALL_STEPS, "training.micro_batch_size": 2}),
        tmp_path / "run",
        device="cpu",
    )
    assert_same_training(whole_batches, result.record, result.path)


@pytest.mark.slow
def test_two_processes_train_as_one_does_with_the_whole_batch(
    world: World, tmp_path: Path, whole_batches: TrainingResult
) -> None:
    settings = world.settings({**SMALL_STEPS, "training.micro_batch_size": 2})
    assert train_together(settings, tmp_path / "run", 2) == [0, 0]
    record = json.loads((tmp_path / "run" / "training.json").read_text(encoding="utf-8"))
    assert_same_training(whole_batches, record, tmp_path / "run" / "model")


def test_every_token_of_a_step_weighs_the_same_whatever_micro_batch_it_is_in(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[tuple[int, int]] = []
    forward = ILoRARecommender.forward

    def spy(self: ILoRARecommender, *args: Any, **inputs: Any) -> Any:
        if self.training:
            own = int((inputs["labels"] != IGNORED_LABEL).sum())
            counts.append((own, int(inputs["num_items_in_batch"])))
        return forward(self, *args, **inputs)

    monkeypatch.setattr(ILoRARecommender, "forward", spy)
    changes = {"training.max_steps": 2, "training.micro_batch_size": 4}
    train(world.settings(changes), tmp_path / "run", device="cpu")
    (a, whole), (b, again), (c, next_whole), (d, _) = counts
    assert whole == again == a + b
    assert next_whole == c + d


def test_epochs_are_whole_passes_over_the_rows(world: World) -> None:
    assert len(world.folder.rows("train", 3)) == ROWS
    settings = world.settings({"training.epochs": 2.0})
    settings.training.max_steps = None
    assert _arguments(settings, ROWS, Path("run"), CPU).max_steps == 2 * STEPS_A_PASS


@pytest.mark.parametrize(("steps", "times"), [(4, 2), (7, 3), (9, 5), (100, 7), (3, 10)])
def test_there_are_at_most_as_many_validations_as_asked_for(
    world: World, steps: int, times: int
) -> None:
    changes = {"training.max_steps": steps, "training.evaluations": times}
    arguments = _arguments(world.settings(changes), ROWS, Path("run"), CPU)
    at = {step for step in range(1, steps + 1) if step % arguments.eval_steps == 0} | {steps}
    assert times / 2 <= len(at) <= times or len(at) == steps


def test_the_validation_loss_is_the_mean_over_rows_however_they_are_batched(
    world: World, whole_batches: TrainingResult
) -> None:
    model = load_model(whole_batches.path, device="cpu")[0]
    rows = world.rows(model, "val", answer=True)
    alone = []
    for i in range(len(rows)):
        total, count = model.answer_log_probs(world.batch(model, [rows[i]]))
        alone.append(float(-total / count))
    measured = loss_curve(whole_batches.record, "eval_loss")[-1][1]
    assert measured == pytest.approx(sum(alone) / len(alone), rel=1e-5)
    metrics = json.loads((whole_batches.path / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["split"], metrics["loss"], metrics["step"]) == ("val", measured, 6)


def test_the_language_model_and_the_encoder_come_out_as_they_went_in(
    world: World, whole_batches: TrainingResult
) -> None:
    trained, fresh = whole_batches.model, world.recommender()
    frozen = {name for name, p in trained.named_parameters() if not p.requires_grad}
    assert len(frozen) > 20
    for name, parameter in trained.named_parameters():
        assert (name in frozen) == torch.equal(parameter, fresh.get_parameter(name)), name


def test_the_garbage_collector_is_spared_what_lasts_until_training_ends(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spared: list[int] = []
    step = RecommenderTrainer.training_step

    def watched(*arguments: Any, **options: Any) -> Tensor:
        spared.append(gc.get_freeze_count())
        return step(*arguments, **options)

    before = gc.get_freeze_count()
    monkeypatch.setattr(RecommenderTrainer, "training_step", watched)
    train(world.settings({"training.max_steps": 1}), tmp_path / "run", device="cpu")
    assert min(spared) > before + 10_000
    assert gc.get_freeze_count() <= before


def test_a_lone_process_uses_one_gpu(world: World, tmp_path: Path) -> None:
    model, _ = world.built()
    args = _arguments(world.settings(), ROWS, tmp_path, CPU)
    args._n_gpu = 4
    training = world.settings().training
    trainer = RecommenderTrainer(model, training, lambda path: None, args=args)
    assert trainer.args.n_gpu == 1


def test_processes_that_do_not_divide_the_batch_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="batch_size 8 is not a multiple of 3 processes"):
        _arguments(world.settings({"training.micro_batch_size": 1}), ROWS, Path("run"), CPU)


# Learning rates


def test_rates_warm_up_and_follow_a_cosine_the_gates_at_three_tenths(
    world: World, tmp_path: Path
) -> None:
    settings = world.settings({"training.max_steps": 40, "training.warmup_ratio": 0.1})
    model, _ = world.built()
    trainer = RecommenderTrainer(
        model,
        settings.training,
        lambda path: None,
        args=_arguments(settings, ROWS, tmp_path, CPU),
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=40)
    rest, gate = trainer.optimizer.param_groups
    assert [id(p) for p in gate["params"]] == [id(p) for p in model.gate.parameters()]
    trained = sum(p.numel() for group in (rest, gate) for p in group["params"])
    assert trained == model.trainable_parameters()
    peak, warmup = settings.training.learning_rate, 4
    for step in range(40):
        if step < warmup:
            expected = peak * step / warmup
        else:
            expected = peak * (1 + math.cos(math.pi * (step - warmup) / (40 - warmup))) / 2
        assert rest["lr"] == pytest.approx(expected)
        assert gate["lr"] == pytest.approx(0.3 * expected)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def test_lora_has_one_group_because_it_has_no_gate(world: World, tmp_path: Path) -> None:
    settings = world.settings({"adapter.method": "lora"})
    model, _ = world.built({"adapter.method": "lora"})
    args = _arguments(settings, ROWS, tmp_path, CPU)
    trainer = RecommenderTrainer(model, settings.training, lambda path: None, args=args)
    assert len(trainer.create_optimizer().param_groups) == 1


# Curriculum


def text_share(curriculum: Any, step: int, steps: int, seeds: int = 1000) -> float:
    """Over how many seeds a step is text-only."""
    count = 0
    for seed in range(seeds):
        trainer = SimpleNamespace(
            training_settings=TrainingSettings(curriculum=curriculum),
            state=SimpleNamespace(global_step=step, max_steps=steps),
            args=SimpleNamespace(seed=seed),
        )
        count += RecommenderTrainer.text_only(trainer)
    return count / seeds


def test_the_share_of_text_falls_from_one_to_nothing_over_the_whole_training() -> None:
    assert text_share("text-to-hybrid", 0, 100) == 1
    assert text_share("text-to-hybrid", 100, 100) == 0
    for step in (25, 50, 75):
        assert text_share("text-to-hybrid", step, 100) == pytest.approx(1 - step / 100, abs=0.05)


def test_a_training_can_be_hybrid_or_text_from_end_to_end() -> None:
    for step in (0, 50, 99):
        assert text_share("hybrid", step, 100, seeds=20) == 0
        assert text_share("text", step, 100, seeds=20) == 1


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each training batch was text-only, as the model saw them."""
    flags: list[bool] = []
    embed = ILoRARecommender.embed

    def spy(self: ILoRARecommender, *args: Any, text_only: bool = False) -> Tensor:
        if self.training:
            flags.append(text_only)
        return embed(self, *args, text_only=text_only)

    monkeypatch.setattr(ILoRARecommender, "embed", spy)
    return flags


@pytest.mark.parametrize(
    ("changes", "times"),
    [({"training.micro_batch_size": 4}, 2), ({"training.workers": 1}, 1)],
    ids=["micro-batches", "workers"],
)
def test_the_curriculum_does_not_depend_on_micro_batches_or_workers(
    world: World, tmp_path: Path, seen: list[bool], changes: dict[str, Any], times: int
) -> None:
    steps = {"training.max_steps": 8, "seed": 3}
    train(world.settings(steps), tmp_path / "plain", device="cpu")
    plain = [flag for flag in seen for _ in range(times)]
    assert 0 < Counter(plain)[True] < len(plain)
    seen.clear()
    train(world.settings({**steps, **changes}), tmp_path / "changed", device="cpu")
    assert seen == plain


def test_training_on_text_leaves_the_projector_and_is_remembered(
    world: World, tmp_path: Path
) -> None:
    settings = world.settings({"training.curriculum": "text", "training.max_steps": 2})
    result = train(settings, tmp_path / "run", device="cpu")
    fresh = world.built({"training.curriculum": "text"})[0]
    loaded = load_model(tmp_path / "run", device="cpu")[0]
    for name, tensor in fresh.projector.state_dict().items():
        assert torch.equal(loaded.projector.state_dict()[name], tensor)
    assert not loaded.hybrid
    assert loaded.trainable_parameters() == result.record["trainable_parameters"]


# Killed and resumed


LONG = {
    "training.max_steps": 22,  # into the second pass over the rows
    "training.checkpoints": 11,
    "training.evaluations": 2,
    "training.micro_batch_size": 4,
    "adapter.dropout": 0.1,
    "seed": 3,
}


@pytest.fixture(scope="module")
def unbroken(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A run from end to end."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("unbroken") / "run"
    return train(world.settings(LONG), out, device="cpu")


@pytest.fixture(scope="module")
def killed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed with SIGKILL in the middle of its tenth checkpoint, at step 20."""
    out = tmp_path_factory.mktemp("killed") / "run"
    run = start(train_and_die_while_saving, world.settings(LONG), out, 10)
    run.join(120)
    assert run.exitcode == -signal.SIGKILL
    return out


def names(out: Path) -> set[str]:
    return {path.name for path in (out / "checkpoints").glob("[!.]*")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "truncated",
    [None, "trainer_state.json", "optimizer.pt", "rng_state.pth", "recommender.safetensors"],
)
def test_a_killed_run_ends_as_an_unbroken_one_to_the_bit(
    world: World, tmp_path: Path, killed: Path, unbroken: TrainingResult, truncated: str | None
) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "run"))
    assert names(out) == {"checkpoint-16", "checkpoint-18"}
    assert list((out / "checkpoints").glob(".checkpoint-20.*.partial"))  # half of the tenth
    assert not (out / "model").exists()
    if truncated:
        file = out / "checkpoints" / "checkpoint-18" / truncated
        file.write_bytes(file.read_bytes()[:-100])
    result = train(world.settings(LONG), out, resume=True, device="cpu")
    assert result.record["resumed_from"] == ("checkpoint-16" if truncated else "checkpoint-18")
    assert_same_bits(weights(result.path), weights(unbroken.path))
    for key in ("loss", "eval_loss"):
        assert loss_curve(result.record, key) == loss_curve(unbroken.record, key)
    assert names(out) == names(unbroken.path.parent)


@pytest.mark.slow
def test_the_curriculum_goes_on_where_it_was(
    world: World, tmp_path: Path, killed: Path, seen: list[bool]
) -> None:
    settings = world.settings(LONG)
    out = Path(shutil.copytree(killed, tmp_path / "run"))
    train(settings, out, resume=True, device="cpu")
    trainer = SimpleNamespace(
        training_settings=settings.training, args=SimpleNamespace(seed=settings.seed)
    )
    expected = []
    for step in range(18, 22):
        trainer.state = SimpleNamespace(global_step=step, max_steps=22)
        expected += 2 * [RecommenderTrainer.text_only(trainer)]
    assert seen[:4] == expected[:4]  # step 19 ends the first pass with 7 rows: still two batches
    assert seen == expected


def test_a_checkpoint_whose_state_is_not_whole_is_passed_over(tmp_path: Path) -> None:
    for step, state in ((4, "{}"), (30, '{"global_step": 3'), (9, "{}")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-31").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    world: World, tmp_path: Path
) -> None:
    settings = world.settings({"training.max_steps": 2})
    first = train(settings, tmp_path / "run", device="cpu")
    shutil.rmtree(first.path)
    before = load_after(first)
    again = train(settings, tmp_path / "run", resume=True, device="cpu")
    assert again.record["resumed_from"] is None
    assert_same_bits(before, dict(again.model.state_dict()))


def load_after(result: TrainingResult) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in result.model.state_dict().items()}


def test_a_finished_run_is_neither_trained_again_nor_touched(
    world: World, unbroken: TrainingResult, seen: list[bool]
) -> None:
    out = unbroken.path.parent
    before = content(out)
    again = train(world.settings(LONG), out, resume=True, device="cpu")
    assert again.was_finished
    assert not unbroken.was_finished
    assert not seen
    assert content(out) == before
    assert again.record == json.loads(json.dumps(unbroken.record))
    assert_same_bits(dict(again.model.state_dict()), dict(unbroken.model.state_dict()))


def test_settings_recorded_before_a_key_existed_are_the_same_where_it_is_not_set(
    world: World, tmp_path: Path, unbroken: TrainingResult
) -> None:
    out = Path(shutil.copytree(unbroken.path.parent, tmp_path / "run"))
    text = (out / "settings.yaml").read_text(encoding="utf-8")
    assert "  bf16: null\n" in text
    (out / "settings.yaml").write_text(text.replace("  bf16: null\n", ""), encoding="utf-8")
    assert train(world.settings(LONG), out, resume=True, device="cpu").was_finished


# Refused


def test_a_run_is_not_overwritten(world: World, unbroken: TrainingResult) -> None:
    with pytest.raises(InputError, match="holds a training run already; give --resume"):
        train(world.settings(LONG), unbroken.path.parent, device="cpu")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"training.learning_rate": 5e-3}, "training.learning_rate"),
        ({"adapter.rank": 4}, "adapter.rank"),
        ({"seed": 4}, "seed"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    world: World, unbroken: TrainingResult, changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(InputError, match=rf"out: {key} differs"):
        train(world.settings({**LONG, **changes}), unbroken.path.parent, resume=True, device="cpu")


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_is_something_else_is_refused(
    world: World, tmp_path: Path, resume: bool
) -> None:
    (tmp_path / "letters.txt").write_text("dear", encoding="utf-8")
    for out in (tmp_path, tmp_path / "letters.txt"):
        with pytest.raises(InputError, match="is not a training run"):
            train(world.settings(), out, resume=resume, device="cpu")
    assert content(tmp_path) == {"letters.txt": b"dear"}


@pytest.mark.parametrize("damage", ["", "adapter: [", "just words"])
def test_damaged_settings_are_refused_in_one_sentence(
    world: World, tmp_path: Path, damage: str
) -> None:
    (tmp_path / "settings.yaml").write_text(damage, encoding="utf-8")
    with pytest.raises(InputError, match=r"out: .* (is not sound YAML|differs)") as caught:
        train(world.settings(), tmp_path, resume=True, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["data", "llm", "encoder"])
def test_a_mistaken_input_leaves_the_out_folder_free(
    world: World, tmp_path: Path, key: str
) -> None:
    with pytest.raises(InputError, match="nowhere"):
        train(world.settings({key: str(tmp_path / "nowhere")}), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_an_encoder_of_other_data_is_refused(
    world: World, tmp_path: Path, other_encoder: Path
) -> None:
    with pytest.raises(InputError, match="items"):
        train(world.settings({"encoder": str(other_encoder)}), tmp_path / "run", device="cpu")


def test_an_encoder_of_the_same_catalogue_and_other_users_is_refused(
    world: World, tmp_path: Path
) -> None:
    data = build_synthetic(tmp_path / "data", num_users=60, num_items=28, lengths=(5, 7), seed=1)
    assert len(data.catalog) == len(world.folder.catalog)
    with pytest.raises(InputError, match=r"encoder: .* was trained on other data"):
        train(world.settings({"data": str(data.path)}), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("modules", [["nope"], ["embed_tokens"], "q_("])
def test_target_modules_that_the_language_model_lacks_are_refused(
    world: World, tmp_path: Path, modules: list[str] | str
) -> None:
    settings = world.settings({"adapter.target_modules": modules})
    with pytest.raises(InputError, match=r"adapter\.target_modules is") as caught:
        train(settings, tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def other_encoder(world: World, tmp_path: Path) -> Path:
    """The encoder of a catalogue of 27 items."""
    path = Path(shutil.copytree(world.encoder, tmp_path / "encoder"))
    config = (path / "config.yaml").read_text(encoding="utf-8")
    (path / "config.yaml").write_text(config.replace("num_items: 28", "num_items: 27"))
    return path


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(world: World, tmp_path: Path, device: str) -> None:
    with pytest.raises(InputError, match=rf"device: '{device}' is"):
        train(world.settings(), tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_the_trainer_would_not_take_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(InputError, match='CUDA_VISIBLE_DEVICES="3"'):
        train(world.settings(), tmp_path / "run", device="cuda:3")


def test_a_loss_that_is_no_number_ends_the_training(world: World, tmp_path: Path) -> None:
    changes = {"training.learning_rate": 1e30, "training.max_grad_norm": 1e30}
    with pytest.raises(InputError, match="the loss is nan at step 3; lower"):
        train(world.settings(changes), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "model").exists()


# What else a run does


def test_the_curves_are_there_for_tensorboard(whole_batches: TrainingResult) -> None:
    events = EventAccumulator(str(whole_batches.path.parent / "tensorboard")).Reload()
    for tag, key in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        told = [(event.step, event.value) for event in events.Scalars(tag)]
        assert told == [(s, pytest.approx(x)) for s, x in loss_curve(whole_batches.record, key)]


def test_nothing_is_written_to_standard_output(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"training.max_steps": 2, "training.evaluations": 1}
    train(world.settings(changes), tmp_path / "run", device="cpu")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_weights_are_kept_where_that_is_asked_for(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    def lowest_at_four(self: RecommenderTrainer, *_: Any, **__: Any) -> Any:
        return torch.tensor(1.0 + abs(self.state.global_step - 4)), None, None

    monkeypatch.setattr(RecommenderTrainer, "prediction_step", lowest_at_four)
    changes = {
        "training.max_steps": 10,
        "training.evaluations": 5,
        "training.checkpoints": 5,
        "training.keep": keep,
    }
    result = train(world.settings(changes), tmp_path / "run", device="cpu")
    step = 4 if keep == "best" else 10
    kept = weights(tmp_path / "run" / "checkpoints" / f"checkpoint-{step}")
    assert_same_bits(weights(result.path), kept)
    assert_same_bits(weights(result.path), {k: result.model.state_dict()[named(k)] for k in kept})
    metrics = json.loads((result.path / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["step"], metrics["loss"]) == (step, 1.0 + abs(step - 4))


def named(key: str) -> str:
    """A tensor's name in the model from that in its file."""
    return f"llm.{key}.default" if ".lora_" in key else key


def test_gradient_checkpointing_trains_the_same_weights(
    world: World, tmp_path: Path, whole_batches: TrainingResult
) -> None:
    settings = world.settings({**SMALL_STEPS, "training.gradient_checkpointing": True})
    result = train(settings, tmp_path / "run", device="cpu")
    assert loss_curve(result.record) == loss_curve(whole_batches.record)
    torch.testing.assert_close(weights(result.path), weights(whole_batches.path))


def test_a_bfloat16_model_trains_its_float32_experts_on_a_cpu(
    world: World, tmp_path: Path, whole_batches: TrainingResult
) -> None:
    settings = world.settings({**SMALL_STEPS, "training.bf16": True})
    result = train(settings, tmp_path / "run", device="cpu")
    dtypes = {p.dtype for p in result.model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert result.model.llm.get_input_embeddings().weight.dtype == torch.bfloat16
    losses = [loss for _, loss in loss_curve(result.record)]
    expected = [loss for _, loss in loss_curve(whole_batches.record)]
    assert losses == pytest.approx(expected, rel=0.02)
    assert losses != expected


def test_a_checkpoints_weights_go_into_a_model_of_the_same_settings(
    world: World, unbroken: TrainingResult
) -> None:
    model, _ = world.built(LONG)
    load_weights(unbroken.path.parent / "checkpoints" / "checkpoint-22", model)
    assert_same_bits(dict(model.state_dict()), dict(unbroken.model.state_dict()))


# Baselines and other gates


def test_an_unadapted_model_is_evaluated_without_a_step_of_training(
    world: World, tmp_path: Path
) -> None:
    result = train(world.settings({"adapter.method": "none"}), tmp_path / "run", device="cpu")
    assert (result.record["steps"], result.record["trainable_parameters"]) == (0, 0)
    assert result.record["log"] == []
    model, config, catalog = load_model(tmp_path / "run", device="cpu")
    assert (config.adapter.method, config.placeholders) == ("none", True)
    metrics = evaluate(model, world.folder, "val", catalog=catalog, out=tmp_path / "out")
    assert metrics["n"] == len(world.folder.rows("val", 3))
    again = train(
        world.settings({"adapter.method": "none"}), tmp_path / "run", resume=True, device="cpu"
    )
    assert again.was_finished


@pytest.mark.parametrize("curriculum", ["text", "text-to-hybrid"])
def test_text_only_lora_reads_titles_alone_and_hybrid_lora_does_not(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curriculum: str
) -> None:
    shown: list[bool] = []
    embed = ILoRARecommender.embed

    def spy(self: ILoRARecommender, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shown.append(bool((input_ids == self.placeholder_id).any()))
        return embed(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(ILoRARecommender, "embed", spy)
    changes = {"adapter.method": "lora", "training.curriculum": curriculum}
    result = train(world.settings(changes), tmp_path / "run", device="cpu")
    evaluate(load_model(tmp_path / "run", device="cpu")[0], world.folder, "val", max_rows=2)
    assert set(shown) == {curriculum != "text"}
    assert result.model.placeholders is (curriculum != "text")


@pytest.mark.parametrize("encoder", ["gru4rec", "caser"])
def test_another_encoder_feeds_gate_and_projector(
    world: World, tmp_path: Path, encoder: str
) -> None:
    short = EncoderTraining(max_epochs=1)
    train_encoder(
        world.folder, tmp_path / encoder, name=encoder, hidden_size=12, training=short, device="cpu"
    )
    settings = world.settings({"encoder": str(tmp_path / encoder), "training.max_steps": 2})
    result = train(settings, tmp_path / "run", device="cpu")
    assert result.model.projector[0].in_features == 12
    loaded = load_model(tmp_path / "run", device="cpu")[0]
    histories = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded.gates(histories), result.model.gates(histories))


@pytest.mark.parametrize("gate", ["per-layer", "residual"])
def test_a_gate_with_more_than_a_matrix_resumes_to_the_bit(
    world: World, tmp_path: Path, gate: str
) -> None:
    changes = {"adapter.gate": gate, "training.checkpoints": 4}
    whole = train(world.settings(changes), tmp_path / "whole", device="cpu").model.state_dict()
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "model")
    for checkpoint in (tmp_path / "broken" / "checkpoints").glob("checkpoint-4"):
        shutil.rmtree(checkpoint)
    file = tmp_path / "broken" / "checkpoints" / "checkpoint-3" / "trainer_state.json"
    state = json.loads(file.read_text())
    assert 0 < state["stateful_callbacks"]["TrainingClock"]["seconds"] < 1000
    state["stateful_callbacks"]["TrainingClock"]["seconds"] = 1000
    file.write_text(json.dumps(state))
    result = train(world.settings(changes), tmp_path / "broken", resume=True, device="cpu")
    assert result.record["resumed_from"] == "checkpoint-3"
    assert result.record["seconds"] > 1000  # of the whole run
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, whole[name]), name
