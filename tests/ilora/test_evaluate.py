"""Evaluation: figures that follow from the rows written beside them, and scores done by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ilora.evaluation.protocols
from ilora.data.catalog import Catalog
from ilora.data.collation import Collator
from ilora.data.folder import DataFolder
from ilora.data.prompts import IGNORED_LABEL
from ilora.data.synthetic import build_synthetic
from ilora.errors import InputError
from ilora.evaluation.evaluate import evaluate
from ilora.evaluation.metrics import ranking_metrics
from ilora.evaluation.ranking import CandidateScores, score_candidates
from ilora.evaluation.titles import judge_answer
from ilora.model import ILoRARecommender
from tests.ilora.tiny_world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(world: World) -> ILoRARecommender:
    """Experts that show."""
    return world.recommender()


def written(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The metrics and the predictions on the disk."""
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics, [json.loads(line) for line in lines]


@pytest.mark.parametrize("decode", ["free", "constrained", "rank"])
def test_metrics_hold_everything_that_a_reader_needs(
    world: World, model: ILoRARecommender, tmp_path: Path, decode: Any
) -> None:
    told = evaluate(model, world.folder, "val", decode=decode, out=tmp_path, seed=7)
    metrics, predictions = written(tmp_path)
    assert metrics == json.loads(json.dumps(told))
    ratios = ("hit_ratio_at_1", "hit_ratio_at_1_valid", "valid_ratio")
    assert {*ratios, "n", "ci95", "decode", "split", "seed", "data", "versions"} <= metrics.keys()
    assert set(ratios) <= metrics["ci95"].keys()
    assert (metrics["decode"], metrics["split"], metrics["seed"]) == (decode, "val", 7)
    assert metrics["data"] == {"name": "synthetic", "sha256": world.folder.sha256}
    assert {"torch", "transformers", "peft"} <= metrics["versions"].keys()
    assert metrics["n"] == len(predictions) == len(world.folder.rows("val", 3))
    assert metrics["seconds"] > 0
    if decode == "rank":
        measures = ("hr@1", "hr@3", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr")
        for measured in (metrics, metrics["by_sum"], metrics["by_character"]):
            assert set(measures) <= measured.keys()
            assert set(measures) <= measured["ci95"].keys()


@pytest.mark.parametrize("decode", ["free", "constrained", "rank"])
def test_predictions_are_the_folders_rows_with_their_frozen_candidates(
    world: World, model: ILoRARecommender, tmp_path: Path, decode: Any
) -> None:
    evaluate(model, world.folder, "test", decode=decode, out=tmp_path)
    expected = [
        {
            "user": row.user,
            "history": list(row.history),
            "target": row.target,
            "candidates": list(candidates),
        }
        for row, candidates in world.folder.ranked_rows("test", 3)
    ]
    _, predictions = written(tmp_path)
    assert [{k: p[k] for k in expected[0]} for p in predictions] == expected


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of every kind: right, right in other words, another candidate, none of them."""

    def answer(model: Any, rows: Any, collator: Any, *, batch_size: int) -> Iterator[list[str]]:
        for i, row in enumerate(rows.rows):
            titles = rows.builder.titles
            other = next(c for c in rows.candidates(i) if titles[c] != titles[row.target])
            right, wrong = titles[row.target], titles[other]
            kinds = [right, f' "{right.upper()}". ', wrong, f"{right}, {wrong}", ""]
            yield [kinds[i % len(kinds)]]

    monkeypatch.setattr(ilora.evaluation.protocols, "decode_answers", answer)


@pytest.mark.usefixtures("scripted")
def test_the_answers_on_the_disk_give_the_figures_beside_them(
    world: World, model: ILoRARecommender, tmp_path: Path
) -> None:
    evaluate(model, world.folder, "test", out=tmp_path)
    metrics, predictions = written(tmp_path)
    titles = world.folder.catalog.titles
    hits, valid = 0, 0
    for line in predictions:
        candidates = [titles[c] for c in line["candidates"]]
        judged = judge_answer(line["answer"], candidates, titles[line["target"]])
        assert line["hit"] == judged.hit == (line["named"] == line["target"])
        assert (line["named"] is not None) == judged.valid
        hits += judged.hit
        valid += judged.valid
    assert (hits, valid, len(predictions)) == (3, 4, 6)  # kinds 0 1 2 3 4 0
    assert metrics["hit_ratio_at_1"] == hits / 6
    assert metrics["hit_ratio_at_1_valid"] == hits / valid
    assert metrics["valid_ratio"] == valid / 6
    for name in ("hit_ratio_at_1", "hit_ratio_at_1_valid", "valid_ratio"):
        low, high = metrics["ci95"][name]
        assert 0 <= low < metrics[name] < high <= 1


def test_the_scores_on_the_disk_give_the_figures_beside_them(
    world: World, model: ILoRARecommender, tmp_path: Path
) -> None:
    evaluate(model, world.folder, "val", decode="rank", out=tmp_path, seed=5)
    metrics, predictions = written(tmp_path)
    for key, measured in (
        ("mean_log_likelihood", metrics),
        ("sum_log_likelihood", metrics["by_sum"]),
        ("per_character_log_likelihood", metrics["by_character"]),
    ):
        ranks = []
        for line in predictions:
            own = line[key][line["candidates"].index(line["target"])]
            ranks.append(sum(score > own for score in line[key]))
        expected = ranking_metrics(np.array(ranks), seed=5)
        assert {name: measured[name] for name in expected if name != "ci95"} == {
            name: value for name, value in expected.items() if name != "ci95"
        }
        assert expected["ci95"].items() <= measured["ci95"].items()
        if measured is metrics:
            assert [line["rank"] for line in predictions] == ranks
    assert [line["hit"] for line in predictions] == [line["rank"] == 0 for line in predictions]
    assert metrics["hit_ratio_at_1"] == metrics["hit_ratio_at_1_valid"] == metrics["hr@1"]
    assert metrics["valid_ratio"] == 1


@pytest.mark.parametrize("batch_size", [3, 64])
def test_scores_are_those_of_one_candidate_at_a_time_without_padding(
    world: World, model: ILoRARecommender, batch_size: int
) -> None:
    rows = world.rows(model, "test", answer=False)
    collator = Collator(model.tokenizer, len(world.folder.catalog), world.folder.window, "left")
    scored = list(score_candidates(model, rows, collator, batch_size=batch_size))
    assert len(scored) == len(rows)
    for i in (0, len(rows) - 1):
        direct = [by_hand(world, model, i, item) for item in rows.candidates(i)]
        expected = CandidateScores(
            sum=np.array([sum(tokens) for tokens in direct]),
            mean=np.array([np.mean(tokens) for tokens in direct]),
            per_character=np.array([]),
        )
        np.testing.assert_allclose(scored[i].sum, expected.sum, rtol=1e-5)
        np.testing.assert_allclose(scored[i].mean, expected.mean, rtol=1e-5)
        assert len({len(tokens) for tokens in direct}) > 1  # titles of different lengths


def by_hand(world: World, model: ILoRARecommender, index: int, item: int) -> list[float]:
    """Log-likelihood of each token of a candidate's title and of the terminator."""
    row, candidates = world.folder.ranked_rows("test", 3)[index]
    builder = world.rows(model, "test", answer=False).builder
    prompt = builder.encode(row, candidates, 0, answer=False)
    answer = builder.answer_ids(item)
    assert answer[-1] == model.tokenizer.eos_token_id
    ids = torch.tensor([prompt.input_ids + answer])
    items = torch.tensor([prompt.item_ids + [-1] * len(answer)])
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            histories=world.batch(model, [prompt])["histories"],
            item_ids=items,
        ).logits[0]
    told = logits.double().log_softmax(-1)
    start = len(prompt.input_ids)
    return [float(told[start + k - 1, token]) for k, token in enumerate(answer)]


