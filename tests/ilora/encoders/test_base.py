"""What holds for every encoder: padding, batches, prefixes, scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ilora.encoders import ENCODERS, SequenceEncoder, build_encoder, pad_histories
from ilora.errors import InputError

NUM_ITEMS = 30
HISTORIES = [[3, 1, 4, 1, 5], [9], [], list(range(10)), [2, 7]]


@pytest.fixture(params=sorted(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> SequenceEncoder:
    torch.manual_seed(0)
    return build_encoder(request.param, NUM_ITEMS, hidden_size=16, dropout=0.5).eval()


def test_histories_keep_their_latest_items_and_are_padded_on_the_left() -> None:
    padded = pad_histories([[1, 2, 3, 4], [5], []], window=3, num_items=8)
    assert padded.dtype == torch.int64
    assert padded.tolist() == [[2, 3, 4], [8, 8, 5], [8, 8, 8]]


def test_no_histories_give_an_empty_batch_of_the_window_s_width() -> None:
    assert pad_histories([], window=3, num_items=8).shape == (0, 3)


@pytest.mark.parametrize("item", [-1, 8])
def test_a_history_item_outside_the_catalogue_is_refused(item: int) -> None:
    with pytest.raises(InputError, match=f"item {item}.*0 to 7"):
        pad_histories([[1, item]], window=3, num_items=8)


def test_left_padding_does_not_change_the_representation(encoder: SequenceEncoder) -> None:
    bare = encoder.history_representation(torch.tensor([[3, 1, 4]]))
    padded = encoder.history_representation(pad_histories([[3, 1, 4]], 10, NUM_ITEMS))
    torch.testing.assert_close(padded, bare)


def test_the_vector_of_the_padding_never_reaches_a_representation(
    encoder: SequenceEncoder,
) -> None:
    histories = pad_histories(HISTORIES, 10, NUM_ITEMS)
    before = encoder.history_representation(histories)
    with torch.no_grad():
        encoder.item_embeddings.weight[NUM_ITEMS] = 100.0
    assert torch.equal(encoder.history_representation(histories), before)


def test_the_order_of_the_history_matters(encoder: SequenceEncoder) -> None:
    forth, back = encoder.history_representation(torch.tensor([[3, 1, 4], [1, 3, 4]]))
    assert (forth - back).abs().max() > 1e-3


def test_eval_mode_gives_the_same_bits_twice(encoder: SequenceEncoder) -> None:
    histories = pad_histories(HISTORIES, 10, NUM_ITEMS)
    first = encoder.history_representation(histories)
    assert torch.equal(first, encoder.history_representation(histories))


def test_a_row_does_not_depend_on_the_rest_of_its_batch(encoder: SequenceEncoder) -> None:
    histories = pad_histories(HISTORIES, 10, NUM_ITEMS)
    together = encoder.history_representation(histories)
    alone = torch.cat([encoder.history_representation(row[None]) for row in histories])
    torch.testing.assert_close(together, alone)


def test_an_empty_history_has_one_finite_vector_however_it_is_written(
    encoder: SequenceEncoder,
) -> None:
    written = encoder.history_representation(torch.full((2, 10), NUM_ITEMS))
    unwritten = encoder.history_representation(torch.empty((2, 0), dtype=torch.int64))
    assert torch.isfinite(written).all()
    assert torch.equal(written, unwritten)


def test_padding_in_a_batch_gives_finite_gradients(encoder: SequenceEncoder) -> None:
    encoder.train()
    encoder.prefix_representations(
        pad_histories(HISTORIES, 10, NUM_ITEMS)
    ).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_prefix_does_not_see_what_comes_after_it(encoder: SequenceEncoder) -> None:
    histories = torch.tensor([[3, 1, 4, 1, 5], [3, 1, 4, 9, 2]])
    one, other = encoder.prefix_representations(histories)
    torch.testing.assert_close(one[:3], other[:3])
    assert (one[3] - other[3]).abs().max() > 1e-3


def test_the_last_prefix_is_the_history(encoder: SequenceEncoder) -> None:
    histories = pad_histories(HISTORIES, 10, NUM_ITEMS)
    last = encoder.prefix_representations(histories)[:, -1]
    torch.testing.assert_close(last, encoder.history_representation(histories))


def test_scores_are_inner_products_of_history_and_item(encoder: SequenceEncoder) -> None:
    histories = pad_histories(HISTORIES, 10, NUM_ITEMS)
    candidates = torch.randint(NUM_ITEMS, (len(HISTORIES), 4))
    z = encoder.history_representation(histories)
    expected = (z[:, None] * encoder.item_embedding(candidates)).sum(-1)
    torch.testing.assert_close(encoder.scores(histories, candidates), expected)
    everything = encoder.scores(histories)
    assert everything.shape == (len(HISTORIES), NUM_ITEMS)
    torch.testing.assert_close(everything.gather(1, candidates), expected)


def test_item_embeddings_take_ids_of_any_shape(encoder: SequenceEncoder) -> None:
    assert encoder.item_embedding(torch.zeros(2, 3, 4, dtype=torch.int64)).shape == (2, 3, 4, 16)
    assert not encoder.item_embedding(torch.tensor(NUM_ITEMS)).any()


class LastItemOnly(SequenceEncoder):
    """No causal states: prefixes come from the base class."""

    def __init__(self, num_items: int) -> None:
        super().__init__(num_items, 4, 5, {})

    def history_representation(self, histories: Tensor) -> Tensor:
        return self.item_embedding(histories[:, -1])


def test_an_encoder_without_causal_states_encodes_every_prefix_by_itself() -> None:
    histories = torch.tensor([[7, 7, 1, 2, 3], [0, 4, 5, 6, 2]])
    encoder = LastItemOnly(7)
    torch.testing.assert_close(
        encoder.prefix_representations(histories), encoder.item_embedding(histories)
    )


def test_more_columns_than_the_window_are_refused(encoder: SequenceEncoder) -> None:
    with pytest.raises(InputError, match=r"11 columns.*window is 10"):
        encoder.history_representation(torch.zeros(1, 11, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sasrec", {"num_heads": 3}, "num_heads is 3.*divide.*64"),
        ("sasrec", {"dropout": 1.0}, "dropout is 1.0"),
        ("sasrec", {"num_blocks": 0}, "num_blocks is 0"),
        ("sasrec", {"hidden_size": 0}, "hidden_size is 0"),
        ("sasrec", {"layers": 2}, "'layers' is not an option.*num_blocks"),
        ("sasrec", {"num_heads": "two"}, "num_heads is 'two'.*the kind of 2"),
        ("sasrec", {"num_blocks": 1.5}, "num_blocks is 1.5"),
        ("gru4rec", {"num_layers": 0}, "num_layers is 0"),
        ("gru4rec", {"dropout": -0.1}, "dropout is -0.1"),
        ("gru4rec", {"num_heads": 2}, "'num_heads' is not an option.*num_layers"),
        ("caser", {"num_horizontal": 0}, "num_horizontal is 0"),
        ("caser", {"num_vertical": 0}, "num_vertical is 0"),
        ("caser", {"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_an_option_out_of_range_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_encoder(name, NUM_ITEMS, **options)


def test_an_unknown_encoder_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'bert'.*sasrec, gru4rec, caser"):
        build_encoder("bert", NUM_ITEMS)
