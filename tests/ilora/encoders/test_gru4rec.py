"""What is GRU4Rec's own."""

from __future__ import annotations

import torch

from ilora.encoders import GRU4Rec, pad_histories

NUM_ITEMS = 30


def test_the_state_is_that_of_a_recurrence_over_the_bare_history() -> None:
    torch.manual_seed(0)
    encoder = GRU4Rec(NUM_ITEMS, hidden_size=8, num_layers=2).eval()
    history = [3, 1, 4]
    _, last = encoder.gru(encoder.item_embedding(torch.tensor([history])))
    expected = encoder.output(last[-1])
    z = encoder.history_representation(pad_histories([history], 10, NUM_ITEMS))
    torch.testing.assert_close(z, expected)


def test_a_second_layer_has_dropout_before_it_and_a_single_one_has_none() -> None:
    assert GRU4Rec(NUM_ITEMS, num_layers=2, dropout=0.4).gru.dropout == 0.4
    assert GRU4Rec(NUM_ITEMS, num_layers=1, dropout=0.4).gru.dropout == 0.0
