"""Weights of the reference code to folders of this package, with a report of what became of each.

A recommender (``rec_model/*.pt``) becomes an encoder's folder, a Lightning checkpoint of LLaRA or
iLoRA a model's. Nothing is guessed: every tensor of ours comes from the file or is named in the
report with the reason why it does not, and what the file has beyond that is named too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilora.config import RunSettings, read_settings
from ilora.data.folder import DataFolder
from ilora.devices import choose_device
from ilora.encoders.evaluation import write_encoder_metrics
from ilora.encoders.registry import build_encoder
from ilora.encoders.storage import EncoderConfig, save_encoder
from ilora.errors import InputError
from ilora.files import atomic_folder, is_taken, write_json
from ilora.model_folder import save_model
from ilora.reference_weights import (
    Fate,
    encoder_names,
    encoder_plan,
    fill,
    model_names,
)
from ilora.torch_checkpoints import Checkpoint, read_checkpoint
from ilora.training import build_recommender

REPORT_FILE = "import.json"
MIN_HISTORY = 3  # rows that the reference's loaders keep
PLACEHOLDER_NOTE = "the reference never trains it; the mean of the token embeddings"
STATISTICS_NOTE = "not in the reference's files; 0 and 1, as it has them itself after loading"


@dataclass(frozen=True)
class Imported:
    """What was made of a checkpoint: ``kind`` is the encoder's name, or ``ilora`` or ``lora``."""

    kind: str
    path: Path
    fates: list[Fate]
    notes: list[str]
    record: dict[str, Any]

    def table(self) -> list[tuple[str, str]]:
        """Rows for the terminal: tensors of one fate, numbers in their names left out, together."""
        rows: Counter[tuple[str, str]] = Counter()
        for fate in self.fates:
            names = " → ".join(_pattern(n) for n in (fate.source, fate.target) if n)
            rows[fate.how, names + (f" ({fate.note})" if fate.note else "")] += 1
        return [
            (how, text if count == 1 else f"{text}: {count} tensors")
            for (how, text), count in rows.items()
        ] + [("note", note) for note in self.notes]


def import_reference(
    checkpoint: Path,
    out: Path,
    *,
    data: Path,
    llm: str | None = None,
    encoder: Path | None = None,
    alpha: float | None = None,
    num_heads: int | None = None,
) -> Imported:
    """Import a recommender, or, with ``llm`` and ``encoder``, what LLaRA or iLoRA trained.

    Args:
        checkpoint: a file that the reference code saved; nothing in it is run.
        out: a new folder.
        data: the data folder whose item ids the weights are for.
        llm: for a model: the language model that was adapted.
        encoder: for a model: the folder of the recommender, imported before.
        alpha: of the adapter, where the checkpoint does not tell; 32 as in the reference.
        num_heads: of a SASRec whose file holds tensors alone; 1 as in the reference.

    Raises:
        InputError: what `read_checkpoint` raises, or tensors that do not fit; nothing is written.
    """
    if is_taken(out):
        raise InputError(f"out: {out} exists; choose a new folder")
    found = read_checkpoint(checkpoint)
    folder = DataFolder.open(data)
    of_model = any(model_names(name) for name in found.tensors)
    if of_model != (llm is not None) or of_model != (encoder is not None):
        raise InputError(
            f"checkpoint: {checkpoint} holds an adapter; give --llm and --encoder with it"
            if of_model
            else f"checkpoint: {checkpoint} holds no adapter; leave --llm and --encoder out "
            "to import a recommender"
        )
    origin = {"file": checkpoint.name, "sha256": _sha256(checkpoint)}
    if llm is None or encoder is None:
        return _import_encoder(found, out, folder, origin, num_heads)
    places = {"data": str(data), "llm": llm, "encoder": str(encoder)}
    return _import_model(found, out, folder, origin, places, alpha)


