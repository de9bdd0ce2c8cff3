"""The figures of a study, read from its folder: whatever has been measured so far.

``study.json``:
    settings, base, versions, devices, date (of collecting)
    data.NAME.rows        one a method: figures of each seed, mean over them, interval over users
    data.NAME.read_by_llm whether the language model has read its training rows
    data.NAME.tuning      validation HitRatio@1 of every rate
    data.NAME.curves      training loss of LoRA and iLoRA, by seed
    parts.NAME            rows of the experts and of the gates
    comparisons.FAMILY    paired tests, Holm-corrected within the family

A method's answer to a user counts with its mean over the seeds. The interval is the bootstrap's
over users; ``sd`` is the standard deviation over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ilora.base_llm import RECORD
from ilora.comparison import Answers, Comparison, average, compare, find_evaluation, read_answers
from ilora.data.folder import DataFolder
from ilora.errors import InputError
from ilora.evaluation.paired import holm
from ilora.evaluation.popularity import popularity_metrics
from ilora.evaluation.records import METRICS_FILE, evaluation_folder
from ilora.evaluation.statistics import bootstrap_interval, spread
from ilora.files import read_json, write_json
from ilora.run_folder import LOG_FILE, loss_curve
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
from ilora.studies.run import TEST
from ilora.studies.unchanged import require_unchanged
from ilora.sweep import MEASURE, Trial, Variant
from ilora.training import PACKAGES

STUDY_FILE = "study.json"
FIGURES = (MEASURE, "hit_ratio_at_1_valid", "valid_ratio", "hr@5", "ndcg@5", "ndcg@10", "mrr")


def collect(study: Study) -> dict[str, Any]:
    """Read all that is there, compare, write ``study.json`` and return it."""
    if not (study.base / RECORD).is_file():
        raise InputError(f"out: {study.out} holds no study yet; start it with `ilora study run`")
    require_unchanged(study)
    data = {
        name: _data_set(study, name) for name in study.settings.data if _has_encoder(study, name)
    }
    table: dict[str, Any] = {
        "settings": study.settings.model_dump(mode="json"),
        "base": read_json(study.base / RECORD),
        "versions": {name: version(name) for name in PACKAGES},
        "date": date.today().isoformat(),
        "devices": _devices(study),
        "data": data,
        "parts": {part: _part(study, part, data) for part in PARTS if study.settings.part(part)},
    }
    table["comparisons"] = _comparisons(study, table)
    write_json(study.out / STUDY_FILE, table)
    return table


def _has_encoder(study: Study, data: str) -> bool:
    return (study.encoder(data) / METRICS_FILE).is_file()


def _data_set(study: Study, data: str) -> dict[str, Any]:
    read = {folder["sha256"] for folder in read_json(study.base / RECORD)["folders"]}
    folder = DataFolder.open(study.data_root / data)
    encoder = read_json(study.encoder(data) / METRICS_FILE)
    least = study.settings.training.min_history
    rows = [
        {"name": "random", "rank": {MEASURE: 1 / folder.num_candidates}},
        {
            "name": "popularity",
            "rank": _ranking(popularity_metrics(folder, "test", min_history=least)),
        },
        {"name": "SASRec", "rank": _ranking(encoder["test"]), "seconds": encoder["seconds"]},
    ]
    told: dict[str, Any] = {
        "name": folder.name,
        "sha256": folder.sha256,
        "read_by_llm": folder.sha256 in read,
        "tuning": {},
        "curves": {},
        "chosen": {},
    }
    rows += _summary(study, data, "un-adapted LLM", [unadapted(study, data)])
    for method in METHODS:
        told["tuning"][method] = _tuning(study, data, method)
        rate = _chosen(study, data, method, told["tuning"][method])
        if rate is None:
            continue
        told["chosen"][method] = rate
        runs = [
            Row(data, Trial(variant(method, study.run_settings(data)), rate, seed))
            for seed in study.settings.seeds
        ]
        rows += _summary(study, data, method, runs)
        told["curves"][method] = {
            row.trial.seed: _losses(study.run(row)) for row in runs if _done(study, row)
        }
    return told | {"rows": rows}


def _part(study: Study, part: str, data: dict[str, Any]) -> dict[str, Any]:
    """Rows of LoRA, iLoRA and the variants of a part, at iLoRA's rate but for LoRA."""
    plan = study.settings.part(part)
    assert plan is not None
    rate = data.get(plan.data, {}).get("chosen", {}).get("ilora")
    rows = [row for row in data.get(plan.data, {}).get("rows", []) if row["name"] in METHODS]
    if rate is not None:
        for one in other_variants(study, plan.data, part):
            runs = [Row(plan.data, Trial(one, rate, seed)) for seed in plan.seeds]
            rows += _summary(study, plan.data, one.name, runs, one)
    return {"data": plan.data, "rows": rows}


def _tuning(study: Study, data: str, method: str) -> dict[str, float]:
    """Rate -> validation HitRatio@1, of the runs that have it."""
    found = {}
    for row in tuning(study, data, method):
        file = evaluation_folder(study.run(row), "val-rank") / METRICS_FILE
        if file.is_file():
            found[f"{row.trial.learning_rate:g}"] = read_json(file)[MEASURE]
    return found


def _chosen(study: Study, data: str, method: str, figures: dict[str, float]) -> float | None:
    """The rate that the study chose.

    It chooses when every rate's run has a figure or has failed. Where figures are missing, that it did
    shows in runs that have met the test users.
    """
    own, settings = variant(method, study.run_settings(data)), study.settings
    measured = {
        rate: figures[f"{rate:g}"] for rate in settings.learning_rates if f"{rate:g}" in figures
    }
    if len(measured) == len(settings.learning_rates):
        return best_rate(measured)
    tested = {
        rate: figure
        for rate, figure in measured.items()
        if any(_done(study, Row(data, Trial(own, rate, seed))) for seed in settings.seeds)
    }
    return best_rate(tested)


