"""What run folders on disk have to tell a report: figures, curves, gates, and what to mind.

A *training run* is a folder that `ilora train` wrote, with what `ilora evaluate` put under its
``evaluation/``; an *encoder* is a folder that `ilora encoder train` wrote.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ilora.config import read_settings
from ilora.data.folder import DataFolder
from ilora.data.sequences import Split
from ilora.encoders import SequenceEncoder
from ilora.encoders.storage import WEIGHTS_FILE as ENCODER_WEIGHTS
from ilora.errors import InputError
from ilora.evaluation.popularity import popularity_metrics
from ilora.evaluation.records import METRICS_FILE, PREDICTIONS_FILE
from ilora.gate import Gate, stored_gate
from ilora.gate_map import GateMap, gate_map
from ilora.model_folder import WEIGHTS_FILE, ModelConfig, read_model_config
from ilora.plots import Curve
from ilora.report import Reading, ReportRow
from ilora.run_folder import LOG_FILE, SETTINGS_FILE, loss_curve
from ilora.seeds import Seeded, SeedRow, over_seeds
from ilora.tensor_files import read_tensors, require_same_tensors

SPLITS: tuple[Split, ...] = ("test", "val")  # the one that counts first


@dataclass(frozen=True)
class Measured:
    """A row of the table, and on what it was measured.

    ``data`` is the hash of the data folder, ``candidates`` the number a row has to choose from
    (None where it is not recorded); ``seeded`` is what a run has in common with other seeds.
    """

    row: ReportRow
    split: Split
    data: str
    candidates: int | None = None
    seeded: Seeded | None = None


@dataclass
class Findings:
    """What was found in some run folders."""

    measured: list[Measured] = field(default_factory=list)
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    gates: dict[str, GateMap] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[ReportRow]:
        """All rows, those of the test split first, else in the order of the folders."""
        ordered = sorted(self.measured, key=lambda one: SPLITS.index(one.split))
        return [one.row for one in ordered]

    @property
    def seeds(self) -> list[SeedRow]:
        """Runs of the same settings and data summed up over their seeds, the test split first."""
        ordered = sorted(self.measured, key=lambda one: SPLITS.index(one.split))
        return over_seeds([one.seeded for one in ordered if one.seeded is not None])

    @property
    def chance(self) -> float | None:
        """What guessing reaches; None where it is not known or not the same for all rows."""
        counts = {one.candidates for one in self.measured if one.candidates is not None}
        return 1 / counts.pop() if len(counts) == 1 else None


def collect_runs(paths: Sequence[Path], data: Path | None = None) -> Findings:
    """Read training runs and encoders; a folder that is neither is looked into, one level deep.

    Nothing is left out: a run that has not been evaluated or did not finish gets a note.

    Args:
        data: a data folder, whose popularity is then a row for each split.

    Raises:
        InputError: a path that holds neither, or a file that cannot be read.
    """
    folders = [folder for path in paths for folder in _expand(Path(path))]
    folders = list({folder.resolve(): folder for folder in folders}.values())
    short = Counter(_name(folder) for folder in folders)
    findings = Findings()
    if data is not None:
        _add_popularity(findings, DataFolder.open(data))
    for folder in folders:
        name = _name(folder) if short[_name(folder)] == 1 else str(folder)
        if _is_encoder(folder):
            _add_encoder(findings, folder, name)
        else:
            _add_training_run(findings, folder, name)
    findings.notes += _what_differs(findings.measured)
    return findings


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        raise InputError(f"run: {path} is not a folder; give one that `ilora train` wrote")
    if _is_training_run(path) or _is_encoder(path):
        return [path]
    # Names that begin with a dot are those of what is still being written, or never was to the end.
    shown = (p for p in path.iterdir() if not p.name.startswith("."))
    inner = sorted(p for p in shown if _is_training_run(p) or _is_encoder(p))
    if not inner:
        raise InputError(
            f"run: {path} holds no training run and no encoder; give folders that `ilora train` or "
            "`ilora encoder train` wrote, or a folder of such"
        )
    return inner


def _name(folder: Path) -> str:
    return folder.resolve().name


def _is_training_run(path: Path) -> bool:
    return (path / SETTINGS_FILE).is_file()


def _is_encoder(path: Path) -> bool:
    return (path / ENCODER_WEIGHTS).is_file() and (path / METRICS_FILE).is_file()


def _add_popularity(findings: Findings, folder: DataFolder) -> None:
    for split in SPLITS:
        row = ReportRow.of_ranking(f"popularity ({split})", popularity_metrics(folder, split))
        findings.measured.append(Measured(row, split, folder.sha256, folder.num_candidates))


def _add_encoder(findings: Findings, folder: Path, name: str) -> None:
    file = folder / METRICS_FILE
    metrics = _read_json(file)
    try:
        for split in SPLITS:
            row = ReportRow.of_ranking(
                f"{name} ({split}-encoder)",
                metrics[split],
                seconds=metrics["seconds"],
                trainable_parameters=metrics["num_parameters"],
            )
            findings.measured.append(Measured(row, split, metrics["data"]["sha256"]))
    except (KeyError, TypeError) as error:
        raise _incomplete(file, error, "train the encoder again") from None


def _add_training_run(findings: Findings, folder: Path, name: str) -> None:
    if not ((folder / LOG_FILE).is_file() and (folder / "model").is_dir()):
        findings.notes.append(
            f"{name} has not finished training: `ilora train --out {folder} --resume` goes on with it."
        )
        return
    record = _read_json(folder / LOG_FILE)
    try:
        findings.curves[name] = {
            "train": loss_curve(record, "loss"),
            "validation": loss_curve(record, "eval_loss"),
        }
        if record["resumed_from"] is not None:
            findings.notes.append(
                f"{name} was resumed from {record['resumed_from']}: its training seconds are those "
                "since then."
            )
    except (KeyError, TypeError) as error:
        raise _incomplete(folder / LOG_FILE, error, "train again") from None
    files = sorted(folder.glob(f"evaluation/*/{METRICS_FILE}"))
    if not files:
        findings.notes.append(
            f"{name} has not been evaluated: `ilora evaluate --model {folder} --data DATA` does it."
        )
    for file in files:
        findings.measured.append(_evaluation(file, name, record, folder))
    _add_gates(findings, folder, name)


def _evaluation(file: Path, name: str, record: dict[str, Any], folder: Path) -> Measured:
    metrics = _read_json(file)
    try:
        read = metrics.get("as_reference")
        row = ReportRow(
            name=f"{name} ({file.parent.name})",
            hit_ratio_at_1=metrics["hit_ratio_at_1"],
            ci95=_pair(metrics["ci95"]["hit_ratio_at_1"]),
            hit_ratio_at_1_valid=metrics["hit_ratio_at_1_valid"],
            valid_ratio=metrics["valid_ratio"],
            n=metrics["n"],
            seconds=record["seconds"],
            trainable_parameters=record["trainable_parameters"],
            as_reference=None if read is None else _reading(read),
        )
        count = _count_candidates(file.with_name(PREDICTIONS_FILE))
        data = metrics["data"]["sha256"]
        seeded = _seeded(folder, name, file.parent.name, f"{data} {row.n}", row.hit_ratio_at_1)
        return Measured(row, metrics["split"], data, count, seeded)
    except (KeyError, TypeError) as error:
        raise _incomplete(file, error, "evaluate again") from None


def _reading(told: dict[str, Any]) -> Reading:
    return Reading(told["hit_ratio_at_1"], told["hit_ratio_at_1_valid"], told["valid_ratio"])


def _seeded(folder: Path, name: str, evaluation: str, rows: str, hit_ratio: float) -> Seeded:
    """The run as one of several seeds: settings but for the seed, and the rows it was measured on."""
    settings = read_settings(folder / SETTINGS_FILE, {})
    common = settings.model_dump_json(exclude={"seed"})
    return Seeded(name, evaluation, f"{common} {rows}", settings.seed, hit_ratio)


def _count_candidates(predictions: Path) -> int | None:
    if not predictions.is_file():
        return None
    with predictions.open(encoding="utf-8") as file:
        first = file.readline()
    try:
        return len(json.loads(first)["candidates"])
    except (ValueError, KeyError, TypeError) as error:
        raise _incomplete(predictions, error, "evaluate again") from None


def _add_gates(findings: Findings, folder: Path, name: str) -> None:
    """Map the gates of a run with several experts, if its model and data are still there."""
    settings = read_settings(folder / SETTINGS_FILE, {})
    if settings.adapter.experts == 1:
        return
    try:
        findings.gates[name] = read_gates(folder / "model", settings.data)
    except InputError as error:
        findings.notes.append(f"The gates of {name} are not shown: {error}.")


def read_gates(model: Path, data: Path) -> GateMap:
    """The gate map of a saved model over the test users of its data.

    The language model is not loaded: encoder and gate are all it takes.

    Raises:
        InputError: the model or the data is not there or not sound, or the data is another.
    """
    return gate_map(*load_gate(model, DataFolder.open(data)))


def load_gate(model: Path, folder: DataFolder) -> tuple[SequenceEncoder, Gate, DataFolder]:
    """Encoder and gate of a saved model, in eval mode, without its language model; and the data.

    Raises:
        InputError: the model is not there or not sound, or was trained on other data.
    """
    config = read_model_config(model)
    require_same_data(model, config, folder)
    encoder = config.encoder.build()
    state = read_tensors(model / WEIGHTS_FILE)
    parts = {
        part: {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}
        for part in ("encoder.", "gate.")
    }
    with torch.random.fork_rng(devices=[]):  # initial values, which the stored ones replace
        gate = stored_gate(
            config.adapter.gate,
            encoder.representation_size,
            config.adapter.experts,
            parts["gate."],
        )
    for part, module in (("encoder.", encoder), ("gate.", gate)):
        require_same_tensors(model / WEIGHTS_FILE, parts[part], module.state_dict())
        module.load_state_dict(parts[part])
    return encoder.eval(), gate.eval(), folder


def require_same_data(model: Path, config: ModelConfig, folder: DataFolder) -> None:
    """Raise `InputError` for data that a model was not trained on."""
    if folder.sha256 != config.data.sha256:
        raise InputError(f"data: {folder.path} is not what {model} was trained on; restore it")


def _what_differs(measured: Sequence[Measured]) -> list[str]:
    """Warn of rows that stand in one table and were not measured on the same rows."""
    notes = []
    for split in SPLITS:
        mine = [one for one in measured if one.split == split]
        if len({one.data for one in mine}) > 1:
            notes.append(f"The {split} rows come from different data: do not compare them.")
        elif len({one.row.n for one in mine}) > 1:
            counts = ", ".join(f"{one.row.name} {one.row.n}" for one in mine)
            notes.append(
                f"The {split} figures come from different numbers of rows ({counts}): measure all "
                "with one --min-history and without --max-rows before comparing them."
            )
    return notes


def _pair(interval: Sequence[float]) -> tuple[float, float]:
    low, high = interval
    return float(low), float(high)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 errors both are
        raise InputError(f"run: {file} is not sound JSON ({error}); restore it") from None
    if not isinstance(value, dict):
        raise InputError(f"run: {file} must hold keys and values; restore it")
    return value


def _incomplete(file: Path, error: Exception, remedy: str) -> InputError:
    return InputError(f"run: {file} does not hold what it should ({error}); {remedy}")
