"""Which language models generate from a captured graph, told from their configuration alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from ilora.graph_decoding import can_capture


def on_gpu(config: PreTrainedConfig, **changes: Any) -> Any:
    """What ``can_capture`` reads of a model on a GPU."""
    config.get_text_config(decoder=True)._attn_implementation = "sdpa"
    read = {"config": config, "device": torch.device("cuda"), "_can_compile_fullgraph": True}
    return SimpleNamespace(**read | {"parameters": lambda: iter(())} | changes)


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(), GPT2Config(), Qwen2Config(), MistralConfig(sliding_window=None)],
    ids=lambda config: config.model_type,
)
def test_models_whose_layers_see_everything_are_captured(config: PreTrainedConfig) -> None:
    assert can_capture(on_gpu(config))


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(),  # a window, and no kinds of layers
        Qwen2Config(use_sliding_window=True, max_window_layers=1),
        Gemma3Config(),  # in the configuration of its text model
    ],
    ids=lambda config: config.model_type,
)
def test_models_with_windows_are_not(config: PreTrainedConfig) -> None:
    assert not can_capture(on_gpu(config))


def test_quantised_models_and_other_attention_are_not() -> None:
    assert not can_capture(on_gpu(LlamaConfig(quantization_config={"load_in_8bit": True})))
    eager = on_gpu(LlamaConfig())
    eager.config._attn_implementation = "eager"
    assert not can_capture(eager)
    stretched = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not can_capture(on_gpu(LlamaConfig(rope_parameters=stretched)))


def test_under_autocast_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_gpu(LlamaConfig())
    assert can_capture(model)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)
    assert not can_capture(model)
