"""Running a study: which task follows from which, and what each of them does.

Everything is found again on disk: a study that was stopped goes on where it was.

base/                           the language model
encoders/DATA/                  the encoders
DATA/trials/NAME/               a training run each, with its evaluations
logs/                           what the workers printed
study.json                      all figures, see :mod:`ilora.studies.results`
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ilora.errors import InputError
from ilora.studies.plan import (
    METHODS,
    PARTS,
    Row,
    Study,
    all_rows,
    best_rate,
    other_variants,
    tuning,
    unadapted,
    variant,
)
from ilora.studies.unchanged import require_unchanged
from ilora.studies.workers import FAILED, Task, work
from ilora.sweep import MEASURE, Trial

Results = Mapping[str, dict[str, Any]]
BASE_WEIGHT = 4  # pre-training fills a GPU: what else there is goes to another
TEST = ("test-rank", "test-free")


def run_study(
    study: Study, *, jobs: int = 4, threads: int = 2, only: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Do what is not done yet, ``jobs`` tasks to a GPU at once; return what each task gave.

    Args:
        only: names of single runs, as in ``movielens/ilora-0.001-seed0``: these alone, with the
            language model and the encoder that they need.

    Raises:
        InputError: no such run, or a folder whose runs had other settings.
    """
    require_unchanged(study)
    rows = all_rows(study)
    for name in only:
        if name not in rows:
            raise InputError(f"only: {name!r} is no run of this study; one is {next(iter(rows))}")
    chosen = [rows[name] for name in only]
    return work(
        lambda results: ready_rows(study, chosen, results) if only else ready(study, results),
        gpus=visible_gpus(),
        jobs=jobs,
        threads=threads,
        logs=study.out / "logs",
    )


def ready(study: Study, results: Results) -> list[Task]:
    """The tasks that can start, given what is there; those that have ended are among them."""
    tasks = [_base_task(study), *(_encoder_task(study, data) for data in study.settings.data)]
    for data in study.settings.data:
        if not _succeeded(results, "base", f"encoder {data}"):
            continue
        tasks.append(_row_task(study, unadapted(study, data), TEST, 30))
        for method in METHODS:
            tasks += [
                _row_task(study, row, ("val-rank",), 10) for row in tuning(study, data, method)
            ]
            rate = chosen_rate(study, data, method, results)
            if rate is None:
                continue
            own = variant(method, study.run_settings(data))
            for seed in study.settings.seeds:
                row = Row(data, Trial(own, rate, seed))
                tasks.append(_row_task(study, row, TEST, 20))
            for number, part in enumerate(PARTS if method == "ilora" else ()):
                tasks += [
                    _row_task(
                        study, Row(data, Trial(other, rate, seed)), TEST, 40 + 10 * number + seed
                    )
                    for other in other_variants(study, data, part)
                    for seed in study.settings.seeds_of(part)
                ]
    return tasks


def ready_rows(study: Study, rows: Sequence[Row], results: Results) -> list[Task]:
    """As :func:`ready`, for single runs and what they need."""
    tasks = [_base_task(study)]
    tasks += [_encoder_task(study, data) for data in dict.fromkeys(row.data for row in rows)]
    for row in rows:
        if _succeeded(results, "base", f"encoder {row.data}"):
            tasks.append(_row_task(study, row, ("val-rank", *TEST), 10))
    return tasks


def chosen_rate(study: Study, data: str, method: str, results: Results) -> float | None:
    """The best rate of those whose runs did not fail.

    None while a run of the tuning is under way, or where all of them failed.
    """
    figures = {}
    for row in tuning(study, data, method):
        result = results.get(_name(row, ("val-rank",)))
        if result is None:
            return None
        if FAILED not in result:
            figures[row.trial.learning_rate] = result["val-rank"][MEASURE]
    return best_rate(figures)


def visible_gpus() -> list[str | None]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; ``[None]`` without."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [*named.split(",")] if named else [None]
    import torch

    return [str(n) for n in range(torch.cuda.device_count())] or [None]


def _name(row: Row, evaluations: Sequence[str]) -> str:
    return f"{row.name} {'+'.join(evaluations)}"


def _base_task(study: Study) -> Task:
    return Task(0, "base", build_base, (study,), weight=BASE_WEIGHT)


def _encoder_task(study: Study, data: str) -> Task:
    return Task(1, f"encoder {data}", build_encoder, (study, data))


def _row_task(study: Study, row: Row, evaluations: tuple[str, ...], priority: int) -> Task:
    """Longer prompts first: the order of the data in the settings is that within a part."""
    place = study.settings.data.index(row.data)
    name = _name(row, evaluations)
    return Task(100 * priority + place, name, run_row, (study, row, evaluations))


def _succeeded(results: Results, *names: str) -> bool:
    return all(name in results and FAILED not in results[name] for name in names)


def build_base(study: Study) -> dict[str, Any]:
    """Make the language model, unless it is there; returns its record."""
    from ilora.base_llm import RECORD, build_base_llm
    from ilora.data.folder import DataFolder
    from ilora.files import read_json

    plan = study.settings.base
    if not (study.base / RECORD).is_file():
        build_base_llm(
            [DataFolder.open(study.data_root / name) for name in plan.data],
            study.base,
            preset=plan.preset,
            pretrain_steps=plan.pretrain_steps,
            disguised=plan.disguised,
        )
    return read_json(study.base / RECORD)


def build_encoder(study: Study, data: str) -> dict[str, Any]:
    """Train a data set's SASRec, unless it is there; returns its figures."""
    from ilora.data.folder import DataFolder
    from ilora.encoders import EncoderTraining, train_encoder
    from ilora.evaluation.records import METRICS_FILE
    from ilora.files import read_json

    place = study.encoder(data)
    if not (place / METRICS_FILE).is_file():
        training = EncoderTraining(min_history=study.settings.training.min_history)
        train_encoder(DataFolder.open(study.data_root / data), place, training=training)
    return read_json(place / METRICS_FILE)


def run_row(study: Study, row: Row, evaluations: Sequence[str]) -> dict[str, Any]:
    """Train a run and measure it, as far as that is not done; ``{"test-rank": figures, …}``."""
    import gc

    import torch

    from ilora.data.folder import DataFolder
    from ilora.run_folder import SETTINGS_FILE, is_finished
    from ilora.sweep import measured, short_metrics
    from ilora.training import train

    settings, run = study.run_settings(row.data), study.run(row)
    model = None
    if not ((run / SETTINGS_FILE).is_file() and is_finished(run)):
        model = train(row.trial.settings(settings), run, resume=run.exists()).model
    folder = DataFolder.open(settings.data)
    told = {}
    for label in evaluations:
        split, _, decode = label.partition("-")
        metrics = measured(
            run,
            split,  # type: ignore[arg-type]
            settings,
            folder,
            decode,  # type: ignore[arg-type]
            None,
            model,
            study.settings.evaluation_batch_size,
        )
        told[label] = short_metrics(metrics)
    del model
    gc.collect()  # the next run of this worker, and its neighbours on the GPU, need the memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return told
