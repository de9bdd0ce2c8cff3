"""Constrained decoding says nothing but titles, and says what the model finds most likely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from ilora.config import AdapterSettings
from ilora.encoders import load_encoder
from ilora.errors import InputError
from ilora.evaluation.constrained import TitleTrie, decode_candidates
from ilora.evaluation.ranking import score_candidates
from ilora.model import ILoRARecommender
from ilora.model_folder import load_llm
from ilora.tokens import load_tokenizer
from tests.ilora.evaluation.test_ranking import CANDIDATES, gpt2, llama, recommender, rows_of
from tests.ilora.tiny_world import CPU, World, stir

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLING: dict[str, Any] = {
    "do_sample": True,
    "temperature": 5.0,
    "top_k": 3,
    "top_p": 0.5,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 9,
    "suppress_tokens": [5, 6],
    "begin_suppress_tokens": list(range(20, 90)),
    "min_new_tokens": 30,
    "max_new_tokens": 1,
    "num_beams": 2,
    "num_return_sequences": 2,
    "length_penalty": -4.0,
}


def choose(world: World, model: ILoRARecommender, **options: Any) -> list[tuple[str, int | None]]:
    rows, collator = rows_of(world, model)
    batches = decode_candidates(model, rows, collator, **({"batch_size": 2} | options))
    return [choice for batch in batches for choice in batch]


def test_a_trie_knows_what_may_follow_and_what_is_named() -> None:
    answers = [[1, 2, 0], [1, 2, 3, 0], [4, 0], [1, 2, 0], [1, 5, 0]]
    trie = TitleTrie(answers, ["Portal", "Portal 2", "Up", "PORTAL", "Porto"])
    assert trie.depth == 4
    assert trie.after([]) == [1, 4]
    assert trie.after([1]) == [2, 5]
    assert trie.after([1, 2]) == [0, 3]  # the title may close here or go on
    assert trie.after([1, 2, 0]) == trie.after([9]) == []
    assert trie.candidate([1, 2, 0]) == 0  # the first of its namesakes
    assert trie.candidate([1, 2, 3, 0]) == 1
    assert trie.candidate([1, 2]) is None
    assert trie.candidate([]) is None


def test_titles_that_a_tokenizer_spells_alike_name_none_of_them() -> None:
    trie = TitleTrie([[8, 8, 0], [8, 8, 0], [3, 0]], ["音楽", "映画", "A"])
    assert trie.candidate([8, 8, 0]) is None
    assert trie.candidate([3, 0]) == 2


@pytest.mark.parametrize("beams", [1, 2, 4, 9])  # 9: more than any row has candidates
@pytest.mark.parametrize("build", [llama, gpt2])
def test_every_answer_is_a_candidate(world: World, build: Any, beams: int) -> None:
    model = recommender(world, build)
    rows, _ = rows_of(world, model)
    for user, (text, choice) in enumerate(choose(world, model, beams=beams)):
        assert choice is not None
        assert text == rows.builder.titles[CANDIDATES[user][choice]]


def test_free_answers_of_the_same_model_are_none_of_the_candidates(world: World) -> None:
    # Otherwise the test above would hold without any constraint.
    model = recommender(world, llama)
    rows, collator = rows_of(world, model)
    free = model.generate(
        world.batch(model, [rows[user] for user in range(3)]), max_new_tokens=20
    ).tolist()
    spoken = [rows.builder.answer_ids(c) for own in CANDIDATES for c in own]
    assert not any(row[: len(title)] == title for row in free for title in spoken)
    assert collator is not None


@pytest.mark.parametrize("gate", ["linear", "per-layer"])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_with_a_beam_for_every_candidate_the_answer_is_the_first_of_the_ranking(
    world: World, build: Any, gate: str
) -> None:
    model = recommender(world, build, gate=gate)
    rows, collator = rows_of(world, model)
    scored = list(score_candidates(model, rows, collator, batch_size=3))
    titles = rows.builder.titles
    best = [
        titles[own[int(one.mean.argmax())]] for own, one in zip(CANDIDATES, scored, strict=True)
    ]
    assert [text for text, _ in choose(world, model, beams=9)] == best


def test_greedy_follows_the_likeliest_token_that_leads_to_a_title(world: World) -> None:
    model = recommender(world, llama)
    rows, _ = rows_of(world, model)
    for user, (_, choice) in enumerate(choose(world, model)):
        paths = [rows.builder.answer_ids(c) for c in CANDIDATES[user]]
        spoken: list[int] = []
        while spoken not in paths:
            prompt = rows[user]
            batch = world.batch(model, [prompt])
            ids = torch.cat([batch["input_ids"], torch.tensor([spoken], dtype=torch.int64)], 1)
            items = torch.cat([batch["item_ids"], torch.full((1, len(spoken)), -1)], 1)
            with torch.no_grad():
                logits = model(ids, torch.ones_like(ids), batch["histories"], items).logits[0, -1]
            following = {path[len(spoken)] for path in paths if path[: len(spoken)] == spoken}
            spoken.append(max(following, key=lambda token: float(logits[token])))
        assert choice == paths.index(spoken)


@pytest.mark.parametrize("beams", [1, 3])
def test_choices_do_not_depend_on_the_size_of_the_batch(world: World, beams: int) -> None:
    model = recommender(world, llama)
    told = [choose(world, model, beams=beams, batch_size=size) for size in (1, 2, 3)]
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_models_own_generation_settings_cannot_leak_in(
    world: World, beams: int, when: str
) -> None:
    clean = stir(
        ILoRARecommender(
            load_llm(str(world.llm), torch.float32, CPU),
            load_tokenizer(world.llm),
            load_encoder(world.encoder),
            AdapterSettings(),
        )
    ).eval()
    llm = load_llm(str(world.llm), torch.float32, CPU)
    if when == "before":
        llm.generation_config = GenerationConfig(**SAMPLING)
    model = ILoRARecommender(
        llm, load_tokenizer(world.llm), load_encoder(world.encoder), AdapterSettings()
    ).eval()
    model.load_state_dict(clean.state_dict())
    if when == "after":
        model.llm.generation_config = GenerationConfig(**SAMPLING)
    torch.manual_seed(0)
    assert choose(world, model, beams=beams) == choose(world, clean, beams=beams)


def test_no_beam_at_all_is_refused(world: World) -> None:
    with pytest.raises(InputError, match="beams is 0"):
        choose(world, recommender(world, llama), beams=0)
