"""What is Caser's own."""

from __future__ import annotations

import torch

from ilora.encoders import Caser, pad_histories

NUM_ITEMS = 30


def test_the_vector_is_the_papers_formula_written_out() -> None:
    torch.manual_seed(0)
    encoder = Caser(NUM_ITEMS, hidden_size=6, window=5, num_horizontal=3, num_vertical=2).eval()
    picture = torch.zeros(5, 6)
    picture[2:] = encoder.item_embedding(torch.tensor([3, 1, 4]))
    found = []
    for height, filters in enumerate(encoder.horizontal, start=1):
        for weight, bias in zip(filters.weight, filters.bias, strict=True):  # weight [hidden, h]
            places = range(5 - height + 1)
            sums = [(picture[p : p + height] * weight.T).sum() + bias for p in places]
            found.append(torch.stack(sums).relu().max())
    for column in range(6):  # the order in which the weighted sums are laid out
        for weights in encoder.vertical.weight:
            found.append((weights * picture[:, column]).sum())
    hidden = encoder.hidden(torch.stack(found)).relu()
    z = encoder.history_representation(pad_histories([[3, 1, 4]], 5, NUM_ITEMS))[0]
    torch.testing.assert_close(z, encoder.output(hidden), rtol=1e-4, atol=1e-6)


def test_a_pattern_is_found_wherever_it_stands_in_the_window() -> None:
    torch.manual_seed(0)
    encoder = Caser(NUM_ITEMS, hidden_size=6, window=5)
    early, late = (
        encoder.item_embedding(torch.tensor([row])).transpose(1, 2)
        for row in ([7, 8, 2, 2, 2], [2, 2, 2, 7, 8])
    )
    pairs = encoder.horizontal[1]
    torch.testing.assert_close(pairs(early)[0, :, 0], pairs(late)[0, :, 3])
