"""The files in ``configs/``: they parse, say what was published, and train."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilora.config import read_settings
from ilora.data.folder import DataFolder
from ilora.model_folder import load_model
from ilora.training import train
from tests.ilora.tiny_world import World

CONFIGS = Path(__file__).parents[2] / "configs"
STUDIES = CONFIGS / "studies"  # see tests/ilora/test_studies.py
FILES = sorted(file for file in CONFIGS.rglob("*.yaml") if file.parent != STUDIES)
RATES = {
    "paper/lastfm": 2e-4,
    "paper/movielens": 1e-4,
    "paper/steam": 1e-4,
    "released/lastfm": 7e-4,
    "released/movielens": 8e-4,
    "released/steam": 5e-4,
}


def name_of(file: Path) -> str:
    return str(file.relative_to(CONFIGS).with_suffix(""))


def test_there_is_a_file_for_every_published_setting() -> None:
    assert {name_of(file) for file in FILES} == set(RATES)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_says_what_was_published(file: Path) -> None:
    settings = read_settings(file, {})
    adapter, training = settings.adapter, settings.training
    assert settings.llm == "meta-llama/Llama-2-7b-hf"
    assert str(settings.data) == f"data/{file.stem}"
    assert str(settings.encoder) == f"models/sasrec-{file.stem}"
    assert (adapter.experts, adapter.rank, adapter.alpha, adapter.dropout) == (4, 8, 32, 0.1)
    assert (training.batch_size, training.epochs, training.warmup_ratio) == (128, 5, 0.05)
    assert training.learning_rate == RATES[name_of(file)]
    assert training.gate_learning_rate_ratio == 0.3
    published = {"paper": ("linear", "total"), "released": ("residual", "expert")}
    assert (adapter.gate.name, adapter.scaling) == published[file.parent.name]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_commands_in_a_files_head_name_that_file_and_its_data(file: Path) -> None:
    head = file.read_text(encoding="utf-8")
    assert f"ilora train --config configs/{name_of(file)}.yaml" in head
    assert f"--data data/{file.stem} --out models/sasrec-{file.stem}" in head


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["paper", "released"])
def test_a_file_trains_a_small_local_model_where_one_key_says_so(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for link, place in {
        "data/movielens": world.folder.path,
        "models/sasrec-movielens": world.encoder,
    }.items():
        (tmp_path / link).parent.mkdir()
        (tmp_path / link).symlink_to(place)
    monkeypatch.chdir(tmp_path)
    settings = read_settings(CONFIGS / kind / "movielens.yaml", {"llm": str(world.llm)})
    settings.training.max_steps = 2  # five epochs would take too long for a test
    settings.training.evaluations = 0
    result = train(settings, tmp_path / "run", device="cpu")
    assert result.record["steps"] == 2
    loaded, config, _ = load_model(tmp_path / "run", device="cpu")
    assert config.adapter == settings.adapter
    assert loaded.gates(
        result.model.encoder.item_embeddings.weight.new_zeros(1, 3).long()
    ).shape == (1, 4)
    assert DataFolder.open(settings.data).sha256 == config.data.sha256
