"""One tiny world for the tests of the recommender: data, a language model, an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilora.base_llm import Preset, initialise_llama, train_tokenizer
from ilora.config import AdapterSettings, RunSettings, read_settings
from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.folder import DataFolder
from ilora.data.prompts import Example
from ilora.data.sequences import Split
from ilora.data.synthetic import build_synthetic
from ilora.encoders import EncoderTraining, load_encoder, train_encoder
from ilora.evaluation.decoding import to_device
from ilora.model import ILoRARecommender
from ilora.model_folder import ModelConfig, load_llm
from ilora.tokens import load_tokenizer
from ilora.training import build_recommender

CPU = torch.device("cpu")
SHAPE = Preset(512, 32, 2, 2, 64, batch_size=8, learning_rate=1e-3)
SETTINGS: dict[str, Any] = {
    "training.max_steps": 4,
    "training.batch_size": 8,
    "training.learning_rate": 1e-2,
    "training.evaluations": 0,
    "training.checkpoints": 0,
}


@dataclass(frozen=True)
class World:
    """Sixty users; a Llama of two layers as it was initialised; an encoder of one epoch."""

    folder: DataFolder
    llm: Path
    encoder: Path

    def settings(self, changes: Mapping[str, Any] | None = None) -> RunSettings:
        """Settings of a run of four steps, with dotted keys changed."""
        inputs = {"data": self.folder.path, "llm": self.llm, "encoder": self.encoder}
        texts = {key: str(path) for key, path in inputs.items()}
        return read_settings(None, {**texts, **SETTINGS, **(changes or {})})

    def recommender(self, **adapter: Any) -> ILoRARecommender:
        """A model whose experts all do something (as initialised they do nothing), in eval mode."""
        torch.manual_seed(0)
        model = ILoRARecommender(
            load_llm(str(self.llm), torch.float32, CPU),
            load_tokenizer(self.llm),
            load_encoder(self.encoder),
            AdapterSettings(**adapter),
        )
        return stir(model).eval()

    def built(
        self, changes: Mapping[str, Any] | None = None
    ) -> tuple[ILoRARecommender, ModelConfig]:
        """The same as `recommender` from settings, with what a model folder records of it."""
        torch.manual_seed(0)
        model, config = build_recommender(self.settings(changes), self.folder, CPU)
        return stir(model).eval(), config

    def rows(self, model: ILoRARecommender, split: Split, *, answer: bool) -> RecommendationDataset:
        """A split's encoded prompts."""
        builder = model.prompt_builder(self.folder.catalog, self.folder.domain, self.folder.window)
        return RecommendationDataset(self.folder, split, builder, min_history=3, answer=answer)

    def batch(
        self,
        model: ILoRARecommender,
        examples: list[Example],
        side: Any = "left",
        multiple: int = 1,
    ) -> dict[str, Tensor]:
        """Examples as the model takes them."""
        size, window = len(self.folder.catalog), self.folder.window
        return to_device(
            Collator(model.tokenizer, size, window, side, multiple=multiple)(examples), CPU
        )


def build_world(path: Path) -> World:
    """Write the world below ``path``."""
    folder = build_synthetic(path / "data", num_users=60, num_items=28, lengths=(5, 7))
    return World(folder, build_llm(folder, path / "llm"), _build_encoder(folder, path / "encoder"))


def build_llm(folder: DataFolder, path: Path, seed: int = 0) -> Path:
    """A Llama as it was initialised, with its tokenizer."""
    tokenizer = train_tokenizer([folder], SHAPE.vocab_size)
    initialise_llama(SHAPE, tokenizer, seed).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def stir(model: ILoRARecommender) -> ILoRARecommender:
    """Give the experts and the gate weights that show in every output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name or name.startswith("gate."):
                parameter.normal_(0, 0.5, generator=generator)
    return model


def _build_encoder(folder: DataFolder, path: Path) -> Path:
    train_encoder(
        folder, path, hidden_size=16, training=EncoderTraining(max_epochs=1), device="cpu"
    )
    return path
