"""Caser: convolutions over the history as a picture (Tang and Wang, WSDM 2018, arXiv 1809.07426)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilora.encoders.base import SequenceEncoder, require_dropout
from ilora.errors import InputError


class Caser(SequenceEncoder):
    """The vectors of the latest items form a picture ``E [window, hidden]``; filters look for patterns.

        o_h = max over places of relu(E[place : place + h] * F_h)    num_horizontal filters of each
                                                                     height h = 1 … window
        v_n = Σ_t c_n[t] E[t]                                        num_vertical weighted sums
        z   = relu(W dropout([o; v]) + b) · W',   score = <z, e(item)>

    Three things differ from the paper. There is no vector of the user, because the users who are
    asked about never occur in training; the scores are inner products with the item vectors that
    go in, for which a last matrix W' frees z from being positive; and rows of the picture before
    the oldest item are zero. The empty history has a vector of its own.

    Args:
        num_horizontal: filters of each height.
        num_vertical: weighted sums over the whole window.
        dropout: on what the filters found.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        window: int = 10,
        *,
        num_horizontal: int = 16,
        num_vertical: int = 4,
        dropout: float = 0.3,
    ) -> None:
        options = {
            "num_horizontal": num_horizontal,
            "num_vertical": num_vertical,
            "dropout": dropout,
        }
        super().__init__(num_items, hidden_size, window, options)
        for name, number in (("num_horizontal", num_horizontal), ("num_vertical", num_vertical)):
            if number < 1:
                raise InputError(f"{name} is {number}; it must be at least 1")
        require_dropout(dropout)
        # A filter that spans all of an item's vector is a one-dimensional convolution along time.
        self.horizontal = nn.ModuleList(
            nn.Conv1d(hidden_size, num_horizontal, height) for height in range(1, window + 1)
        )
        self.vertical = nn.Linear(window, num_vertical, bias=False)
        found = num_horizontal * window + num_vertical * hidden_size
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(found, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size, bias=False)
        self.empty_history = nn.Parameter(torch.empty(hidden_size))
        self._initialise()

    def history_representation(self, histories: Tensor) -> Tensor:
        self.require_window(histories)
        return self._states(histories, self.window - histories.shape[1])[:, -1]

    def prefix_representations(self, histories: Tensor) -> Tensor:
        """One pass for all positions: neighbouring windows share what their filters find."""
        self.require_window(histories)
        return self._states(histories, self.window - 1)

    def _states(self, histories: Tensor, missing: int) -> Tensor:
        """Vectors of all windows of ``[missing padding ids | histories]``: ``[B, windows, hidden]``."""
        padding = histories.new_full((len(histories), missing), self.num_items)
        histories = torch.cat([padding, histories], dim=1)
        present = histories != self.num_items  # [B, L]
        picture = self.item_embedding(histories) * present[..., None]
        picture = picture.transpose(1, 2)  # [B, hidden, L]
        found = [
            # The best of a window's places, for all windows at once.
            F.max_pool1d(F.relu(filters(picture)), self.window - height + 1, stride=1)
            for height, filters in enumerate(self.horizontal, start=1)
        ]
        sums = self.vertical(picture.unfold(2, self.window, 1))  # [B, hidden, windows, vertical]
        found.append(sums.transpose(2, 3).flatten(1, 2))
        patterns = torch.cat(found, dim=1).transpose(1, 2)  # [B, windows, found]
        z = self.output(F.relu(self.hidden(self.dropout(patterns))))
        newest = present[:, self.window - 1 :, None]  # left padding: without it there is nothing
        return torch.where(newest, z, self.empty_history)

    def _initialise(self) -> None:
        std = self.hidden_size**-0.5  # item vectors of length about 1, as in SASRec
        nn.init.normal_(self.item_embeddings.weight, std=std)
        nn.init.normal_(self.empty_history, std=std)
        with torch.no_grad():
            self.item_embeddings.weight[self.num_items].zero_()
