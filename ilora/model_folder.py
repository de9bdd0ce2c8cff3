"""A recommender as a folder: saved whole or not at all, loaded strictly, never a pickle.

adapter_config.json, adapter_model.safetensors    the experts, as PEFT writes them
recommender.safetensors                           encoder, gate, projector, placeholder
config.yaml                                       settings, and which language model and data
items.csv                                         the catalogue that the item ids refer to
tokenizer files
metrics.json                                      what validation said after training
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ilora.config import AdapterSettings, Settings, write_settings
from ilora.data.catalog import Catalog
from ilora.data.folder import DataFolder
from ilora.devices import choose_device
from ilora.encoders import EncoderConfig
from ilora.errors import InputError
from ilora.evaluation.records import METRICS_FILE
from ilora.files import atomic_folder, write_json
from ilora.model import ILoRARecommender
from ilora.tensor_files import read_tensors, refuse_pickle, require_same_tensors

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "recommender.safetensors"
ADAPTER_FILES = ("adapter_config.json", SAFETENSORS_WEIGHTS_NAME)
SAMPLE = 64  # numbers of each parameter that a fingerprint takes


class DataRecord(Settings):
    """Which data a model was trained on, and how its prompts speak."""

    name: str
    sha256: str
    domain: str
    window: int

    @classmethod
    def of(cls, folder: DataFolder) -> DataRecord:
        return cls(
            name=folder.name, sha256=folder.sha256, domain=folder.domain, window=folder.window
        )


class ModelConfig(Settings):
    """The content of ``config.yaml``."""

    llm: str
    llm_fingerprint: str
    dtype: Literal["float32", "bfloat16"] = Field(description="of the frozen language model")
    hybrid: bool = Field(description="whether prompts hold item embeddings beside the titles")
    placeholders: bool = Field(True, description="False: prompts are of titles alone")
    adapter: AdapterSettings
    encoder: EncoderConfig
    data: DataRecord
    training: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)


def fingerprint(llm: PreTrainedModel) -> str:
    """A hash that tells language models apart: names, shapes and first numbers of all parameters.

    One model fine-tuned from another, be it in its linear layers alone, has another hash. The numbers
    are hashed as bfloat16, so that the precision a model is loaded in does not matter.
    """
    digest = hashlib.sha256()
    for name, parameter in llm.named_parameters():
        digest.update(f"{name} {list(parameter.shape)}".encode())
        numbers = parameter.detach().flatten()[:SAMPLE].to("cpu", torch.bfloat16)
        digest.update(numbers.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def load_llm(path_or_hub_id: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load a causal language model, frozen; refuses weights that are only there as a pickle.

    Raises:
        InputError: nothing loadable is there, or not all of its tensors.
    """
    refuse_pickle(Path(path_or_hub_id), "llm")
    try:
        llm, report = AutoModelForCausalLM.from_pretrained(
            path_or_hub_id, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"llm: no causal language model with safetensors weights could be loaded from "
            f"{path_or_hub_id!r} ({reason}); give a folder (`ilora base-llm build` makes one) or a "
            "hub id that can be reached"
        ) from None
    if lacking := sorted(report["missing_keys"]):  # transformers would leave them random
        raise InputError(
            f"llm: the weights in {path_or_hub_id!r} lack {lacking[0]} and {len(lacking) - 1} more "
            "of the model's tensors; restore them"
        )
    return llm.requires_grad_(False).to(device)


def save_model(
    path: Path,
    model: ILoRARecommender,
    config: ModelConfig,
    catalog: Catalog,
    metrics: dict[str, Any] | None = None,
) -> None:
    """Write the folder; an earlier model at ``path`` is replaced once the new one is complete.

    Raises:
        InputError: it cannot be written, say for want of space; nothing is left of the attempt.
    """
    try:
        with atomic_folder(path) as partial:
            model.llm.save_pretrained(partial, save_embedding_layers=False)
            (partial / "README.md").unlink(missing_ok=True)  # PEFT's template of a model card
            save_file(_own_state(model), partial / WEIGHTS_FILE)
            write_settings(config, partial / CONFIG_FILE)
            catalog.save(partial / "items.csv")
            model.tokenizer.save_pretrained(partial)
            if metrics is not None:
                write_json(partial / METRICS_FILE, metrics)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own
        raise InputError(
            f"out: {path} could not be written ({error}), and what was there before is as it was; "
            "make room there and run again"
        ) from error


