"""The folder of a training run: what it holds, whether it may be written to, where to go on.

settings.yaml     what was asked for; a resumed run must ask for the same
checkpoints/      the Trainer's, to resume from
tensorboard/      curves while it runs
training.json     the log of losses, seconds, parameters
model/            the result, see :mod:`ilora.model_folder`
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from ilora.config import RunSettings
from ilora.errors import InputError
from ilora.files import is_taken
from ilora.model_folder import find_model_folder, read_model_config

SETTINGS_FILE = "settings.yaml"
LOG_FILE = "training.json"


def require_free(out: Path, settings: RunSettings, resume: bool) -> None:
    """Refuse an ``out`` that is something else, another run, or this one without ``resume``."""
    file = out / SETTINGS_FILE
    if not file.is_file():
        if is_taken(out):
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
        raise InputError(
            f"out: {file} is not sound YAML; restore it, or choose a new folder"
        ) from None
    key = first_difference(recorded, settings.model_dump(mode="json"))
    if key is not None:
        raise InputError(
            f"out: {key} differs from the run in {out}; give the settings in {file}, or choose a "
            "new folder"
        )


def first_difference(recorded: Any, wanted: Any, at: str = "") -> str | None:
    """The dotted key at which two trees part; one that is not there is as good as null."""
    if not isinstance(recorded, dict) or not isinstance(wanted, dict):
        return at or "a setting"
    for key in {**recorded, **wanted}:
        ours, theirs = recorded.get(key), wanted.get(key)
        if ours != theirs:
            inner = first_difference(ours, theirs, f"{at}.{key}".strip("."))
            if inner is not None:
                return inner
    return None


def is_finished(out: Path) -> bool:
    """Whether the run in ``out`` has ended: its model, which is written last, is there."""
    if not (out / "model").is_dir() or not (out / LOG_FILE).is_file():
        return False
    read_model_config(find_model_folder(out))
    return True


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end.

    The Trainer writes ``trainer_state.json`` last: a run killed in the middle of saving leaves a
    checkpoint without a sound one, which is passed over. So is one with a file that is not whole, as
    a power cut leaves them.
    """
    named = [path for path in folder.glob("*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for checkpoint in sorted(named, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
        if all(_is_whole(file) for file in checkpoint.iterdir()):
            return checkpoint
    return None


def _is_whole(file: Path) -> bool:
    """False for a file of weights or states that was cut off; others are not looked into."""
    if file.suffix in (".pt", ".pth"):  # torch's zip archives, whose directory is at the end
        return zipfile.is_zipfile(file)
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                return True
        except SafetensorError:
            return False
    return True


def loss_curve(record: dict[str, Any], key: str = "loss") -> list[tuple[int, float]]:
    """``(step, value)`` of one quantity in a training record: ``loss`` or ``eval_loss``."""
    return [(entry["step"], entry[key]) for entry in record["log"] if key in entry]
