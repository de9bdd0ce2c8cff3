"""A small language model made from data folders, for places where no model hub is reachable.

A byte-level byte-pair tokenizer is trained on the folders' titles and on the prompts' wordings, a
Llama of the chosen preset is initialised for it and, if asked, pre-trained on the text prompts of
the folders' training rows (:mod:`ilora.pretraining`). The result is an ordinary transformers model
folder: any ``--llm`` option takes it, ``AutoModelForCausalLM`` loads it.

It shows that the machinery works and lets methods be compared with one another. It knows no
language and no world beyond its titles: figures got with it are not comparable with those of a
language model of billions of parameters.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.folder import DataFolder
from ilora.data.prompts import ENDING, PromptBuilder
from ilora.data.wordings import WORDINGS
from ilora.devices import choose_device
from ilora.errors import InputError
from ilora.files import atomic_folder, is_taken, write_json
from ilora.pretraining import PretrainingOptions, PretrainingResult, greedy_hits, pretrain
from ilora.tokens import PLACEHOLDER, prepare_tokenizer

RECORD = "base_llm.json"
EOS, PAD = "<|end|>", "<|pad|>"
MAX_POSITIONS = 4096
# The prompts say the same few words around every thirty titles: counted that often, they become
# single tokens before rare words of titles do.
WORDING_WEIGHT = 100


@dataclass(frozen=True, slots=True)
class Preset:
    """The shape of a base model and the pre-training that suits it."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    batch_size: int
    learning_rate: float
    initializer_range: float = 0.02


# Parameters with a full vocabulary, embeddings (tied with the output) included: 1.07 M and 59.0 M.
# A folder with few words fills less of the vocabulary. Heads are 32 and 64 wide; every matrix
# dimension is a multiple of 16 and, in `small`, of 256, as tensor cores like it. `small` is wide
# rather than deep: the norms and activations between the matrices, not the matrices, are what an
# H100 spends its time on here, and they cost by the layer.
PRESETS: dict[str, Preset] = {
    # 0.02 is too little for so narrow a model: 200 steps from 0.05 reached a loss of 0.96, not 1.38.
    "tiny": Preset(2048, 128, 4, 4, 352, 64, 3e-3, initializer_range=0.05),
    "small": Preset(12_288, 768, 7, 12, 2048, batch_size=256, learning_rate=1e-3),
}


@dataclass(frozen=True, slots=True)
class BaseLLMResult:
    """What was built: where, how large, and how the pre-training went (None without one).

    ``greedy`` holds ``{"folder", "hits", "rows"}`` for each folder: validation rows whose target
    the text model names when it answers greedily.
    """

    path: Path
    num_parameters: int
    vocab_size: int
    pretraining: PretrainingResult | None
    greedy: list[dict[str, Any]]


def build_base_llm(
    folders: Sequence[DataFolder],
    out: Path,
    *,
    preset: Literal["tiny", "small"] = "tiny",
    seed: int = 0,
    pretrain_steps: int = 0,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    answer_weight: float = 0.5,
    ramp: float = 0.7,
    disguised: float = 0.5,
    device: str | torch.device | None = None,
    bf16: bool | None = None,
    num_workers: int | None = None,
) -> BaseLLMResult:
    """Build, pre-train and save a base model; ``out`` appears complete or not at all.

    ``out`` gets the model (safetensors), its tokenizer and ``base_llm.json``: preset, seed, the
    folders' names and hashes, steps, loss curve, seconds and versions.

    Args:
        folders: titles come from all of them, pre-training rows from their training splits.
        out: a new folder, or an earlier base model to replace.
        preset: ``tiny`` (about 1 M parameters) or ``small`` (about 60 M).
        seed: of the weights and of the pre-training's draws.
        pretrain_steps: optimiser steps; 0 leaves the weights as initialised.
        batch_size, learning_rate: of the pre-training; None takes the preset's.
        answer_weight, ramp, disguised, bf16: see :class:`ilora.pretraining.PretrainingOptions`.
        device: where to train; None takes CUDA if there is one.
        num_workers: processes that encode prompts; None takes up to eight beside a GPU and none on a
            CPU, whose cores the training itself needs.

    Raises:
        InputError: no folder, an unknown preset, a number out of range, or an ``out`` that holds
            something else than a base model.
    """
    shape = _preset(preset)
    _check(folders, out, pretrain_steps)
    place = choose_device(device)
    tokenizer = train_tokenizer(folders, shape.vocab_size)
    model = initialise_llama(shape, tokenizer, seed).to(place)
    trained: PretrainingResult | None = None
    greedy: list[dict[str, Any]] = []
    options: PretrainingOptions | None = None
    if pretrain_steps:
        options = PretrainingOptions(
            steps=pretrain_steps,
            batch_size=shape.batch_size if batch_size is None else batch_size,
            learning_rate=shape.learning_rate if learning_rate is None else learning_rate,
            answer_weight=answer_weight,
            ramp=ramp,
            disguised=disguised,
            num_workers=_workers(place) if num_workers is None else num_workers,
            bf16=bf16,
            seed=seed,
        )
        trained, greedy = _pretrain_on(folders, model, tokenizer, options)
    result = BaseLLMResult(
        path=Path(out),
        num_parameters=model.num_parameters(),
        vocab_size=len(tokenizer),
        pretraining=trained,
        greedy=greedy,
    )
    with atomic_folder(Path(out)) as partial:
        model.to("cpu").save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / RECORD, _record(result, folders, preset, seed, options, place))
    return result


