"""One typed tree of settings for a training run, YAML in and out; unknown keys are refused.

The defaults are the paper's: K = 4 experts of total rank 8, alpha 32, dropout 0.1 on every linear
layer, Adam at 1e-4 with 5 % warm-up and cosine decay, batches of 128, at most 5 epochs, the gate
at 0.3 times the learning rate, LLaRA's curriculum from text to hybrid prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ilora.errors import InputError
from ilora.files import atomic_file
from ilora.gate_config import BY_NAME, GateSettings, Linear


class Settings(BaseModel):
    """A node of the tree."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class AdapterSettings(Settings):
    """The low-rank experts. ``method: lora`` is the same thing with one expert and no gate.

    ``method: none`` is the language model as it is: nothing is trained, and it reads titles alone, or
    with placeholders where it knows them.
    """

    method: Literal["ilora", "lora", "none"] = "ilora"
    rank: int = Field(8, ge=1, description="total rank R over all experts")
    num_experts: int = Field(4, ge=1, description="K; 1 for the other methods, whatever it says")
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    scaling: Literal["expert", "total"] = "expert"
    gate: GateSettings = Linear()
    target_modules: list[str] | str = "all-linear"

    @field_validator("target_modules")
    @classmethod
    def _one_name_is_a_list(cls, value: list[str] | str) -> list[str] | str:
        """PEFT takes a text for a regular expression of a whole path, which no single name matches."""
        return [value] if isinstance(value, str) and value.isidentifier() else value

    @property
    def experts(self) -> int:
        """K, which is 1 for plain LoRA."""
        return self.num_experts if self.method == "ilora" else 1

    @property
    def gates_per_layer(self) -> bool:
        """Whether every adapted layer has a mixture of its own."""
        return self.gate.name == "per-layer" and self.experts > 1

    @model_validator(mode="after")
    def _experts_share_the_rank(self) -> AdapterSettings:
        if self.rank % self.experts:
            raise ValueError(f"rank {self.rank} is not a multiple of {self.experts} experts")
        chosen = getattr(self.gate, "k", None)
        if self.method == "ilora" and chosen is not None and chosen > self.num_experts:
            raise ValueError(f"gate.k {chosen} is more than the {self.num_experts} experts")
        return self


class TrainingSettings(Settings):
    """The optimisation. A step is one batch of ``batch_size`` prompts, however it is split."""

    epochs: float = Field(5.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="optimiser steps; overrides epochs")
    batch_size: int = Field(128, ge=1, description="prompts in an optimiser step")
    micro_batch_size: int | None = Field(
        None, ge=1, description="prompts in memory at once; must divide batch_size; default: all"
    )
    learning_rate: float = Field(1e-4, gt=0)
    gate_learning_rate_ratio: float = Field(0.3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    curriculum: Literal["text-to-hybrid", "hybrid", "text"] = Field(
        "text-to-hybrid", description="text: titles alone, in training and after it"
    )
    min_history: int = Field(3, ge=0, description="rows with a shorter history are left out")
    bf16: bool | None = Field(None, description="default: on a GPU yes, on a CPU no")
    gradient_checkpointing: bool = False
    evaluations: int = Field(
        5, ge=0, description="at most so many validations, the last at the end"
    )
    keep: Literal["best", "last"] = Field("last", description="best: of the validation loss")
    checkpoints: int = Field(10, ge=0, description="at most so many saved states to resume from")
    workers: int = Field(0, ge=0, description="processes that encode prompts")

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> TrainingSettings:
        if self.batch_size % self.micro:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro}"
            )
        return self

    @property
    def micro(self) -> int:
        """Prompts in memory at once."""
        return self.micro_batch_size or self.batch_size


class RunSettings(Settings):
    """Everything that ``ilora train`` needs."""

    data: Path
    llm: str = Field(description="a hub id, or a folder as `ilora base-llm build` makes it")
    encoder: Path = Field(description="a folder as `ilora encoder train` makes it")
    seed: int = Field(0, ge=0)
    adapter: AdapterSettings = AdapterSettings()
    training: TrainingSettings = TrainingSettings()

    @property
    def titles_alone(self) -> bool:
        """Whether prompts hold no item embeddings, nor placeholders that the model never learnt."""
        return self.training.curriculum == "text" or self.adapter.method == "none"


def read_settings(file: Path | None, changes: dict[str, Any]) -> RunSettings:
    """Read a YAML file, if any, and change the dotted keys of ``changes`` that are not None.

    Raises:
        InputError: no such file, no YAML, an unknown key, or a value out of range.
    """
    tree = {} if file is None else _read_yaml(file)
    given = {dotted: value for dotted, value in changes.items() if value is not None}
    for dotted, value in given.items():
        _put(tree, dotted.split("."), value)
    source = str(file or "the options")
    source += " with the options" if file and given else ""
    try:
        return RunSettings.model_validate(tree)
    except ValidationError as error:
        raise InputError(_sentence(error, source)) from None


def write_settings(settings: BaseModel, file: Path) -> None:
    """Write settings as YAML, atomically."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with atomic_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"config: {file} does not exist; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(
            f"config: {file} is not sound YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(tree, dict):
        raise InputError(f"config: {file} must hold keys and values, not a {type(tree).__name__}")
    return tree


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        if key == "gate" and isinstance(tree.get(key), str):
            tree[key] = {"name": tree[key]}  # a name stands for the gate with its defaults
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise InputError(f"config: {key} must hold keys and values to set {'.'.join(path)}")
    tree[path[-1]] = value


def _sentence(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if "gate" in place:  # pydantic puts the gate's name between the key and its option
        del place[place.index("gate") + 1 : -1]
    key = ".".join(place) or "the whole"
    if first["type"] == "union_tag_invalid":
        given = first["ctx"]["tag"]
        return f"config: {key} in {source} is {given!r}; choose one of {', '.join(BY_NAME)}"
    if first["type"] == "union_tag_not_found":
        return f"config: {key} in {source} has no name; choose one of {', '.join(BY_NAME)}"
    if first["type"] == "extra_forbidden":
        return f"config: {source} has the unknown key {key}; see docs/configuration.md for all keys"
    if first["type"] == "missing":
        return f"config: {key} is missing; give --{key} or set it in a --config file"
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict):  # values that do not fit one another: the message has them
        return f"config: {key} in {source}: {message}"
    return f"config: {key} in {source} is {first['input']!r}: {message}"
