"""What every sequence encoder offers: item vectors, history vectors, and their inner product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ilora.errors import InputError


class SequenceEncoder(nn.Module, ABC):
    """A conventional sequential recommender: ``score(user, item) = <z(history), e(item)>``.

    The recommender around the language model uses both vectors: ``e`` goes through the projector
    into the prompt, ``z`` through the gate into the mixture of experts.

    A subclass is one file: it implements `history_representation`, hands its further constructor
    arguments to ``options`` and gets a line in :mod:`ilora.encoders.registry`.

    Args:
        num_items: size of the catalogue; the id ``num_items`` is the padding.
        hidden_size: width of both vectors.
        window: the longest history.
        options: the subclass's further constructor arguments, stored with the weights.

    Raises:
        InputError: a size below 1.
    """

    def __init__(
        self, num_items: int, hidden_size: int, window: int, options: dict[str, Any]
    ) -> None:
        super().__init__()
        sizes = {"num_items": num_items, "hidden_size": hidden_size, "window": window}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name} is {size}; it must be at least 1")
        self.num_items = num_items
        self.hidden_size = hidden_size
        self.window = window
        self.options = options
        self.item_embeddings = nn.Embedding(num_items + 1, hidden_size, padding_idx=num_items)

    @property
    def representation_size(self) -> int:
        """Width of history vectors: that of item vectors, unless a subclass scores otherwise."""
        return self.hidden_size

    def item_embedding(self, ids: Tensor) -> Tensor:
        """Item vectors: int64 ``[...]`` -> ``[..., hidden_size]``; zeros for the padding id."""
        return self.item_embeddings(ids)

    @abstractmethod
    def history_representation(self, histories: Tensor) -> Tensor:
        """History vectors: int64 ``[B, L]`` -> ``[B, hidden_size]``.

        Rows are LEFT-padded with ``num_items``, as `pad_histories` does it, ``L ≤ window``. The
        amount of padding and the other rows of the batch do not matter (beyond rounding); a row of
        nothing but padding, the empty history, has a finite vector too. In eval mode equal input
        gives equal bits.
        """

    def prefix_representations(self, histories: Tensor) -> Tensor:
        """Vectors after every position, for training: int64 ``[B, L]`` -> ``[B, L, hidden_size]``.

        Column j is made from columns ``0 … j`` alone, so one pass predicts the next item after each
        of them; the last column is `history_representation`. Here every prefix is encoded by
        itself; an encoder that computes causal states has them in one pass and overrides this.
        """
        batch, length = histories.shape
        padding = histories.new_full((batch, length - 1), self.num_items)
        prefixes = torch.cat([padding, histories], dim=1).unfold(1, length, 1)  # [B, L, L]
        z = self.history_representation(prefixes.reshape(batch * length, length))
        return z.reshape(batch, length, self.representation_size)

    def scores(self, histories: Tensor, candidates: Tensor | None = None) -> Tensor:
        """``<z(history), e(item)>`` for candidates ``[B, C]`` -> ``[B, C]``, or for all items.

        Without ``candidates`` the result is ``[B, num_items]``; the padding has no column.
        """
        z = self.history_representation(histories)  # [B, hidden]
        if candidates is None:
            return self.catalog_scores(z)
        return torch.einsum("bh,bch->bc", z, self.item_embedding(candidates))

    def catalog_scores(self, z: Tensor) -> Tensor:
        """``<z, e(item)>`` for all items: ``[..., hidden_size]`` -> ``[..., num_items]``."""
        return z @ self.item_embeddings.weight[: self.num_items].T

    def forward(self, histories: Tensor) -> Tensor:
        """The same as `history_representation`."""
        return self.history_representation(histories)

    def require_window(self, histories: Tensor) -> None:
        """Raise `InputError` for more columns than the window has."""
        if histories.shape[1] > self.window:
            raise InputError(
                f"histories has {histories.shape[1]} columns; this encoder's window is "
                f"{self.window}: keep the latest items, as `pad_histories` does"
            )


def require_dropout(dropout: float) -> None:
    """Raise `InputError` for a probability that is none, or that leaves nothing."""
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}; it must be at least 0 and below 1")


def pad_histories(histories: Sequence[Sequence[int]], window: int, num_items: int) -> Tensor:
    """Histories of any length -> int64 ``[B, window]``: the latest ``window`` items, padded on the left.

    The newest item is always in the last column; the padding is ``num_items``.

    Raises:
        InputError: ``window`` below 1, or an item outside ``0 … num_items - 1``.
    """
    if window < 1:
        raise InputError(f"window is {window}; a history holds at least 1 item")
    latest = [list(history[-window:]) for history in histories]
    for item in chain.from_iterable(latest):
        if not 0 <= item < num_items:
            raise InputError(
                f"a history holds item {item}, which is not in the catalogue "
                f"(ids 0 to {num_items - 1}); drop it"
            )
    padded = [[num_items] * (window - len(items)) + items for items in latest]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(padded), window)