def load_model(
    path: str | Path, *, llm: str | None = None, device: str | torch.device | None = None
) -> tuple[ILoRARecommender, ModelConfig, Catalog]:
    """Load what :func:`save_model` wrote, in eval mode.

    Args:
        path: the model folder, or a run folder with one called ``model`` in it.
        llm: where the base language model is now; None takes the recorded place.
        device: None takes CUDA if there is one.

    Raises:
        InputError: something is missing, a pickle, unsound, or made for another language model.
    """
    path = find_model_folder(Path(path))
    place = choose_device(device)
    config = read_model_config(path)
    catalog = Catalog.load(path / "items.csv")
    if len(catalog) != config.encoder.num_items:
        raise InputError(
            f"model: {path / 'items.csv'} has {len(catalog)} items, but the model was trained on "
            f"{config.encoder.num_items}; restore it"
        )
    base = load_llm(llm or config.llm, getattr(torch, config.dtype), place)
    if fingerprint(base) != config.llm_fingerprint:
        raise InputError(
            f"llm: {llm or config.llm} is not the language model that {path} was trained on; give "
            "that one with --llm"
        )
    # The weights come from the files: whoever loads a model keeps his own random numbers.
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        model = ILoRARecommender(
            base,
            _load_tokenizer(path),
            config.encoder.build(),
            config.adapter,
            hybrid=config.hybrid,
            placeholders=config.placeholders,
        )
    load_weights(path, model)
    return model.eval(), config, catalog


def load_weights(path: Path, model: ILoRARecommender) -> None:
    """Put the weights of a saved model of the same settings into ``model``, strictly.

    Raises:
        InputError: a file is missing or unsound, or a tensor is missing, too many, or of another shape
            or type than the model's.
    """
    adapter = f".{model.llm.active_adapter}"  # PEFT leaves the adapter's name out of its files
    experts = {
        key.removeprefix("llm.").removesuffix(adapter): key
        for key in model.state_dict()
        if ".lora_" in key and key.endswith(adapter)
    }
    _load_strictly(path / SAFETENSORS_WEIGHTS_NAME, experts, model)
    _load_strictly(path / WEIGHTS_FILE, {key: key for key in _own_state(model)}, model)


def _load_strictly(file: Path, names: dict[str, str], model: ILoRARecommender) -> None:
    """Copy every tensor of ``file`` to the model's of the name that ``names`` has for it."""
    found, own = read_tensors(file), model.state_dict()
    require_same_tensors(file, found, {name: own[key] for name, key in names.items()})
    model.load_state_dict({names[name]: value for name, value in found.items()}, strict=False)


def read_model_config(path: Path) -> ModelConfig:
    """Read ``config.yaml``, after checking that every file of the folder is there."""
    for name in (CONFIG_FILE, WEIGHTS_FILE, "items.csv", *ADAPTER_FILES):
        if not (path / name).is_file():
            raise InputError(
                f"model: {path / name} is missing; give a folder that `ilora train` wrote"
            )
    try:
        tree = yaml.safe_load((path / CONFIG_FILE).read_text(encoding="utf-8"))
        return ModelConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InputError(
            f"model: {path / CONFIG_FILE}: {key}: {first['msg']}; restore the file or train again"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"model: {path / CONFIG_FILE} is not sound YAML; restore it") from None


def find_model_folder(path: Path) -> Path:
    """Return ``path`` or the folder ``model`` in it, whichever holds a model."""
    refuse_pickle(path, "model")
    if not path.is_dir():
        raise InputError(f"model: {path} is not a folder; give one that `ilora train` wrote")
    inner = path / "model"
    return inner if not (path / CONFIG_FILE).is_file() and inner.is_dir() else path


def _own_state(model: ILoRARecommender) -> dict[str, Tensor]:
    state = model.state_dict()
    own = {name: value for name, value in state.items() if not name.startswith("llm.")}
    return {name: value.detach().cpu().contiguous() for name, value in own.items()}


def _load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"model: {path} has no sound tokenizer ({reason}); restore its tokenizer files"
        ) from None