def _import_encoder(
    found: Checkpoint, out: Path, folder: DataFolder, origin: dict[str, Any], num_heads: int | None
) -> Imported:
    kind, num_items, width, window, options = encoder_plan(found)
    if num_items != len(folder.catalog):
        raise InputError(
            f"checkpoint: it is for {num_items} items, but {folder.path} has {len(folder.catalog)}; "
            "give the data folder that its ids refer to"
        )
    notes = []
    if kind == "llara-sasrec" and found.module is None:
        options["num_heads"] = num_heads or 1
        notes.append(f"tensors alone do not tell the number of heads; {options['num_heads']} taken")
    if window is None:
        window = folder.window
        notes.append(f"the file does not tell the window; {window} taken, the data folder's")
    encoder = build_encoder(kind, num_items, width, window, **options)
    state, fates = fill(encoder.state_dict(), found, encoder_names(kind), lambda _: None)
    state["item_embeddings.weight"][num_items] = 0.0
    notes.append("the padding's vector, which the reference masks out, is set to zero")
    encoder.load_state_dict(state)
    encoder.requires_grad_(False).eval()
    config = EncoderConfig(
        encoder=kind,
        num_items=num_items,
        hidden_size=width,
        window=window,
        options=options,
        data_name=folder.name,
        data_sha256=folder.sha256,
        training={"imported": origin},
    )
    source = {"encoder": kind, "seed": None, "seconds": 0.0, "imported": origin}
    with atomic_folder(out) as partial:
        save_encoder(partial, encoder, config)
        metrics = write_encoder_metrics(partial, encoder, folder, MIN_HISTORY, source)
        imported = _imported(kind, out, fates, notes, origin, metrics)
        write_json(partial / REPORT_FILE, imported.record)
    return imported


def _import_model(
    found: Checkpoint,
    out: Path,
    folder: DataFolder,
    origin: dict[str, Any],
    places: dict[str, str],
    alpha: float | None,
) -> Imported:
    settings, notes = _settings(found, places, alpha)
    model, config = build_recommender(settings, folder, choose_device(None))
    own = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("encoder.")
        and (".lora_" in name if name.startswith("llm.") else True)
    }

    def absent(name: str) -> str | None:
        if name == "placeholder":
            return PLACEHOLDER_NOTE
        statistic = name.rpartition(".")[2] in (
            "running_mean",
            "running_var",
            "num_batches_tracked",
        )
        return STATISTICS_NOTE if statistic else None

    state, fates = fill(own, found, model_names, absent)
    model.load_state_dict(state, strict=False)
    config = config.model_copy(update={"training": {"imported": origin}})
    imported = _imported(settings.adapter.method, out, fates, notes, origin, {})
    with atomic_folder(out) as partial:
        save_model(partial, model.eval(), config, folder.catalog)
        write_json(partial / REPORT_FILE, imported.record)
    return imported


def _settings(
    found: Checkpoint, places: dict[str, str], alpha: float | None
) -> tuple[RunSettings, list[str]]:
    """The adapter's settings as the tensors show them, the rest as the checkpoint tells or by default."""
    experts = [name for name in found.tensors if (model_names(name) or "").startswith("llm.")]
    ranks = {found.tensors[name].shape[0] for name in experts if ".lora_A" in name}
    if len(ranks) != 1:
        raise InputError("checkpoint: its adapter has no rank of its own; give one that is whole")
    modules = {
        str(model_names(name)).rpartition(".lora_")[0].rpartition(".")[2] for name in experts
    }
    router = found.tensors.get("router.gate.fc.weight")
    notes = []

    def told(key: str, default: float) -> float:
        value = found.settings.get(key)
        if isinstance(value, int | float):
            return float(value)
        notes.append(f"the file does not tell {key}; {default:g} taken, the reference's default")
        return default

    adapter: dict[str, Any] = {
        "method": "lora" if router is None else "ilora",
        "rank": ranks.pop(),
        "alpha": told("lora_alpha", 32.0) if alpha is None else alpha,
        "dropout": told("lora_dropout", 0.1),
        "scaling": "expert",
        "target_modules": sorted(modules),
    }
    if router is not None:
        blocks = [n for n in found.tensors if n.startswith("router.layer1.") and "conv1" in n]
        adapter["num_experts"] = router.shape[0]
        adapter["gate"] = {"name": "residual", "blocks": max(1, len(blocks))}
    changes = {f"adapter.{key}": value for key, value in adapter.items()}
    return read_settings(None, {**places, **changes}), notes


def _imported(
    kind: str,
    out: Path,
    fates: list[Fate],
    notes: list[str],
    origin: dict[str, Any],
    metrics: Mapping[str, Any],
) -> Imported:
    record = {
        "kind": kind,
        "checkpoint": origin,
        "counts": dict(Counter(fate.how for fate in fates)),
        "notes": notes,
        "tensors": [fate.to_dict() for fate in fates],
    }
    if "test" in metrics:
        record["test"] = metrics["test"]
    return Imported(kind, out, fates, notes, record)


def _pattern(name: str) -> str:
    return ".".join("N" if part.isdigit() else part for part in name.split("."))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
