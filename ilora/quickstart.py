"""The whole job on built-in data, on a CPU, in minutes: what a newcomer runs first.

A folder of made-up users is written, a language model of a million parameters is built and taught
to read, a sequence encoder learns who did what; then plain LoRA and instance-wise LoRA get the
same budget, and one table and one report say what each reached.

The language model is pre-trained on another made-up world: the same words, other rules. So it knows
how to read a prompt and copy a title, and nothing of what these users do.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ilora.base_llm import build_base_llm
from ilora.config import RunSettings, read_settings
from ilora.data.folder import DataFolder
from ilora.data.synthetic import build_synthetic
from ilora.encoders import EncoderTraining, load_encoder, train_encoder
from ilora.errors import InputError
from ilora.evaluation.evaluate import evaluate
from ilora.evaluation.metrics import ranking_metrics, ranks_of_target
from ilora.evaluation.popularity import popularity_metrics
from ilora.evaluation.records import METRICS_FILE, evaluation_folder
from ilora.gate_map import gate_map
from ilora.model import ILoRARecommender
from ilora.report import ReportRow, print_table, write_report
from ilora.training import loss_curve, train

# What two cores do in under five minutes.
PRETRAIN_STEPS = 300
PRETRAIN_BATCH = 32
ENCODER_EPOCHS = 20
SETTINGS: dict[str, Any] = {
    "training.max_steps": 240,
    "training.batch_size": 32,
    "training.learning_rate": 5e-3,
    "adapter.dropout": 0.0,  # its mask costs time, and so few steps do not overfit
    "training.evaluations": 5,
    "training.checkpoints": 3,
}
METHODS = {"lora": "LoRA", "ilora": "iLoRA"}
MIN_HISTORY = 3

_console = Console(stderr=True)


def run_quickstart(out: Path, *, seed: int = 0) -> list[ReportRow]:
    """Do everything and write ``report.md`` with its plots to ``out``.

    Every stage that ``out`` already holds is kept, so a stopped run goes on where it was.

    Args:
        out: a new folder, or that of an earlier quickstart with the same seed.
        seed: of the data, the models and the training.

    Raises:
        InputError: ``out`` holds something else.
    """
    started = time.perf_counter()
    folder = _data(out / "data", seed)
    llm = _base_llm(out, seed)
    rows = [
        _random(folder, seed),
        _popularity(folder, seed),
        _encoder(folder, out / "encoder", seed),
    ]
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    gates = None
    for method, name in METHODS.items():
        settings = read_settings(
            None,
            {
                "data": str(folder.path),
                "llm": str(llm),
                "encoder": str(out / "encoder"),
                "seed": seed,
                "adapter.method": method,
                **SETTINGS,
            },
        )
        model, record = _train(settings, out / method, name)
        metrics = evaluate(
            model, folder, "test", out=evaluation_folder(out / method, "test-free"), seed=seed
        )
        rows.append(_answers_row(name, metrics, record))
        curves[name] = {"train": loss_curve(record), "validation": loss_curve(record, "eval_loss")}
        if method == "ilora":
            gates = gate_map(model.encoder, model.gate, folder, min_history=MIN_HISTORY)
    print_table(rows)
    notes = [
        f"Made-up users of {len(set(folder.groups() or []))} behaviour groups; 20 candidates, so "
        "chance is 0.05.",
        "The language model has about a million parameters and was made from scratch: the figures "
        "compare the methods with one another, not with published ones.",
        f"This run took {time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads; "
        "stages that were there already were kept.",
    ]
    write_report(
        out,
        title="Quickstart",
        rows=rows,
        curves=curves,
        gates=gates,
        notes=notes,
        chance=1 / folder.num_candidates,
    )
    return rows


def _stage(text: str) -> None:
    _console.print(f"[bold]▸ {text}[/bold]")


def _data(path: Path, seed: int) -> DataFolder:
    _stage("Users and items: made up, in groups whose habits conflict")
    if not path.exists():
        return build_synthetic(path, seed=seed)
    folder = DataFolder.open(path)
    if folder.info.get("synthetic", {}).get("seed") != seed:
        raise InputError(f"out: {path} is not the data of seed {seed}; choose another folder")
    return folder


def _base_llm(out: Path, seed: int) -> Path:
    path = out / "base-llm"
    if (path / "base_llm.json").is_file():
        return path
    _stage("Language model: a million parameters, taught to read in another made-up world")
    foreign = _data_of_another_world(out / "foreign-data", seed)
    build_base_llm(
        [foreign],
        path,
        preset="tiny",
        seed=seed,
        pretrain_steps=PRETRAIN_STEPS,
        batch_size=PRETRAIN_BATCH,
        disguised=0.0,  # both worlds have the same words, each of them one token
        device="cpu",
    )
    return path


def _data_of_another_world(path: Path, seed: int) -> DataFolder:
    return DataFolder.open(path) if path.exists() else build_synthetic(path, seed=seed + 1)


def _random(folder: DataFolder, seed: int) -> ReportRow:
    """Guessing: every candidate equally likely, so ranks are drawn evenly."""
    rows = folder.ranked_rows("test", MIN_HISTORY)
    scores = np.random.default_rng(seed).random((len(rows), folder.num_candidates))
    places = [candidates.index(row.target) for row, candidates in rows]
    return ReportRow.of_ranking(
        "random", ranking_metrics(ranks_of_target(scores, places), seed=seed)
    )


def _popularity(folder: DataFolder, seed: int) -> ReportRow:
    metrics = popularity_metrics(folder, "test", min_history=MIN_HISTORY, seed=seed)
    return ReportRow.of_ranking("popularity", metrics)


def _encoder(folder: DataFolder, path: Path, seed: int) -> ReportRow:
    if not path.exists():
        _stage("SASRec: a small encoder of histories, for the gate and the prompts")
        short = EncoderTraining(max_epochs=ENCODER_EPOCHS)
        train_encoder(folder, path, seed=seed, training=short, device="cpu")
    record = json.loads((path / METRICS_FILE).read_text(encoding="utf-8"))
    encoder = load_encoder(path, num_items=len(folder.catalog))
    parameters = sum(p.numel() for p in encoder.parameters())
    return ReportRow.of_ranking(
        "SASRec", record["test"], seconds=record["seconds"], trainable_parameters=parameters
    )


def _train(settings: RunSettings, path: Path, name: str) -> tuple[ILoRARecommender, dict[str, Any]]:
    _stage(f"{name}: {settings.training.max_steps} steps of {settings.training.batch_size} prompts")
    result = train(settings, path, resume=path.exists(), device="cpu")
    return result.model, result.record


def _answers_row(name: str, metrics: dict[str, Any], record: dict[str, Any]) -> ReportRow:
    return ReportRow(
        name,
        metrics["hit_ratio_at_1"],
        tuple(metrics["ci95"]["hit_ratio_at_1"]),
        hit_ratio_at_1_valid=metrics["hit_ratio_at_1_valid"],
        valid_ratio=metrics["valid_ratio"],
        n=metrics["n"],
        seconds=record["seconds"],
        trainable_parameters=record["trainable_parameters"],
    )
