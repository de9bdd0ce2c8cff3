"""An encoder as a folder: ``encoder.safetensors``, ``config.yaml``, what it was measured at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file

from ilora.encoders.base import SequenceEncoder
from ilora.encoders.registry import build_encoder
from ilora.errors import InputError
from ilora.tensor_files import read_tensors, refuse_pickle, require_same_tensors

WEIGHTS_FILE = "encoder.safetensors"
CONFIG_FILE = "config.yaml"


class EncoderConfig(BaseModel):
    """The content of ``config.yaml``: what to build, how it was trained (free), on which data."""

    model_config = ConfigDict(extra="forbid")
    encoder: str
    num_items: int
    hidden_size: int
    window: int
    options: dict[str, Any]
    data_name: str
    data_sha256: str
    training: dict[str, Any] = {}

    def build(self) -> SequenceEncoder:
        """The encoder without its trained weights; torch's random numbers are left as they were."""
        with torch.random.fork_rng(devices=[]):  # initial values, which the trained ones replace
            return build_encoder(
                self.encoder, self.num_items, self.hidden_size, self.window, **self.options
            )


def save_encoder(folder: Path, encoder: SequenceEncoder, config: EncoderConfig) -> None:
    """Write weights and configuration into an existing folder (the caller makes it atomic)."""
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()
    }
    save_file(state, folder / WEIGHTS_FILE)
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def load_encoder(path: str | Path, *, num_items: int | None = None) -> SequenceEncoder:
    """The encoder that `ilora.encoders.train_encoder` wrote, on the CPU, frozen, in eval mode.

    Args:
        path: its folder.
        num_items: size of the catalogue it will be used with; another one is refused.

    Raises:
        InputError: no such folder or file, a pickle, an unsound configuration, weights that do
            not fit it exactly, or another catalogue size.
    """
    path = Path(path)
    config = read_encoder_config(path)
    if num_items is not None and config.num_items != num_items:
        raise InputError(
            f"the encoder {path} was trained on {config.data_name} with {config.num_items} items; "
            f"this catalogue has {num_items}: train one on it with `ilora encoder train`"
        )
    encoder = config.build()
    file = path / WEIGHTS_FILE
    if not file.is_file():
        raise InputError(f"{file} is missing; restore it or train the encoder again")
    state = read_tensors(file)
    require_same_tensors(file, state, encoder.state_dict())
    encoder.load_state_dict(state)
    return encoder.requires_grad_(False).eval()


def read_encoder_config(path: str | Path) -> EncoderConfig:
    """``config.yaml`` of an encoder's folder; raises `InputError` as `load_encoder` does."""
    path = Path(path)
    _require_folder(path)
    file = path / CONFIG_FILE
    try:
        return EncoderConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(
            f"{file} is missing; give a folder that `ilora encoder train` wrote"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InputError(
            f"{file}: {key}: {first['msg']}; restore the file or train the encoder again"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{file} is not sound YAML ({reason}); restore it or train the encoder again"
        ) from None


def _require_folder(path: Path) -> None:
    refuse_pickle(path, "encoder")
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; give a folder that `ilora encoder train` wrote")