def _done(study: Study, row: Row, label: str = TEST[0]) -> bool:
    return (evaluation_folder(study.run(row), label) / METRICS_FILE).is_file()


def _summary(
    study: Study, data: str, name: str, rows: Sequence[Row], one: Variant | None = None
) -> list[dict[str, Any]]:
    """One line of the table, of the seeds that have been measured; none without any."""
    done = [row for row in rows if all(_done(study, row, label) for label in TEST)]
    if not done:
        return []
    record = read_json(study.run(done[0]) / LOG_FILE)
    line: dict[str, Any] = {
        "name": name,
        "experts": None if one is None else one.experts,
        "gate": None if one is None else one.gate,
        "learning_rate": done[0].trial.learning_rate,
        "trainable_parameters": record["trainable_parameters"],
        "steps": record["steps"],
        "seconds": [read_json(study.run(row) / LOG_FILE)["seconds"] for row in done],
        "runs": [row.name for row in done],
    }
    for label in TEST:
        answers = _answers(study, done, name, label)
        told = [read_json(evaluation_folder(study.run(row), label) / METRICS_FILE) for row in done]
        by_seed = {
            figure: [one_seed[figure] for one_seed in told]
            for figure in FIGURES
            if figure in told[0]
        }
        values = by_seed[MEASURE]
        line[label.removeprefix("test-")] = {
            "seeds": {str(row.trial.seed): value for row, value in zip(done, values, strict=True)},
            **{figure: _mean(each) for figure, each in by_seed.items()},
            "sd": spread(values).sd,
            "ci95": list(bootstrap_interval(answers.values, seed=0)),
            "n": len(answers.rows),
        }
    return [line]


def _mean(values: Sequence[float | None]) -> float | None:
    """None as soon as one seed has no such figure: a mean of the others would flatter."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _ranking(metrics: dict[str, Any]) -> dict[str, Any]:
    names = ("hr@5", "ndcg@5", "ndcg@10", "mrr", "n")
    told = {name: metrics[name] for name in names}
    return {MEASURE: metrics["hr@1"], "ci95": metrics["ci95"]["hr@1"], **told}


def _answers(study: Study, rows: Sequence[Row], name: str, label: str) -> Answers:
    return average(
        [read_answers(find_evaluation(study.run(row), label), name) for row in rows], name
    )


def _losses(run: Path) -> list[tuple[int, float]]:
    return loss_curve(read_json(run / LOG_FILE))


def _devices(study: Study) -> list[str]:
    records = study.out.glob(f"*/trials/*/{LOG_FILE}")
    return sorted({read_json(file)["device"] for file in records})


def _comparisons(study: Study, table: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Three families: iLoRA with LoRA on all data sets, with all else, and the parts with iLoRA."""
    rows = _rows_by_name(study, table)
    main: list[Comparison] = []
    others: list[Comparison] = []
    for data in table["data"]:
        for label in TEST:
            methods = {
                name: _answers(study, rows[data, name], f"{name} on {data}, {label}", label)
                for name in ("ilora", "lora", "un-adapted LLM")
                if (data, name) in rows
            }
            if "ilora" not in methods:
                continue
            if "lora" in methods:
                main += compare([methods["ilora"], methods["lora"]])
            if label == "test-rank":
                place = find_evaluation(study.encoder(data), label)
                sasrec = read_answers(place, f"SASRec on {data}, {label}")
                others += compare([methods["ilora"], sasrec])
                if "un-adapted LLM" in methods:
                    others += compare([methods["ilora"], methods["un-adapted LLM"]])
    families = {"iLoRA and LoRA": main, "iLoRA and others": others}
    for part, told in table["parts"].items():
        names = [row["name"] for row in told["rows"] if row["name"] != "ilora"]
        if len(names) < len(told["rows"]):
            families[part] = _with_ilora(study, rows, told["data"], names)
    return {name: _corrected(family) for name, family in families.items()}


def _with_ilora(
    study: Study, rows: dict[tuple[str, str], list[Row]], data: str, names: Sequence[str]
) -> list[Comparison]:
    """iLoRA and each other line of a part, by the likelihood of the candidates."""
    found = []
    for name in names:
        own, others = of_both_seeds(rows[data, "ilora"], rows[data, name])
        if own:
            answers = _answers(study, own, "ilora", TEST[0])
            found += compare([answers, _answers(study, others, name, TEST[0])])
    return found


def of_both_seeds(one: Sequence[Row], other: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The runs of two methods with the seeds that both have: like with like."""
    seeds = {row.trial.seed for row in one} & {row.trial.seed for row in other}
    mine, others = ([row for row in rows if row.trial.seed in seeds] for rows in (one, other))
    return mine, others


def _rows_by_name(study: Study, table: dict[str, Any]) -> dict[tuple[str, str], list[Row]]:
    """(data set, method) -> the runs behind that line."""
    known = all_rows(study)
    lines = [(data, line) for data, told in table["data"].items() for line in told["rows"]]
    lines += [(told["data"], line) for told in table["parts"].values() for line in told["rows"]]
    return {
        (data, line["name"]): [known[name] for name in line["runs"]]
        for data, line in lines
        if "runs" in line
    }


def _corrected(family: Sequence[Comparison]) -> list[dict[str, Any]]:
    p = [one.permutation_p if one.mcnemar_p is None else one.mcnemar_p for one in family]
    return [replace(one, holm=h).to_dict() for one, h in zip(family, holm(p), strict=True)]
