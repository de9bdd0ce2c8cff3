"""Training a recommender on transformers' Trainer: one command's worth, resumable.

A run folder holds

    settings.yaml     what was asked for; a resumed run must ask for the same
    checkpoints/      the Trainer's, to resume from
    tensorboard/      curves while it runs
    training.json     the log of losses, seconds, parameters
    model/            the result, see :mod:`ilora.model_folder`
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback

from ilora.config import RunSettings, TrainingSettings, write_settings
from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.folder import DataFolder
from ilora.data.prompts import PromptBuilder
from ilora.devices import choose_device
from ilora.encoders import load_encoder, read_encoder_config
from ilora.errors import InputError
from ilora.evaluation.evaluate import evaluate
from ilora.files import write_json
from ilora.model import ILoRARecommender
from ilora.model_folder import (
    DataRecord,
    ModelConfig,
    find_model_folder,
    fingerprint,
    load_llm,
    load_model,
    load_weights,
    read_model_config,
    save_model,
)
from ilora.tokens import load_tokenizer
from ilora.training_progress import TrainingBar

SETTINGS_FILE = "settings.yaml"
LOG_FILE = "training.json"
VALIDATION_ROWS = 256  # enough for ± 6 points; all of a split is `ilora evaluate`'s to measure
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors")


@dataclass(frozen=True)
class TrainingResult:
    """A trained recommender (in eval mode) and the record that ``training.json`` holds.

    ``was_finished``: the run to resume had ended already, and nothing was trained.
    """

    model: ILoRARecommender
    path: Path
    record: dict[str, Any]
    was_finished: bool = False


class RecommenderTrainer(Trainer):
    """The Trainer, with LLaRA's curriculum, a slower gate, and our own model folders.

    The loss is divided by the answer tokens of the whole optimiser step: the model takes
    ``num_items_in_batch`` itself, so micro-batches and processes weigh every token alike.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: ILoRARecommender,
        training: TrainingSettings,
        save: Any,
        *,
        args: TrainingArguments,
        **arguments: Any,
    ) -> None:
        # On a machine of several GPUs a lone process would wrap the model in DataParallel, whose
        # replicas know nothing of one another's gates; several GPUs take a process each.
        args._n_gpu = min(1, args.n_gpu)
        super().__init__(model=model, args=args, **arguments)
        self.recommender = model
        self.training_settings = training
        self._save_to = save

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's loss; in training the curriculum decides whether it reads text alone."""
        if model.training:
            inputs = {**inputs, "text_only": self.text_only()}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The validation loss of one batch: the mean over its rows of the mean over their tokens.

        The Trainer averages batches by their rows, so the loss of a split does not depend on how it
        was cut into batches.
        """
        total, count = self.recommender.answer_log_probs(self._prepare_inputs(inputs))
        return -(total / count).mean(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As usual, but a training that has gone astray ends here and not after days."""
        loss = logs.get("loss", 0.0)
        if not math.isfinite(loss):
            raise InputError(
                f"training: the loss is {loss} at step {self.state.global_step}; lower "
                "training.learning_rate"
            )
        super().log(logs, start_time)

    def text_only(self) -> bool:
        """Whether this step's batch is text-only: with probability 1 - step / steps.

        A function of the seed and the global step alone, so that a resumed run, every process and
        every micro-batch of one step agree (Liao et al., LLaRA, 2024, section 4.3).
        """
        if self.training_settings.curriculum != "text-to-hybrid":
            return self.training_settings.curriculum == "text"
        step, steps = self.state.global_step, self.state.max_steps
        draw = random.Random(f"curriculum {self.args.seed} {step}").random()
        return draw < 1 - step / steps

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Adam, with a learning rate of its own for the gate."""
        if self.optimizer is None:
            settings = self.training_settings
            gate = list(self.recommender.gate.parameters())
            slow = {id(parameter) for parameter in gate}
            parameters = (p for p in self.recommender.parameters() if p.requires_grad)
            gate_rate = settings.learning_rate * settings.gate_learning_rate_ratio
            groups: list[dict[str, Any]] = [
                {"params": [p for p in parameters if id(p) not in slow]},
                {"params": gate, "lr": gate_rate},
            ]
            self.optimizer = torch.optim.AdamW(
                [group for group in groups if group["params"]],
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
            )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self._save_to(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(Path(resume_from_checkpoint), self.recommender)

    def _load_best_model(self) -> None:
        load_weights(Path(self.state.best_model_checkpoint), self.recommender)


def train(
    settings: RunSettings,
    out: Path,
    *,
    resume: bool = False,
    device: str | torch.device | None = None,
) -> TrainingResult:
    """Train a recommender and save it to ``out/model``.

    Args:
        settings: what to train, on what, how.
        out: the run folder.
        resume: go on from the last complete checkpoint in ``out`` (or start, if there is none).
        device: None takes CUDA if there is one.

    Raises:
        InputError: an input is unsound, ``out`` is taken, or the run to resume had other settings.

    Started by ``torchrun`` on several GPUs, every process trains its share of each batch and the first
    one writes. A run that has ended is not trained again: resuming it returns what it made.
    """
    place = _place(device)
    first = int(os.environ.get("RANK", 0)) == 0
    if first:
        _require_free(out, settings, resume)
    if resume and is_finished(out):
        model, _, _ = load_model(out, llm=settings.llm, device=place)
        record = json.loads((out / LOG_FILE).read_text(encoding="utf-8"))
        return TrainingResult(model, out / "model", record, was_finished=True)
    folder = DataFolder.open(settings.data)
    set_seed(settings.seed)
    model, config = build_recommender(settings, folder, place)
    trainer = _trainer(model, config, settings, folder, out, place)
    if first:  # not before all inputs were found sound: a mistake must not leave ``out`` taken
        write_settings(settings, out / SETTINGS_FILE)
    checkpoint = last_complete_checkpoint(out / "checkpoints") if resume else None
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    record = {
        "method": settings.adapter.method,
        "seed": settings.seed,
        "steps": trainer.state.global_step,
        "seconds": time.perf_counter() - started,
        "resumed_from": None if checkpoint is None else checkpoint.name,
        "trainable_parameters": model.trainable_parameters(),
        "train_rows": len(trainer.train_dataset),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "log": trainer.state.log_history,
    }
    if first:
        write_json(out / LOG_FILE, record)
        save_model(
            out / "model", model, config, folder.catalog, _validation(trainer, settings, folder)
        )
    trainer.accelerator.wait_for_everyone()
    return TrainingResult(model.eval(), out / "model", record)


def is_finished(out: Path) -> bool:
    """Whether the run in ``out`` has ended: its model, which is written last, is there."""
    if not (out / "model").is_dir() or not (out / LOG_FILE).is_file():
        return False
    read_model_config(find_model_folder(out))
    return True


def build_recommender(
    settings: RunSettings, folder: DataFolder, device: torch.device
) -> tuple[ILoRARecommender, ModelConfig]:
    """Load the parts, put them together, and describe them as a model folder will."""
    bf16 = device.type == "cuda" if settings.training.bf16 is None else settings.training.bf16
    encoder = load_encoder(settings.encoder, num_items=len(folder.catalog))
    encoder_config = read_encoder_config(settings.encoder)
    if encoder_config.data_sha256 != folder.sha256:
        raise InputError(
            f"encoder: {settings.encoder} was trained on other data ({encoder_config.data_name}) than "
            f"{folder.path}, maybe on its test users; train one on it with `ilora encoder train`"
        )
    llm = load_llm(settings.llm, torch.bfloat16 if bf16 else torch.float32, device)
    identity = fingerprint(llm)
    hybrid = settings.training.curriculum != "text"
    model = ILoRARecommender(
        llm, load_tokenizer(settings.llm), encoder, settings.adapter, hybrid=hybrid
    )
    if settings.training.gradient_checkpointing:
        model.llm.gradient_checkpointing_enable({"use_reentrant": False})
    config = ModelConfig(
        llm=settings.llm,
        llm_fingerprint=identity,
        dtype="bfloat16" if bf16 else "float32",
        hybrid=hybrid,
        adapter=settings.adapter,
        encoder=encoder_config,
        data=DataRecord.of(folder),
        training={"seed": settings.seed, **settings.training.model_dump()},
        versions={name: version(name) for name in PACKAGES},
    )
    return model, config


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end.

    The Trainer writes ``trainer_state.json`` last: a run killed in the middle of saving leaves a
    checkpoint without a sound one, which is passed over.
    """
    named = [path for path in folder.glob("*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for checkpoint in sorted(named, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
        return checkpoint
    return None


def _place(device: str | torch.device | None) -> torch.device:
    """Where this process trains: the Trainer takes the first visible GPU, or the one of its rank."""
    own = int(os.environ.get("LOCAL_RANK", 0))
    place = choose_device(device)
    if place.type == "cuda" and place.index not in (None, own):
        raise InputError(
            f"device: {place} is not the GPU that training takes, the first visible one; choose "
            f'cuda and set CUDA_VISIBLE_DEVICES="{place.index}"'
        )
    return torch.device("cuda", own) if place.type == "cuda" else place


def _require_free(out: Path, settings: RunSettings, resume: bool) -> None:
    """Refuse an ``out`` that is something else, another run, or this one without ``resume``."""
    file = out / SETTINGS_FILE
    if not file.is_file():
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise InputError(f"out: {out} exists and is not a training run; choose a new folder")
        return
    if not resume:
        raise InputError(
            f"out: {out} holds a training run already; give --resume to go on with it, or choose a "
            "new folder"
        )
    try:
        recorded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"resume: {file} is not sound YAML; restore it") from None
    key = _first_difference(recorded, settings.model_dump(mode="json"))
    if key is not None:
        raise InputError(
            f"resume: {key} differs from the run in {out}; give the settings in {file}, or choose a "
            "new folder"
        )


def _first_difference(recorded: Any, wanted: Any, at: str = "") -> str | None:
    """The dotted key at which two trees part; one that is not there is as good as null."""
    if not isinstance(recorded, dict) or not isinstance(wanted, dict):
        return at or "a setting"
    for key in {**recorded, **wanted}:
        ours, theirs = recorded.get(key), wanted.get(key)
        if ours != theirs:
            inner = _first_difference(ours, theirs, f"{at}.{key}".strip("."))
            if inner is not None:
                return inner
    return None


def _trainer(
    model: ILoRARecommender,
    config: ModelConfig,
    settings: RunSettings,
    folder: DataFolder,
    out: Path,
    device: torch.device,
) -> RecommenderTrainer:
    training = settings.training
    builder = PromptBuilder(model.tokenizer, folder.catalog, folder.domain, folder.window)
    train_rows, val_rows = (
        RecommendationDataset(
            folder, split, builder, seed=settings.seed, min_history=training.min_history
        )
        for split in ("train", "val")
    )

    def save(path: Path) -> None:
        save_model(path, model, config, folder.catalog)

    tensorboard = TensorBoardCallback()
    tensorboard.logging_dir = str(out / "tensorboard")
    trainer = RecommenderTrainer(
        model,
        training,
        save,
        args=_arguments(settings, len(train_rows), out, device),
        train_dataset=train_rows,
        eval_dataset=val_rows,
        data_collator=Collator(
            model.tokenizer, len(folder.catalog), folder.window, "left", multiple=8
        ),
        callbacks=[tensorboard, TrainingBar()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _validation(
    trainer: RecommenderTrainer, settings: RunSettings, folder: DataFolder
) -> dict[str, Any]:
    """What ``metrics.json`` of the model folder says: greedy answers, and the loss, on validation."""
    measured = dict(loss_curve({"log": trainer.state.log_history}, "eval_loss"))
    step = trainer.state.global_step
    if settings.training.keep == "best" and measured:
        step = min(measured, key=lambda at: measured[at])
    answers = evaluate(
        trainer.recommender,
        folder,
        "val",
        min_history=settings.training.min_history,
        max_rows=VALIDATION_ROWS,
        seed=settings.seed,
    )
    return answers | {"loss": measured.get(step), "step": step}


def _arguments(
    settings: RunSettings, num_rows: int, out: Path, device: torch.device
) -> TrainingArguments:
    training = settings.training
    # A pass over the rows ends with a smaller batch, as the Trainer counts them.
    steps = training.max_steps or math.ceil(
        training.epochs * math.ceil(num_rows / training.batch_size)
    )
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if training.batch_size % (training.micro * processes):
        raise InputError(
            f"training: batch_size {training.batch_size} is not a multiple of {processes} processes "
            f"with a micro_batch_size of {training.micro}; change one of the three"
        )
    on_gpu = device.type == "cuda"

    def every(times: int) -> dict[str, Any]:
        """At most so many times, the last one at the end."""
        return {"strategy": "steps" if times else "no", "steps": math.ceil(steps / max(1, times))}

    evaluate, save = every(training.evaluations), every(training.checkpoints)
    best = training.keep == "best"
    if best:  # the Trainer can only go back to a step that it both measured and saved
        save = evaluate = every(max(1, training.evaluations))
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=training.micro,
        per_device_eval_batch_size=training.micro,
        gradient_accumulation_steps=training.batch_size // (training.micro * processes),
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(training.warmup_ratio * steps),
        max_grad_norm=training.max_grad_norm,
        eval_strategy=evaluate["strategy"],
        eval_steps=evaluate["steps"],
        save_strategy=save["strategy"],
        save_steps=save["steps"],
        save_total_limit=2,
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        prediction_loss_only=True,
        logging_steps=max(1, steps // 100),
        logging_nan_inf_filter=False,  # it would write the mean of earlier losses in their place
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_num_workers=training.workers,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=True,  # a text-only step leaves the projector untouched
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not on_gpu,
        report_to=[],
        disable_tqdm=True,
    )


def loss_curve(record: dict[str, Any], key: str = "loss") -> list[tuple[int, float]]:
    """``(step, value)`` of one quantity in a training record: ``loss`` or ``eval_loss``."""
    return [(entry["step"], entry[key]) for entry in record["log"] if key in entry]
