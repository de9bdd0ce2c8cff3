"""GRU4Rec: a recurrent network over the history (Hidasi et al., ICLR 2016, arXiv 1511.06939)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ilora.encoders.base import SequenceEncoder, require_dropout
from ilora.errors import InputError


class GRU4Rec(SequenceEncoder):
    """A gated recurrent unit reads the items one after another; its last state stands for the user.

        h_t = GRU(dropout(e(item_t)), h_{t-1}),  h_0 = 0      num_layers of them, one on the other
        z   = W h[newest] + b,   score = <z, e(item)>

    Two things differ from the paper. The scores are inner products with the item vectors that go
    in (one table instead of two, which a gate and a projector can share), and the loss is the
    full softmax of `ilora.encoders.training` and not a pairwise one over the items of a batch. The
    recurrence starts at the oldest item, however far the history was padded; the empty history has a
    vector of its own.

    Args:
        num_layers: recurrent layers.
        dropout: on the item vectors that go in, and between layers.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        window: int = 10,
        *,
        num_layers: int = 1,
        dropout: float = 0.3,
    ) -> None:
        options = {"num_layers": num_layers, "dropout": dropout}
        super().__init__(num_items, hidden_size, window, options)
        if num_layers < 1:
            raise InputError(f"num_layers is {num_layers}; it must be at least 1")
        require_dropout(dropout)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(
            hidden_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.output = nn.Linear(hidden_size, hidden_size)
        self.empty_history = nn.Parameter(torch.empty(hidden_size))
        self._initialise()

    def history_representation(self, histories: Tensor) -> Tensor:
        if histories.shape[1] == 0:
            return self.empty_history.expand(len(histories), -1)
        return self.prefix_representations(histories)[:, -1]

    def prefix_representations(self, histories: Tensor) -> Tensor:
        """One pass for all positions: the state after an item has seen nothing behind it."""
        self.require_window(histories)
        length = histories.shape[1]
        present = histories != self.num_items  # [B, L]
        padding = length - present.sum(1, keepdim=True)  # [B, 1]
        columns = torch.arange(length, device=histories.device)
        # The items are moved to the left, so that the recurrence begins with the oldest one; what
        # comes behind the newest is read too, but no state that is used has seen it.
        moved = histories.gather(1, (columns + padding).clamp(max=length - 1))
        x = self.dropout(self.item_embedding(moved))
        states = self.output(self.gru(x)[0])  # [B, L, hidden]
        back = (columns - padding).clamp(min=0)[..., None].expand_as(states)
        return torch.where(present[..., None], states.gather(1, back), self.empty_history)

    def _initialise(self) -> None:
        std = self.hidden_size**-0.5  # item vectors of length about 1, as in SASRec
        nn.init.normal_(self.item_embeddings.weight, std=std)
        nn.init.normal_(self.empty_history, std=std)
        with torch.no_grad():
            self.item_embeddings.weight[self.num_items].zero_()
