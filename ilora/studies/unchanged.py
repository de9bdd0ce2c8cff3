"""A study goes on only with the settings that it began with: its figures are told under them."""

from __future__ import annotations

from typing import Any

import yaml

from ilora.errors import InputError
from ilora.files import read_json
from ilora.run_folder import SETTINGS_FILE, first_difference
from ilora.studies.plan import Study, all_rows


def require_unchanged(study: Study) -> None:
    """Raise `InputError` if something in the study's folder was made with other settings.

    Further data sets, rates, seeds, experts and gates are no change. Nor are other paths: a study may
    have been moved.
    """
    _require_same_base(study)
    for row in all_rows(study).values():
        file = study.run(row) / SETTINGS_FILE
        if not file.is_file():
            continue
        wanted = row.trial.settings(study.run_settings(row.data)).model_dump(mode="json")
        made = yaml.safe_load(file.read_text(encoding="utf-8"))
        key = first_difference(_figures(made), _figures(wanted))
        if key is not None:
            raise _other(study, key, f"the run in {file.parent}")


def _figures(settings: dict[str, Any]) -> dict[str, Any]:
    """What the figures of a run depend on, beside its data."""
    return {key: settings.get(key) for key in ("seed", "adapter", "training")}


def _require_same_base(study: Study) -> None:
    from ilora.base_llm import RECORD

    if not (study.base / RECORD).is_file():
        return
    record, plan = read_json(study.base / RECORD), study.settings.base
    options = record.get("pretraining_options") or {}
    made = {"preset": record.get("preset"), "pretrain_steps": options.get("steps", 0)}
    wanted: dict[str, Any] = {"preset": plan.preset, "pretrain_steps": plan.pretrain_steps}
    if plan.pretrain_steps:  # without pre-training there are no prompts to disguise
        made["disguised"], wanted["disguised"] = options.get("disguised"), plan.disguised
    key = first_difference(made, wanted)
    if key is not None:
        raise _other(study, f"base.{key}", f"the language model in {study.base}")


def _other(study: Study, key: str, what: str) -> InputError:
    return InputError(
        f"config: {key} differs from {what}; restore it, or choose another folder than {study.out}"
    )
