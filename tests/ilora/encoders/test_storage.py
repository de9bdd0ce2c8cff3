from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ilora.encoders import EncoderConfig, build_encoder, load_encoder
from ilora.encoders.storage import CONFIG_FILE, WEIGHTS_FILE, save_encoder
from ilora.errors import InputError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    encoder = build_encoder("sasrec", 12, 8, 5, num_heads=1)
    config = EncoderConfig(
        encoder="sasrec",
        num_items=12,
        hidden_size=8,
        window=5,
        options=encoder.options,
        data_name="chain",
        data_sha256="0" * 64,
    )
    save_encoder(tmp_path, encoder, config)
    return tmp_path


def test_loading_does_not_touch_the_global_generator(saved: Path) -> None:
    before = torch.get_rng_state()
    load_encoder(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_catalogue_size_is_refused(saved: Path) -> None:
    assert load_encoder(saved, num_items=12).num_items == 12
    with pytest.raises(InputError, match=r"chain with 12 items.*has 13"):
        load_encoder(saved, num_items=13)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        load_encoder(saved)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.BIN"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, name: str) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(InputError, match="is a pickle"):
        load_encoder(tmp_path / name)


def test_a_pickle_under_the_weights_name_is_refused(saved: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, saved / WEIGHTS_FILE)
    with pytest.raises(InputError, match="not a sound safetensors file"):
        load_encoder(saved)


def test_a_truncated_weights_file_is_refused(saved: Path) -> None:
    content = (saved / WEIGHTS_FILE).read_bytes()
    (saved / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a sound safetensors file"):
        load_encoder(saved)


def test_a_tensor_too_few_or_too_many_or_of_another_shape_is_named(saved: Path) -> None:
    state = load_file(saved / WEIGHTS_FILE)
    short = {name: tensor for name, tensor in state.items() if name != "empty_history"}
    for altered, message in (
        (short, "empty_history is absent"),
        ({**state, "gate": torch.zeros(1)}, r"gate is torch.float32 \[1\] where absent"),
        ({**state, "empty_history": torch.zeros(9)}, r"\[9\] where torch.float32 \[8\]"),
        ({**state, "empty_history": torch.zeros(8).half()}, "empty_history is torch.float16"),
    ):
        save_file(altered, saved / WEIGHTS_FILE)
        with pytest.raises(InputError, match=message):
            load_encoder(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_item": 3}, "num_item: Extra inputs"),
        ({"window": "long"}, "window: Input should be a valid integer"),
        ({"encoder": "bert"}, "'bert'.*sasrec"),
        ({"options": {"layers": 2}}, "'layers' is not an option"),
    ],
)
def test_an_unsound_configuration_is_named(
    saved: Path, change: dict[str, object], message: str
) -> None:
    config = yaml.safe_load((saved / CONFIG_FILE).read_text(encoding="utf-8"))
    (saved / CONFIG_FILE).write_text(yaml.safe_dump({**config, **change}), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_encoder(saved)


def test_a_configuration_that_is_no_yaml_is_refused(saved: Path) -> None:
    (saved / CONFIG_FILE).write_text("encoder: [", encoding="utf-8")
    with pytest.raises(InputError, match="not sound YAML"):
        load_encoder(saved)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        load_encoder(tmp_path / "nowhere")
