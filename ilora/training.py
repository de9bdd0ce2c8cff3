"""Training a recommender on transformers' Trainer: one command's worth, resumable."""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback

from ilora.config import RunSettings, write_settings
from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.folder import DataFolder
from ilora.devices import choose_device
from ilora.encoders import load_encoder, read_encoder_config
from ilora.errors import InputError
from ilora.evaluation.evaluate import evaluate
from ilora.files import write_json
from ilora.model import ILoRARecommender
from ilora.model_folder import (
    DataRecord,
    ModelConfig,
    fingerprint,
    load_llm,
    load_model,
    save_model,
)
from ilora.run_folder import (
    LOG_FILE,
    SETTINGS_FILE,
    is_finished,
    last_complete_checkpoint,
    loss_curve,
    require_free,
)
from ilora.tokens import knows_placeholder, load_tokenizer
from ilora.trainer import RecommenderTrainer
from ilora.training_progress import TrainingBar, TrainingClock

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
        require_free(out, settings, resume)
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
    clock = TrainingClock(checkpoint)
    trainer.add_callback(clock)
    if model.trainable_parameters():  # method none is saved as it is
        with _lasting_objects_left_alone():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    record = {
        "method": settings.adapter.method,
        "seed": settings.seed,
        "steps": trainer.state.global_step,
        "seconds": clock.seconds(),
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


@contextmanager
def _lasting_objects_left_alone() -> Iterator[None]:
    """Spare the garbage collector what exists now: torch, transformers and the model.

    Every step makes so many small objects that it would look through all of those again and again.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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
    alone, tokenizer = settings.titles_alone, load_tokenizer(settings.llm)
    # The model as it is reads what it was trained on: of our own base models, placeholders too.
    marks = not alone or (settings.adapter.method == "none" and knows_placeholder(tokenizer))
    model = ILoRARecommender(
        llm,
        tokenizer,
        encoder,
        settings.adapter,
        hybrid=not alone,
        placeholders=marks,
    )
    model.read_titles(folder.catalog.titles)
    if settings.training.gradient_checkpointing:
        model.llm.gradient_checkpointing_enable({"use_reentrant": False})
    config = ModelConfig(
        llm=settings.llm,
        llm_fingerprint=identity,
        dtype="bfloat16" if bf16 else "float32",
        hybrid=model.hybrid,
        placeholders=model.placeholders,
        adapter=settings.adapter,
        encoder=encoder_config,
        data=DataRecord.of(folder),
        training={"seed": settings.seed, **settings.training.model_dump()},
        versions={name: version(name) for name in PACKAGES},
    )
    return model, config


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


def _trainer(
    model: ILoRARecommender,
    config: ModelConfig,
    settings: RunSettings,
    folder: DataFolder,
    out: Path,
    device: torch.device,
) -> RecommenderTrainer:
    training = settings.training
    builder = model.prompt_builder(folder.catalog, folder.domain, folder.window)
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
        batch_size=max(32, settings.training.micro),
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
