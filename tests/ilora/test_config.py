"""Settings: the paper's defaults, YAML there and back, and one sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ilora.config import AdapterSettings, TrainingSettings, read_settings, write_settings
from ilora.errors import InputError
from ilora.gate_config import TopK, Uniform

NEEDED = {"data": "d", "llm": "l", "encoder": "e"}


def yaml_file(folder: Path, tree: Any) -> Path:
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


def test_the_defaults_are_the_papers() -> None:
    settings = read_settings(None, NEEDED)
    adapter, training = settings.adapter, settings.training
    assert (adapter.method, adapter.experts, adapter.rank) == ("ilora", 4, 8)
    assert (adapter.alpha, adapter.dropout) == (32.0, 0.1)
    assert (training.batch_size, training.epochs, training.warmup_ratio) == (128, 5, 0.05)
    assert (training.learning_rate, training.gate_learning_rate_ratio) == (1e-4, 0.3)
    assert training.curriculum == "text-to-hybrid"


def test_settings_survive_the_way_through_yaml(tmp_path: Path) -> None:
    changes = {
        **NEEDED,
        "seed": 7,
        "adapter.target_modules": ["q_proj", "v_proj"],
        "adapter.scaling": "total",
        "training.learning_rate": 7e-4,
        "training.micro_batch_size": 16,
        "training.bf16": False,
        "training.keep": "best",
    }
    settings = read_settings(None, changes)
    write_settings(settings, tmp_path / "settings.yaml")
    assert read_settings(tmp_path / "settings.yaml", {}) == settings


def test_what_is_asked_for_beside_a_file_wins_and_none_leaves_it(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, {**NEEDED, "training": {"epochs": 2, "batch_size": 64}})
    settings = read_settings(file, {"training.epochs": 3, "training.batch_size": None})
    assert (settings.training.epochs, settings.training.batch_size) == (3, 64)


def test_a_number_written_as_yaml_does_not_know_it_is_read_as_a_number(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"  # YAML 1.1 takes 1e-4 for a text
    file.write_text("{data: d, llm: l, encoder: e, training: {learning_rate: 1e-4}}")
    assert read_settings(file, {}).training.learning_rate == 1e-4


def test_lora_has_one_expert_whatever_their_number_says() -> None:
    assert AdapterSettings(method="lora", rank=7, num_experts=4).experts == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"epochs": 3}, "epochs"),
        ({"adapter": {"ranks": 8}}, "adapter.ranks"),
        ({"training": {"lr": 1e-3}}, "training.lr"),
    ],
)
def test_an_unknown_key_is_named_at_every_level(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(InputError, match=rf"unknown key {key};"):
        read_settings(yaml_file(tmp_path, NEEDED | changes), {})


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"training.epochs": "many"}, "training.epochs", "'many'"),
        ({"training.batch_size": 1.5}, "training.batch_size", "1.5"),
        ({"training.learning_rate": -1.0}, "training.learning_rate", "-1.0"),
        ({"training.curriculum": "steep"}, "training.curriculum", "'steep'"),
        ({"adapter.method": "dora"}, "adapter.method", "'dora'"),
        ({"adapter.dropout": 1.0}, "adapter.dropout", "1.0"),
        ({"seed": -1}, "seed", "-1"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_key_and_itself(
    changes: dict[str, Any], key: str, value: str
) -> None:
    with pytest.raises(InputError) as caught:
        read_settings(None, NEEDED | changes)
    assert key in str(caught.value)
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"adapter.rank": 10}, "adapter in the options: rank 10 is not a multiple of 4 experts"),
        (
            {"training.batch_size": 10, "training.micro_batch_size": 4},
            "training in the options: batch_size 10 is not a multiple of micro_batch_size 4",
        ),
    ],
)
def test_numbers_that_do_not_divide_are_both_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        read_settings(None, NEEDED | changes)
    assert str(caught.value) == f"config: {sentence}"


def test_a_later_change_is_checked_too() -> None:
    training = TrainingSettings(batch_size=8, micro_batch_size=4)
    with pytest.raises(ValidationError, match="not a multiple of micro_batch_size 3"):
        training.micro_batch_size = 3


def test_what_is_missing_is_named_with_the_remedy() -> None:
    with pytest.raises(InputError, match="encoder is missing; give --encoder"):
        read_settings(None, {"data": "d", "llm": "l"})


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b", "\x00"])
def test_a_file_that_is_no_tree_of_keys_is_refused_in_one_sentence(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "settings.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"settings\.yaml") as caught:
        read_settings(tmp_path / "settings.yaml", {})
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_settings(tmp_path / "nowhere.yaml", {})


def test_a_dotted_key_below_a_plain_value_is_refused(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, NEEDED | {"training": "fast"})
    with pytest.raises(InputError, match="training must hold keys and values"):
        read_settings(file, {"training.epochs": 1})


# Gates


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({}, "linear"),
        ({"adapter.gate": "residual"}, "residual"),
        ({"adapter.gate.name": "top-k", "adapter.gate.k": 1}, {"name": "top-k", "k": 1}),
        ({"adapter.gate": {"name": "mlp", "width": 7}}, {"name": "mlp", "width": 7}),
        ({"adapter.gate": {"name": "mlp", "width": 128}}, "mlp"),
    ],
)
def test_a_gate_is_written_as_its_name_and_the_options_that_were_changed(
    tmp_path: Path, changes: dict[str, Any], written: Any
) -> None:
    settings = read_settings(None, NEEDED | changes)
    write_settings(settings, tmp_path / "settings.yaml")
    tree = yaml.safe_load((tmp_path / "settings.yaml").read_text())
    assert tree["adapter"]["gate"] == written
    assert read_settings(tmp_path / "settings.yaml", {}) == settings


def test_an_option_is_set_on_a_gate_that_a_file_names(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, {**NEEDED, "adapter": {"gate": "top-k"}})
    assert read_settings(file, {"adapter.gate.k": 3}).adapter.gate == TopK(k=3)
    assert read_settings(file, {"adapter.gate": "uniform"}).adapter.gate == Uniform()


@pytest.mark.parametrize(
    ("gate", "sentence"),
    [
        ("router", "adapter.gate in the options is 'router'; choose one of linear, mlp"),
        ({"k": 2}, "adapter.gate in the options has no name; choose one of linear, mlp"),
        ({"name": "linear", "k": 2}, "the unknown key adapter.gate.k;"),
        ({"name": "top-k", "k": 0}, "adapter.gate.k in the options is 0"),
        ({"name": "top-k", "k": 5}, "gate.k 5 is more than the 4 experts"),
        ({"name": "noisy", "k": 5}, "gate.k 5 is more than the 4 experts"),
        ({"name": "dropout", "p": 1.0}, "adapter.gate.p in the options is 1.0"),
    ],
)
def test_a_gate_that_does_not_exist_or_fit_is_named(gate: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        read_settings(None, NEEDED | {"adapter.gate": gate})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_experts", [1, 2, 4, 8, 16])
def test_one_to_sixteen_experts_share_a_rank_of_sixteen(num_experts: int) -> None:
    settings = read_settings(
        None, NEEDED | {"adapter.rank": 16, "adapter.num_experts": num_experts}
    )
    assert settings.adapter.experts == num_experts


# Baselines: one key apart


@pytest.mark.parametrize(
    ("changes", "experts", "titles_alone"),
    [
        ({}, 4, False),
        ({"adapter.method": "lora"}, 1, False),
        ({"adapter.method": "lora", "training.curriculum": "text"}, 1, True),
        ({"adapter.method": "none"}, 1, True),
    ],
    ids=["iLoRA", "hybrid LoRA", "text-only LoRA", "un-adapted"],
)
def test_a_baseline_is_a_key_away(
    changes: dict[str, Any], experts: int, titles_alone: bool
) -> None:
    settings = read_settings(None, NEEDED | changes)
    assert settings.adapter.experts == experts
    assert settings.titles_alone is titles_alone


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("q_proj", ["q_proj"]),
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        ("all-linear", "all-linear"),
        (r".*\.[qv]_proj", r".*\.[qv]_proj"),
    ],
)
def test_one_name_of_a_layer_is_a_list_of_one(given: Any, kept: Any) -> None:
    assert AdapterSettings(target_modules=given).target_modules == kept