def train_tokenizer(folders: Sequence[DataFolder], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level byte-pair tokenizer for the folders' titles and the wordings of all domains.

    Byte-level: any title of any later folder can be written with it. The placeholder is part of
    its vocabulary, so a pre-trained base model has read it as the mark that ends a title.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS, PLACEHOLDER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(folders), trainer)
    return prepare_tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token=EOS,
            pad_token=PAD,
            clean_up_tokenization_spaces=False,
            model_max_length=MAX_POSITIONS,
        )
    )


def initialise_llama(
    shape: Preset, tokenizer: PreTrainedTokenizerBase, seed: int
) -> LlamaForCausalLM:
    """A float32 Llama of the preset's shape with one embedding row a token, tied with the output.

    The weights depend on ``seed`` alone; torch's global generator is left as it was.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=shape.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _pretrain_on(
    folders: Sequence[DataFolder],
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    options: PretrainingOptions,
) -> tuple[PretrainingResult, list[dict[str, Any]]]:
    builders = [
        PromptBuilder(tokenizer, folder.catalog, folder.domain, folder.window) for folder in folders
    ]
    rows = [
        RecommendationDataset(folder, "train", builder, seed=options.seed)
        for folder, builder in zip(folders, builders, strict=True)
    ]
    # The language model never sees the histories' ids: folders of any catalogue share batches.
    items = max(len(folder.catalog) for folder in folders)
    window = max(folder.window for folder in folders)
    collator = Collator(tokenizer, items, window, "right", multiple=8)
    result = pretrain(model, rows, collator, options)
    greedy = []
    for folder, builder in zip(folders, builders, strict=True):
        hits, n = greedy_hits(model, RecommendationDataset(folder, "val", builder), collator)
        greedy.append({"folder": folder.name, "hits": hits, "rows": n})
    return result, greedy


def _tokenizer_texts(folders: Sequence[DataFolder]) -> Iterator[str]:
    for folder in folders:
        for title in folder.catalog.titles:
            yield f" {title}"
    for wordings in WORDINGS.values():
        for wording in wordings:
            for _ in range(WORDING_WEIGHT):
                yield f"{wording.history}\n{wording.candidates}{ENDING}"
                yield f"{wording.no_history}\n"


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise InputError(f"preset: {name!r} is not known; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _check(folders: Sequence[DataFolder], out: Path, pretrain_steps: int) -> None:
    if not folders:
        raise InputError("data: a base model is made from titles; give at least one data folder")
    if pretrain_steps < 0:
        raise InputError(f"pretrain_steps: {pretrain_steps} is below 0; give 0 for none")
    out = Path(out)
    if is_taken(out) and not (out / RECORD).is_file():
        raise InputError(f"out: {out} exists and is not a base model; choose a new folder")


def _workers(place: torch.device) -> int:
    return 0 if place.type == "cpu" else min(8, max(1, (os.cpu_count() or 1) - 1))


def _record(
    result: BaseLLMResult,
    folders: Sequence[DataFolder],
    preset: str,
    seed: int,
    options: PretrainingOptions | None,
    place: torch.device,
) -> dict[str, Any]:
    device = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine()
    packages = ("torch", "transformers", "tokenizers")
    return {
        "preset": preset,
        "seed": seed,
        "num_parameters": result.num_parameters,
        "vocab_size": result.vocab_size,
        "folders": [{"name": folder.name, "sha256": folder.sha256} for folder in folders],
        "pretraining_options": None if options is None else dataclasses.asdict(options),
        "pretraining": (
            None if result.pretraining is None else dataclasses.asdict(result.pretraining)
        ),
        "validation_greedy_hits": result.greedy,
        "device": device,
        "versions": {name: version(name) for name in packages},
    }
