"""SASRec: self-attention over the history (Kang and McAuley, ICDM 2018, arXiv 1808.09781)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilora.encoders.base import SequenceEncoder, require_dropout
from ilora.errors import InputError


class SASRec(SequenceEncoder):
    """A causal Transformer over item embeddings; its state at the newest item stands for the user.

        x = √hidden · e(history) + p            positions p are counted back from the newest item
        x = x + Attention(LN(x))                num_blocks times
        x = x + W_2 relu(W_1 LN(x))
        z = LN(x)[newest],   score = <z, e(item)>

    Two things differ from the paper. Layer norm stands before each sublayer on keys and values
    too (pre-norm; the paper norms the queries alone), because it trains steadily without warm-up.
    And padding is masked out as a key rather than blanked at the input, so that ``z`` does not
    depend on how far a history was padded. The empty history has a vector of its own, learned
    from the training users' first items.

    Args:
        num_blocks: attention and feed-forward pairs.
        num_heads: divides ``hidden_size``.
        dropout: on the embedded history, on the attention weights and on every sublayer's output.

    Raises:
        InputError: ``num_heads`` does not divide ``hidden_size``, or a number out of range.
    """

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        window: int = 10,
        *,
        num_blocks: int = 2,
        num_heads: int = 2,
        dropout: float = 0.3,
    ) -> None:
        options = {"num_blocks": num_blocks, "num_heads": num_heads, "dropout": dropout}
        super().__init__(num_items, hidden_size, window, options)
        if num_blocks < 1:
            raise InputError(f"num_blocks is {num_blocks}; it must be at least 1")
        if num_heads < 1 or hidden_size % num_heads:
            raise InputError(
                f"num_heads is {num_heads}; it must divide hidden_size, which is {hidden_size}"
            )
        require_dropout(dropout)
        self.position_embeddings = nn.Parameter(torch.empty(window, hidden_size))
        self.empty_history = nn.Parameter(torch.empty(hidden_size))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            _Block(hidden_size, num_heads, dropout) for _ in range(num_blocks)
        )
        self.final_norm = nn.LayerNorm(hidden_size)
        self._initialise()

    def history_representation(self, histories: Tensor) -> Tensor:
        if histories.shape[1] == 0:
            return self.empty_history.expand(len(histories), -1)
        return self._states(histories, newest_only=True)[:, 0]

    def prefix_representations(self, histories: Tensor) -> Tensor:
        """One pass for all positions; the position embeddings are those of the columns, so only
        the last column's positions are counted from its own newest item."""
        return self._states(histories, newest_only=False)

    def _states(self, histories: Tensor, newest_only: bool) -> Tensor:
        """``[B, L]`` -> ``[B, L, hidden]``, or ``[B, 1, hidden]``: the last column alone."""
        self.require_window(histories)
        length = histories.shape[1]
        present = histories != self.num_items  # [B, L]
        x = self.item_embedding(histories) * self.hidden_size**0.5
        x = self.dropout(x + self.position_embeddings[self.window - length :])  # [B, L, hidden]
        mask = _attention_mask(present)
        queries = length
        for number, block in enumerate(self.blocks, start=1):
            if newest_only and number == len(self.blocks):
                queries = 1  # nothing reads the other positions of the last block
            x = block(x, mask, queries)
        # Left padding: where the item of a column is missing, so are all before it.
        return torch.where(present[:, -queries:, None], self.final_norm(x), self.empty_history)

    def _initialise(self) -> None:
        # Item vectors of length about 1: the first block sees entries of about 1 after the √hidden,
        # and the first scores are small against the softmax's scale.
        std = self.hidden_size**-0.5
        nn.init.normal_(self.item_embeddings.weight, std=std)
        nn.init.normal_(self.position_embeddings, std=std)
        nn.init.normal_(self.empty_history, std=std)
        with torch.no_grad():
            self.item_embeddings.weight[self.num_items].zero_()


class _Block(nn.Module):
    """Causal self-attention and a position-wise feed-forward net, each with a residual path."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = dropout
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.attention_out = nn.Linear(hidden_size, hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.feed_forward_in = nn.Linear(hidden_size, hidden_size)
        self.feed_forward_out = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, queries: int) -> Tensor:
        """``x [B, L, hidden]`` -> ``[B, queries, hidden]``, the states of the last ``queries`` columns.

        ``mask`` is bool ``[B, 1, L, L]``, True where a query may look at a key.
        """
        attended = self._attend(self.attention_norm(x), mask, queries)
        x = x[:, -queries:] + self.dropout(attended)
        y = F.relu(self.feed_forward_in(self.feed_forward_norm(x)))
        return x + self.dropout(self.feed_forward_out(self.dropout(y)))

    def _attend(self, x: Tensor, mask: Tensor, queries: int) -> Tensor:
        split = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, heads, L, hidden / heads]
        y = F.scaled_dot_product_attention(
            query[:, :, -queries:],
            key,
            value,
            attn_mask=mask[:, :, -queries:],
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        return self.attention_out(y.transpose(1, 2).flatten(-2))


def _attention_mask(present: Tensor) -> Tensor:
    """``[B, L]`` -> bool ``[B, 1, L, L]``: a query sees the items up to its own position.

    Padding sees itself and nothing else sees padding; without that, its softmax would be over
    nothing and NaN.
    """
    length = present.shape[1]
    square = torch.ones(length, length, dtype=torch.bool, device=present.device)
    own = torch.eye(length, dtype=torch.bool, device=present.device)
    return ((square.tril() & present[:, None, :]) | own)[:, None]
