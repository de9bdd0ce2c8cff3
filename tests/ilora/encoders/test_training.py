from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ilora.comparison import find_evaluation, read_answers
from ilora.data.folder import DataFolder
from ilora.encoders import (
    EncoderResult,
    EncoderTraining,
    load_encoder,
    pad_histories,
    target_ranks,
    train_encoder,
)
from ilora.errors import InputError
from ilora.evaluation.metrics import ranks_of_target
from tests.ilora.encoders.chain_data import FAVOURITE, write_chain_folder

QUICK = EncoderTraining(max_epochs=2, batch_size=64)
SMALL = {"num_blocks": 1, "num_heads": 1, "dropout": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return write_chain_folder(tmp_path_factory.mktemp("data") / "chain", num_users=1000)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return write_chain_folder(tmp_path_factory.mktemp("data") / "small", num_users=60)


@pytest.fixture(scope="module")
def trained(small_folder: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> EncoderResult:
    out = tmp_path_factory.mktemp("encoder") / "sasrec"
    return train_encoder(
        small_folder, out, seed=3, hidden_size=16, options=SMALL, training=QUICK, device="cpu"
    )


def hit_ratio(ranks: np.ndarray) -> float:
    return float((ranks == 0).mean())


@pytest.mark.parametrize(
    ("name", "options"),
    [("sasrec", SMALL), ("gru4rec", {"dropout": 0.1}), ("caser", {"dropout": 0.1})],
    ids=["sasrec", "gru4rec", "caser"],
)
def test_an_encoder_learns_the_favourite_successor_and_popularity_does_not(
    folder: DataFolder, tmp_path: Path, name: str, options: dict[str, float]
) -> None:
    training = EncoderTraining(max_epochs=8, learning_rate=1e-2)
    result = train_encoder(
        folder,
        tmp_path / "out",
        name=name,
        hidden_size=32,
        options=options,
        training=training,
        device="cpu",
    )
    ranked = folder.ranked_rows("test")
    # Whoever knows the successors is right whenever the favourite came next: with probability
    # FAVOURITE, so on n rows hardly ever less than three standard deviations below it.
    floor = FAVOURITE - 3 * math.sqrt(FAVOURITE * (1 - FAVOURITE) / len(ranked))
    assert result.metrics["test"]["hr@1"] >= floor
    counts = np.bincount([row.target for row in folder.rows("train", min_history=0)])
    popular = ranks_of_target(
        [counts[list(items)] for _, items in ranked],
        [items.index(row.target) for row, items in ranked],
    )
    # All items are equally popular, so popularity is a guess among twenty.
    guess = 1 / 20
    assert hit_ratio(popular) <= guess + 3 * math.sqrt(guess * (1 - guess) / len(ranked))


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(
    small_folder: DataFolder, trained: EncoderResult, tmp_path: Path
) -> None:
    def train(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed + 100)  # the global generator has no say
        return train_encoder(
            small_folder,
            tmp_path / str(seed),
            seed=seed,
            hidden_size=16,
            options=SMALL,
            training=QUICK,
            device="cpu",
        ).encoder.state_dict()

    first = trained.encoder.state_dict()
    again, other = train(3), train(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["item_embeddings.weight"], other["item_embeddings.weight"])


def test_training_leaves_the_global_generator_alone(
    small_folder: DataFolder, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    train_encoder(
        small_folder, tmp_path / "out", hidden_size=8, options=SMALL, training=QUICK, device="cpu"
    )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["gru4rec", "caser"])
def test_every_encoder_comes_back_from_its_folder_to_the_bit(
    small_folder: DataFolder, tmp_path: Path, name: str
) -> None:
    result = train_encoder(
        small_folder, tmp_path / "out", name=name, hidden_size=16, training=QUICK, device="cpu"
    )
    loaded = load_encoder(tmp_path / "out")
    histories = pad_histories([[1, 2, 3], []], small_folder.window, loaded.num_items)
    assert type(loaded) is type(result.encoder)
    assert torch.equal(
        loaded.history_representation(histories), result.encoder.history_representation(histories)
    )
    ranks = target_ranks(loaded, small_folder, "test")
    assert result.metrics["test"]["hr@1"] == hit_ratio(ranks)
    answers = read_answers(find_evaluation(tmp_path / "out", "test-rank"), name)
    assert answers.values.tolist() == (ranks == 0).tolist()


def test_a_loaded_encoder_is_the_trained_one_to_the_bit(
    small_folder: DataFolder, trained: EncoderResult
) -> None:
    loaded = load_encoder(trained.path, num_items=len(small_folder.catalog))
    histories = pad_histories([[1, 2, 3], []], small_folder.window, loaded.num_items)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.options == SMALL
    assert torch.equal(
        loaded.history_representation(histories), trained.encoder.history_representation(histories)
    )


def test_the_metrics_file_tells_data_seed_best_epoch_and_intervals(
    small_folder: DataFolder, trained: EncoderResult
) -> None:
    written = json.loads((trained.path / "metrics.json").read_text(encoding="utf-8"))
    assert written == trained.metrics
    assert written["data"] == {"name": "chain", "sha256": small_folder.sha256}
    assert (written["seed"], written["epochs"]) == (3, 2)
    for split in ("val", "test"):
        low, high = written[split]["ci95"]["hr@1"]
        assert low <= written[split]["hr@1"] <= high
        assert written[split]["n"] == len(small_folder.rows(split, min_history=3))


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_row_of_the_ranking_is_written_beside_its_figures(
    small_folder: DataFolder, trained: EncoderResult, split: Any
) -> None:
    place = trained.path / "evaluation" / f"{split}-encoder"
    metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
    assert metrics["data"]["sha256"] == small_folder.sha256
    assert metrics["hr@1"] == trained.metrics[split]["hr@1"]
    assert metrics["hr@1"] == np.mean([line["hit"] for line in lines])
    ranks = target_ranks(trained.encoder, small_folder, split)
    assert [line["rank"] for line in lines] == ranks.tolist()
    assert [line["hit"] for line in lines] == (ranks == 0).tolist()
    shown = [(line["user"], line["history"], line["target"], line["candidates"]) for line in lines]
    assert shown == [
        (row.user, list(row.history), row.target, list(candidates))
        for row, candidates in small_folder.ranked_rows(split, min_history=3)
    ]


def test_the_weights_of_the_best_epoch_are_kept(small_folder: DataFolder, tmp_path: Path) -> None:
    # So high a learning rate that validation goes up and down.
    training = EncoderTraining(max_epochs=6, patience=6, learning_rate=0.03, batch_size=64)
    result = train_encoder(
        small_folder,
        tmp_path / "out",
        hidden_size=16,
        options=SMALL,
        training=training,
        device="cpu",
    )
    curve = result.metrics["curve"]
    best = max(curve, key=lambda point: point["val_ndcg"])
    assert best["epoch"] == result.metrics["best_epoch"] < len(curve)
    assert result.metrics["val"]["ndcg"] == pytest.approx(best["val_ndcg"])


def test_training_stops_once_patience_is_spent(small_folder: DataFolder, tmp_path: Path) -> None:
    training = EncoderTraining(max_epochs=50, patience=1, learning_rate=1e-12)
    result = train_encoder(
        small_folder,
        tmp_path / "out",
        hidden_size=8,
        options=SMALL,
        training=training,
        device="cpu",
    )
    assert (result.metrics["best_epoch"], result.metrics["epochs"]) == (1, 2)


def test_ranks_are_those_of_the_frozen_candidates(
    small_folder: DataFolder, trained: EncoderResult
) -> None:
    ranks = target_ranks(trained.encoder, small_folder, "test", min_history=3)
    rows = small_folder.ranked_rows("test", min_history=3)
    assert len(ranks) == len(rows)
    row, items = rows[0]
    histories = pad_histories([row.history], small_folder.window, trained.encoder.num_items)
    scores = trained.encoder.scores(histories, torch.tensor([items]))[0]
    assert ranks[0] == (scores > scores[items.index(row.target)]).sum()


def test_a_folder_that_is_no_encoder_is_not_overwritten(
    small_folder: DataFolder, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="not an encoder's folder"):
        train_encoder(small_folder, tmp_path, training=QUICK)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_minimum_history_that_leaves_no_row_is_refused_before_training(
    small_folder: DataFolder, tmp_path: Path
) -> None:
    training = EncoderTraining(min_history=11)
    with pytest.raises(InputError, match=r"min_history is 11.*no val row"):
        train_encoder(small_folder, tmp_path / "out", training=training)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [{"learning_rate": 0.0}, {"batch_size": 0}, {"patience": 0}, {"weight_decay": -1.0}]
)
def test_a_training_option_out_of_range_is_named(option: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        EncoderTraining(**option)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_learns_like_the_cpu_and_its_encoder_comes_back_on_the_cpu(
    small_folder: DataFolder, tmp_path: Path
) -> None:
    options = {**SMALL, "dropout": 0.0}  # dropout draws differ between devices
    curves = []
    for device in ("cpu", "cuda"):
        result = train_encoder(
            small_folder,
            tmp_path / device,
            hidden_size=16,
            options=options,
            training=QUICK,
            device=device,
        )
        assert result.encoder.item_embeddings.weight.device.type == "cpu"
        curves.append([point["loss"] for point in result.metrics["curve"]])
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(
    small_folder: DataFolder, tmp_path: Path, device: str
) -> None:
    with pytest.raises(InputError, match=f"device: '{device}'"):
        train_encoder(small_folder, tmp_path / "out", training=QUICK, device=device)


def test_training_that_diverges_is_reported_and_nothing_is_written(
    small_folder: DataFolder, tmp_path: Path
) -> None:
    training = EncoderTraining(learning_rate=1e30, max_epochs=3)
    with pytest.raises(InputError, match=r"learning_rate is 1e\+30.*diverged"):
        train_encoder(
            small_folder, tmp_path / "out", options=SMALL, training=training, device="cpu"
        )
    assert not (tmp_path / "out").exists()
