"""The published encoders compute what the published code computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ilora.encoders import SequenceEncoder, build_encoder, pad_histories
from ilora.errors import InputError
from ilora.reference_weights import encoder_names
from tests.ilora.published_code import GRU, Caser, SASRec

NUM_ITEMS, SIZE, WINDOW = 30, 8, 5
HISTORIES = [[3, 1, 4, 1, 5], [9], [2, 7], list(range(12)), [28, 29, 0]]

PAIRS = {
    "llara-sasrec": (lambda: SASRec(NUM_ITEMS, SIZE, WINDOW), {"num_heads": 1}),
    "llara-sasrec of two heads": (lambda: SASRec(NUM_ITEMS, SIZE, WINDOW, 2), {"num_heads": 2}),
    "llara-gru": (lambda: GRU(NUM_ITEMS, SIZE, WINDOW), {}),
    "llara-caser": (lambda: Caser(NUM_ITEMS, SIZE, WINDOW), {"heights": "2,4", "num_filters": 3}),
}


def pair(name: str) -> tuple[Any, SequenceEncoder]:
    """Their network and ours with the same weights, in eval mode."""
    make, options = PAIRS[name]
    torch.manual_seed(0)
    theirs = make().eval()
    with torch.no_grad():  # norms that do something
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    kind = name.split(" ")[0]
    ours = build_encoder(kind, NUM_ITEMS, SIZE, WINDOW, **options).eval()
    names, own = encoder_names(kind), ours.state_dict()
    state = {names(n): v.reshape(own[names(n)].shape) for n, v in theirs.state_dict().items()}
    ours.load_state_dict(state, strict=True)
    return theirs, ours


def right_padded(histories: list[list[int]]) -> tuple[Tensor, Tensor]:
    kept = [history[-WINDOW:] for history in histories]
    rows = [items + [NUM_ITEMS] * (WINDOW - len(items)) for items in kept]
    return torch.tensor(rows), torch.tensor([len(items) for items in kept])


@pytest.mark.parametrize("name", PAIRS)
def test_representation_and_scores_are_those_of_the_published_code(name: str) -> None:
    theirs, ours = pair(name)
    z = theirs.represent(*right_padded(HISTORIES))
    padded = pad_histories(HISTORIES, WINDOW, NUM_ITEMS)
    torch.testing.assert_close(ours.history_representation(padded), z)
    torch.testing.assert_close(ours.scores(padded), theirs.s_fc(z))
    candidates = torch.tensor([[1, 2, 29]] * len(HISTORIES))
    torch.testing.assert_close(
        ours.scores(padded, candidates), theirs.s_fc(z).gather(1, candidates)
    )
    assert z.shape[1] == ours.representation_size
    items = torch.tensor([[0, 29]])
    torch.testing.assert_close(ours.item_embedding(items), theirs.item_embeddings(items))


@pytest.mark.parametrize("name", PAIRS)
def test_the_published_encoders_keep_the_contract_of_every_encoder(name: str) -> None:
    _, encoder = pair(name)
    with torch.no_grad():
        encoder.item_embeddings.weight[NUM_ITEMS] = 100.0  # which must not reach anything
    histories = pad_histories([[3, 1, 4], [], [7]], WINDOW, NUM_ITEMS)
    z = encoder.history_representation(histories)
    assert torch.isfinite(z).all()
    bare = encoder.history_representation(torch.tensor([[3, 1, 4]]))
    torch.testing.assert_close(z[:1], bare)
    empty = encoder.history_representation(torch.empty((1, 0), dtype=torch.int64))
    torch.testing.assert_close(z[1:2], empty)
    prefixes = encoder.prefix_representations(histories)
    assert prefixes.shape == (3, WINDOW, encoder.representation_size)
    torch.testing.assert_close(prefixes[:, -1], z)
    with pytest.raises(InputError, match="window is 5"):
        encoder.history_representation(torch.zeros((1, 6), dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("llara-sasrec", {"num_heads": 3}, "num_heads is 3"),
        ("llara-sasrec", {"dropout": 1.0}, "dropout is 1.0"),
        ("llara-caser", {"heights": "2,6"}, "heights is '2,6'"),
        ("llara-caser", {"heights": "two"}, "heights is 'two'"),
        ("llara-caser", {"num_filters": 0}, "num_filters is 0"),
    ],
)
def test_an_option_out_of_range_is_named(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        build_encoder(name, NUM_ITEMS, SIZE, WINDOW, **options)
