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
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ilora.config import AdapterSettings, Settings
from ilora.data.catalog import Catalog
from ilora.data.folder import DataFolder
from ilora.encoders import EncoderConfig, build_encoder
from ilora.errors import InputError
from ilora.files import atomic_folder
from ilora.model import ILoRARecommender

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "recommender.safetensors"
ADAPTER_FILES = ("adapter_config.json", SAFETENSORS_WEIGHTS_NAME)
METRICS_FILE = "metrics.json"
PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


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
    adapter: AdapterSettings
    encoder: EncoderConfig
    data: DataRecord
    training: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)


def fingerprint(llm: PreTrainedModel) -> str:
    """A hash that tells language models apart: their shape and their first embedding rows.

    The rows are hashed as bfloat16, so that the precision a model is loaded in does not matter.
    """
    text = llm.config.get_text_config()
    shape = {
        key: getattr(text, key, None)
        for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    }
    rows = llm.get_input_embeddings().weight[:64].detach().to(torch.bfloat16).cpu().contiguous()
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    digest.update(rows.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def load_llm(path_or_hub_id: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load a causal language model, frozen; refuses weights that are only there as a pickle.

    Raises:
        InputError: nothing loadable is there.
    """
    _refuse_pickle(Path(path_or_hub_id))
    try:
        llm = AutoModelForCausalLM.from_pretrained(
            path_or_hub_id, dtype=dtype, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"llm: no causal language model with safetensors weights could be loaded from "
            f"{path_or_hub_id!r} ({reason}); give a folder (`ilora base-llm build` makes one) or a "
            "hub id that can be reached"
        ) from None
    return llm.requires_grad_(False).to(device)


def save_model(
    path: Path,
    model: ILoRARecommender,
    config: ModelConfig,
    catalog: Catalog,
    metrics: dict[str, Any] | None = None,
) -> None:
    """Write the folder; an earlier model at ``path`` is replaced once the new one is complete."""
    with atomic_folder(path) as partial:
        model.llm.save_pretrained(partial, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's template of a model card
        save_file(_own_state(model), partial / WEIGHTS_FILE)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (partial / CONFIG_FILE).write_text(text, encoding="utf-8")
        catalog.save(partial / "items.csv")
        model.tokenizer.save_pretrained(partial)
        if metrics is not None:
            text = json.dumps(metrics, indent=2, ensure_ascii=False)
            (partial / METRICS_FILE).write_text(text + "\n", encoding="utf-8")


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
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = read_model_config(path)
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    base = load_llm(llm or config.llm, dtype, place)
    if fingerprint(base) != config.llm_fingerprint:
        raise InputError(
            f"llm: {llm or config.llm} is not the language model that {path} was trained on; give "
            "that one with --llm"
        )
    catalog = Catalog.load(path / "items.csv")
    model = ILoRARecommender(
        PeftModel.from_pretrained(base, path),
        AutoTokenizer.from_pretrained(path),
        _fresh_encoder(config.encoder),
        config.adapter,
    )
    load_own_state(path, model)
    return model.eval(), config, catalog


def load_weights(path: Path, model: ILoRARecommender) -> None:
    """Put the weights of a saved model of the same settings into ``model``."""
    adapter = read_tensors(path / SAFETENSORS_WEIGHTS_NAME)
    name = model.llm.active_adapter
    state = {f"{key}.{name}": value for key, value in adapter.items()}
    found = model.llm.load_state_dict(state, strict=False)
    lacking = [key for key in found.missing_keys if ".lora_" in key]
    if found.unexpected_keys or lacking:
        key = (found.unexpected_keys or lacking)[0]
        raise InputError(f"{path / SAFETENSORS_WEIGHTS_NAME} does not fit the model at {key}")
    load_own_state(path, model)


def load_own_state(path: Path, model: ILoRARecommender) -> None:
    """Load encoder, gate, projector and placeholder, strictly."""
    file = path / WEIGHTS_FILE
    state, own = read_tensors(file), _own_state(model)
    for name in sorted(state.keys() | own.keys()):
        if name not in state or name not in own or state[name].shape != own[name].shape:
            raise InputError(
                f"{file} does not fit its {CONFIG_FILE} at {name}; restore both from one run"
            )
    model.load_state_dict(state, strict=False)


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
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"model: {path / CONFIG_FILE}: {key}: {first['msg']}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"model: {path / CONFIG_FILE} is not sound YAML; restore it") from None


def find_model_folder(path: Path) -> Path:
    """Return ``path`` or the folder ``model`` in it, whichever holds a model."""
    _refuse_pickle(path)
    if not path.is_dir():
        raise InputError(f"model: {path} is not a folder; give one that `ilora train` wrote")
    inner = path / "model"
    return inner if not (path / CONFIG_FILE).is_file() and inner.is_dir() else path


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or say that it is not sound."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a sound safetensors file ({error}); restore it") from None


def _own_state(model: ILoRARecommender) -> dict[str, Tensor]:
    state = model.state_dict()
    own = {name: value for name, value in state.items() if not name.startswith("llm.")}
    return {name: value.detach().cpu().contiguous() for name, value in own.items()}


def _fresh_encoder(config: EncoderConfig) -> Any:
    with torch.random.fork_rng(devices=[]):  # the weights come from the file
        return build_encoder(
            config.encoder, config.num_items, config.hidden_size, config.window, **config.options
        )


def _refuse_pickle(path: Path) -> None:
    if path.suffix in PICKLE_SUFFIXES:
        raise InputError(
            f"model: {path} is a pickle, which can run any code when it is loaded, and is refused; "
            "give a folder with safetensors files"
        )
