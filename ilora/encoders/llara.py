"""The encoders that LLaRA and iLoRA publish, to the letter, so that their weights can be imported.

They are not those of this package under other names: SASRec there has one block that normalises its
queries alone and counts positions from the oldest item, GRU and Caser have no inner product with the
item vectors. All score through an output layer of their own,

    score(item) = <z, w_item> + b_item,

and z may be wider than an item's vector. `ilora import reference` fills them.

Source: the released code of Liao et al., "LLaRA", SIGIR 2024, after Yang et al., "Generic learning of
user interests" (its SASRec, GRU4Rec and Caser).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilora.encoders.base import SequenceEncoder, require_dropout
from ilora.errors import InputError


class PublishedEncoder(SequenceEncoder):
    """What the three share: an output layer, and histories that begin in the first column."""

    def __init__(
        self,
        num_items: int,
        hidden_size: int,
        window: int,
        representation_size: int,
        options: dict[str, Any],
    ) -> None:
        super().__init__(num_items, hidden_size, window, options)
        self._representation_size = representation_size
        self.output = nn.Linear(representation_size, num_items)
        with torch.no_grad():
            self.item_embeddings.weight[num_items].zero_()

    @property
    def representation_size(self) -> int:
        return self._representation_size

    def scores(self, histories: Tensor, candidates: Tensor | None = None) -> Tensor:
        """``<z(history), w_item> + b_item``: ``[B, C]``, or ``[B, num_items]``."""
        scores = self.catalog_scores(self.history_representation(histories))
        return scores if candidates is None else scores.gather(1, candidates)

    def catalog_scores(self, z: Tensor) -> Tensor:
        """``[..., representation_size]`` -> ``[..., num_items]``."""
        return self.output(z)

    def from_first_column(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        """Left-padded ``[B, L]`` -> right-padded ``[B, max(L, 1)]``, and the lengths ``[B]``."""
        self.require_window(histories)
        if histories.shape[1] == 0:
            histories = histories.new_full((len(histories), 1), self.num_items)
        length = histories.shape[1]
        lengths = (histories != self.num_items).sum(1)
        columns = torch.arange(length, device=histories.device) + (length - lengths)[:, None]
        moved = histories.gather(1, columns.clamp(max=length - 1))
        return moved.masked_fill(columns >= length, self.num_items), lengths


class PublishedSASRec(PublishedEncoder):
    """One block of attention and feed-forward; the state at the newest item.

        x = e(history) + p                              positions p count from the oldest item
        y = Attention(queries LN(x), keys and values x) + LN(x)       scaled by √hidden for any head
        z = LN(LN(W₂ relu(W₁ u) + u)[newest]),  u = LN(y)

    Args:
        num_heads: divides ``hidden_size``.
        dropout: on the embedded history, the attention weights and the feed-forward output.

    Raises:
        InputError: ``num_heads`` does not divide ``hidden_size``, or a number out of range.
    """

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        window: int = 10,
        *,
        num_heads: int = 1,
        dropout: float = 0.1,
    ) -> None:
        options = {"num_heads": num_heads, "dropout": dropout}
        super().__init__(num_items, hidden_size, window, hidden_size, options)
        if num_heads < 1 or hidden_size % num_heads:
            raise InputError(
                f"num_heads is {num_heads}; it must divide hidden_size, which is {hidden_size}"
            )
        require_dropout(dropout)
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.position_embeddings = nn.Embedding(window, hidden_size)
        self.query_norm = nn.LayerNorm(hidden_size)
        self.query, self.key, self.value = (nn.Linear(hidden_size, hidden_size) for _ in range(3))
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.feed_forward_in = nn.Linear(hidden_size, hidden_size)
        self.feed_forward_out = nn.Linear(hidden_size, hidden_size)
        self.feed_forward_out_norm = nn.LayerNorm(hidden_size)
        self.final_norm = nn.LayerNorm(hidden_size)

    def history_representation(self, histories: Tensor) -> Tensor:
        items, lengths = self.from_first_column(histories)
        present = (items != self.num_items)[..., None]  # [B, L, 1]
        positions = self.position_embeddings.weight[: items.shape[1]]
        x = self.dropout(self.item_embedding(items) + positions) * present
        queries = self.query_norm(x)
        u = self.feed_forward_norm(self._attend(queries, x, present) + queries)
        y = self.dropout(self.feed_forward_out(F.relu(self.feed_forward_in(u))))
        y = self.final_norm(self.feed_forward_out_norm(y + u) * present)  # [B, L, hidden]
        newest = (lengths - 1).clamp(min=0)
        return y[torch.arange(len(y), device=y.device), newest]

    def _attend(self, queries: Tensor, x: Tensor, present: Tensor) -> Tensor:
        query, key, value = (
            layer(entries).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, L, ·]
            for layer, entries in ((self.query, queries), (self.key, x), (self.value, x))
        )
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        # What a padding position sees does not matter: nothing reads its state.
        mask = causal & (present.transpose(1, 2) | ~present)  # [B, L, L]
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask[:, None],
            dropout_p=self.dropout.p if self.training else 0.0,
            scale=self.hidden_size**-0.5,
        )
        return attended.transpose(1, 2).flatten(-2)


class PublishedGRU(PublishedEncoder):
    """A gated recurrent unit of one layer; its state after the newest item, zeros before any."""

    def __init__(self, num_items: int, hidden_size: int = 64, window: int = 10) -> None:
        super().__init__(num_items, hidden_size, window, hidden_size, {})
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)

    def history_representation(self, histories: Tensor) -> Tensor:
        items, lengths = self.from_first_column(histories)
        states = self.gru(self.item_embedding(items))[0]  # [B, L, hidden]
        newest = (lengths - 1).clamp(min=0)
        z = states[torch.arange(len(states), device=states.device), newest]
        return z.masked_fill((lengths == 0)[:, None], 0.0)


class PublishedCaser(PublishedEncoder):
    """Filters over the window as a picture that begins in its first row; what they find is z.

        o_h = max over places of relu(E[place : place + h] * F_h)     num_filters of each height h
        v   = relu(Σ_t c[t] E[t] + b)                                 one weighted sum
        z   = [o; v]                                                  wider than an item's vector

    Args:
        heights: of the filters, as in ``"2,3,4"``.
        num_filters: of each height.
        dropout: on z, in training.

    Raises:
        InputError: a height outside the window, or a number out of range.
    """

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        window: int = 10,
        *,
        heights: str = "2,3,4",
        num_filters: int = 16,
        dropout: float = 0.1,
    ) -> None:
        sizes = [int(text) if text.strip().isdigit() else 0 for text in heights.split(",")]
        if not all(1 <= size <= window for size in sizes):
            raise InputError(
                f"heights is {heights!r}; write numbers from 1 to {window} as in 2,3,4"
            )
        if num_filters < 1:
            raise InputError(f"num_filters is {num_filters}; it must be at least 1")
        require_dropout(dropout)
        options = {"heights": heights, "num_filters": num_filters, "dropout": dropout}
        width = num_filters * len(sizes) + hidden_size
        super().__init__(num_items, hidden_size, window, width, options)
        self.horizontal = nn.ModuleList(
            nn.Conv2d(1, num_filters, (size, hidden_size)) for size in sizes
        )
        self.vertical = nn.Conv2d(1, 1, (window, 1))
        self.dropout = nn.Dropout(dropout)

    def history_representation(self, histories: Tensor) -> Tensor:
        items, _ = self.from_first_column(histories)
        items = F.pad(items, (0, self.window - items.shape[1]), value=self.num_items)
        present = (items != self.num_items)[..., None]
        picture = (self.item_embedding(items) * present)[:, None]  # [B, 1, window, hidden]
        found = [F.relu(filters(picture))[..., 0].amax(-1) for filters in self.horizontal]
        summed = F.relu(self.vertical(picture)).flatten(1)  # [B, hidden]
        return self.dropout(torch.cat([*found, summed], dim=1))