def test_a_prompt_that_is_scored_has_no_answer_of_its_own(
    world: World, model: ILoRARecommender
) -> None:
    row = world.rows(model, "test", answer=False)[0]
    assert set(row.labels) == {IGNORED_LABEL}


def test_answers_do_not_depend_on_the_size_of_the_batch(
    world: World, model: ILoRARecommender, tmp_path: Path
) -> None:
    told = []
    for size in (1, 4, 32):
        evaluate(model, world.folder, "test", out=tmp_path / str(size), batch_size=size)
        told.append([line["answer"] for line in written(tmp_path / str(size))[1]])
    assert told[0] == told[1] == told[2]
    assert any(told[0])


@pytest.mark.parametrize("more", ["", " too"], ids=["that stops", "that goes on"])
def test_the_longest_title_can_be_answered_whole_and_what_follows_it_is_seen(
    world: World,
    model: ILoRARecommender,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: str,
) -> None:
    rows = world.rows(model, "test", answer=False)
    longest = max(rows.candidates(0), key=lambda item: len(rows.builder.answer_ids(item)))
    title = world.folder.catalog.title(longest)
    *spoken, end = rows.builder.answer_ids(longest)
    after = model.tokenizer(more * 5, add_special_tokens=False)["input_ids"]

    def speak(self: Any, batch: Any, *, max_new_tokens: int) -> torch.Tensor:
        return torch.tensor([[*spoken, *after, end][:max_new_tokens]])

    monkeypatch.setattr(ILoRARecommender, "generate", speak)
    evaluate(model, world.folder, "test", out=tmp_path, max_rows=1)
    (line,) = written(tmp_path)[1]
    assert line["answer"].startswith(title)
    assert (line["named"] == longest) == (more == "")


