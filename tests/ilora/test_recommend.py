"""One recommendation agrees with evaluation, and says what it chose from."""

from __future__ import annotations

import pytest
import torch

from ilora.data.catalog import Catalog
from ilora.data.collation import Collator
from ilora.encoders import pad_histories
from ilora.errors import InputError
from ilora.evaluation.decoding import decode_answers
from ilora.evaluation.ranking import score_candidates
from ilora.model import ILoRARecommender
from ilora.model_folder import ModelConfig
from ilora.recommend import encoder_candidates, recommend
from tests.ilora.tiny_world import World

Built = tuple[ILoRARecommender, ModelConfig]


@pytest.fixture(scope="module")
def built(world: World) -> Built:
    return world.built()


def test_a_test_row_is_ranked_and_answered_as_in_evaluation(world: World, built: Built) -> None:
    model, config = built
    rows = world.rows(model, "test", answer=False)
    collator = Collator(model.tokenizer, len(world.folder.catalog), world.folder.window, "left")
    scores = next(score_candidates(model, rows, collator, batch_size=7))
    answer = next(decode_answers(model, rows, collator, batch_size=1))[0]
    candidates = rows.candidates(0)
    found = recommend(
        model, world.folder.catalog, config, rows.rows[0].history, candidates, top=len(candidates)
    )
    told = {one.item: one.mean_log_likelihood for one in found.ranking}
    wanted = dict(zip(candidates, scores.mean.tolist(), strict=True))
    assert told == pytest.approx(wanted, abs=1e-5)
    assert [one.item for one in found.ranking] == sorted(told, key=lambda item: -told[item])
    assert found.answer == answer
    assert found.candidates == candidates


def test_the_mixture_is_the_models(world: World, built: Built) -> None:
    model, config = built
    found = recommend(model, world.folder.catalog, config, [1, 2, 3], [4, 5])
    padded = pad_histories([[1, 2, 3]], world.folder.window, len(world.folder.catalog))
    with torch.inference_mode():
        assert found.gate == pytest.approx(model.gates(padded)[0].tolist())
    assert sum(found.gate) == pytest.approx(1)


def test_of_a_gate_per_layer_the_mean_mixture_is_told(world: World) -> None:
    model, config = world.built({"adapter.gate": "per-layer"})
    found = recommend(model, world.folder.catalog, config, [1, 2, 3], [4, 5])
    with torch.inference_mode():
        layers = model.gates(torch.tensor([[1, 2, 3]]))[0]
    assert found.gate == pytest.approx(layers.mean(0).tolist())
    assert len(found.gate) == 4


@pytest.mark.parametrize("curriculum", ["text", "hybrid"])
def test_a_model_of_titles_alone_is_asked_in_titles_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, curriculum: str
) -> None:
    model, config = world.built({"training.curriculum": curriculum})
    seen: list[bool] = []
    embed = ILoRARecommender.embed

    def spy(self: ILoRARecommender, input_ids: torch.Tensor, *args: object) -> torch.Tensor:
        seen.append(bool((input_ids == self.placeholder_id).any()))
        return embed(self, input_ids, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ILoRARecommender, "embed", lambda *a, **_: spy(*a))
    recommend(model, world.folder.catalog, config, [1, 2, 3], [4, 5])
    assert seen
    assert set(seen) == {curriculum == "hybrid"}


def test_only_the_latest_window_is_read(world: World, built: Built) -> None:
    model, config = built
    history = [k % 8 for k in range(15)]
    found = recommend(model, world.folder.catalog, config, history, [9, 10, 11], top=1)
    assert found.history == tuple(history[-world.folder.window :])
    assert found == recommend(
        model, world.folder.catalog, config, found.history, [9, 10, 11], top=1
    )
    assert len(found.ranking) == 1


def test_candidates_are_the_encoders_best_without_the_history(world: World, built: Built) -> None:
    model, _ = built
    history = [0, 5, 9]
    found = encoder_candidates(model, world.folder.catalog, history, count=6)
    padded = pad_histories([history], world.folder.window, len(world.folder.catalog))
    with torch.inference_mode():
        scores = model.encoder.scores(padded)[0]
        scores[history] = -torch.inf
    assert list(found) == scores.topk(6).indices.tolist()


def test_candidates_share_no_title(world: World, built: Built) -> None:
    model, _ = built
    titles = [f"Title {item % 4}" for item in range(len(world.folder.catalog))]
    found = encoder_candidates(model, Catalog(tuple(titles)), [0])
    assert sorted(titles[item] for item in found) == ["Title 1", "Title 2", "Title 3"]


@pytest.mark.parametrize(
    ("history", "candidates", "top", "told"),
    [
        ([], None, 5, "history is empty"),
        ([1, 999], None, 5, "item 999 is not in the catalogue"),
        ([1], [], 5, "candidates is empty"),
        ([1], [2, -1], 5, "item -1 is not in the catalogue"),
        ([1], [2, 3, 2], 5, "more than once"),
        ([1], None, 0, "top is 0"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    world: World,
    built: Built,
    history: list[int],
    candidates: list[int] | None,
    top: int,
    told: str,
) -> None:
    model, config = built
    with pytest.raises(InputError, match=told):
        recommend(model, world.folder.catalog, config, history, candidates, top)