def test_only_the_first_rows_are_measured_where_that_is_asked_for(
    world: World, model: ILoRARecommender, tmp_path: Path
) -> None:
    metrics = evaluate(model, world.folder, "test", decode="rank", out=tmp_path, max_rows=2)
    _, predictions = written(tmp_path)
    assert metrics["n"] == len(predictions) == 2
    expected = world.folder.rows("test", 3)[:2]
    assert [line["user"] for line in predictions] == [row.user for row in expected]


def test_nothing_is_written_where_no_place_is_given(
    world: World, model: ILoRARecommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(model, world.folder, "test", max_rows=1)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_told_before_the_work(
    world: World, model: ILoRARecommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(ilora.evaluation.protocols, "decode_answers", answer)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        evaluate(model, world.folder, out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"decode": "beam"}, "decode is 'beam'; it must be one of free, constrained, rank"),
        ({"max_rows": 0}, "max_rows is 0"),
        ({"max_rows": -1}, "max_rows is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"min_history": 99}, "lower it"),
        ({"split": "dev"}, "split is 'dev'"),
    ],
)
def test_an_option_out_of_range_is_refused(
    world: World, model: ILoRARecommender, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(model, world.folder, out=tmp_path / "out", **options)
    assert reason in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """Data of a catalogue of 32 items."""
    return build_synthetic(tmp_path_factory.mktemp("larger") / "data", num_users=60, num_items=32)


def test_the_data_of_another_catalogue_is_refused(
    model: ILoRARecommender, larger: DataFolder
) -> None:
    with pytest.raises(InputError, match="has 32 items, but the model was trained on 28"):
        evaluate(model, larger)


def test_ids_that_mean_other_titles_are_refused(world: World, model: ILoRARecommender) -> None:
    titles = list(world.folder.catalog.titles)
    titles[3], titles[9] = titles[9], titles[3]
    with pytest.raises(InputError, match=f"item 3 is '{titles[9]}'") as caught:
        evaluate(model, world.folder, catalog=Catalog(tuple(titles)))
    assert f"and '{titles[3]}' in the model's" in str(caught.value)
    evaluate(model, world.folder, catalog=world.folder.catalog, max_rows=1)
