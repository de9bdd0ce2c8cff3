"""Networks with the names and the arithmetic of the code that LLaRA and iLoRA publish.

Written for these tests from the formulas: what their files hold is named after these attributes, and
what they compute is what an imported encoder and gate must compute.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = size, heads
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(size, size) for _ in range(3))
        self.dropout = nn.Dropout(0.1)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        outputs = []
        width = self.hidden_size // self.num_heads
        for head in range(self.num_heads):
            part = slice(head * width, (head + 1) * width)
            query = self.linear_q(queries)[..., part]
            key, value = self.linear_k(keys)[..., part], self.linear_v(keys)[..., part]
            values = query @ key.transpose(1, 2) / self.hidden_size**0.5
            hidden = (keys == 0).all(-1)[:, None, :]
            hidden = hidden | ~torch.ones(values.shape[1:], dtype=torch.bool).tril()
            outputs.append(self.softmax(values.masked_fill(hidden, -(2.0**32) + 1)) @ value)
        return torch.cat(outputs, -1) + queries


class PositionwiseFeedForward(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Conv1d(size, size, 1), nn.Conv1d(size, size, 1)
        self.layer_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(self.w_2(self.w_1(x.mT).relu()).mT + x)


class SASRec(nn.Module):
    def __init__(self, items: int, size: int, window: int, heads: int = 1) -> None:
        super().__init__()
        self.state_size, self.hidden_size, self.item_num = window, size, items
        self.dropout = nn.Dropout(0.25)
        self.device = torch.device("cpu")
        self.item_embeddings = nn.Embedding(items + 1, size)
        self.positional_embeddings = nn.Embedding(window, size)
        self.emb_dropout = nn.Dropout(0.25)
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(size) for _ in range(3))
        self.mh_attn = MultiHeadAttention(size, heads)
        self.feed_forward = PositionwiseFeedForward(size)
        self.s_fc = nn.Linear(size, items)

    def represent(self, items: Tensor, lengths: Tensor) -> Tensor:
        present = (items != self.item_num)[..., None]
        x = (self.item_embeddings(items) + self.positional_embeddings.weight) * present
        y = self.feed_forward(self.ln_2(self.mh_attn(self.ln_1(x), x))) * present
        return self.ln_3(y)[torch.arange(len(items)), lengths - 1]


class GRU(nn.Module):
    def __init__(self, items: int, size: int, window: int) -> None:
        super().__init__()
        self.hidden_size, self.item_num, self.state_size = size, items, window
        self.item_embeddings = nn.Embedding(items + 1, size)
        self.gru = nn.GRU(size, size, batch_first=True)
        self.s_fc = nn.Linear(size, items)

    def represent(self, items: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.item_embeddings(items), lengths, batch_first=True, enforce_sorted=False
        )
        return self.gru(packed)[1][0]


class Caser(nn.Module):
    def __init__(self, items: int, size: int, window: int) -> None:
        super().__init__()
        self.hidden_size, self.item_num, self.state_size = size, items, window
        self.filter_sizes, self.num_filters, self.dropout_rate = [2, 4], 3, 0.2
        self.item_embeddings = nn.Embedding(items + 1, size)
        self.horizontal_cnn = nn.ModuleList(
            nn.Conv2d(1, self.num_filters, (height, size)) for height in self.filter_sizes
        )
        self.vertical_cnn = nn.Conv2d(1, 1, (window, 1))
        self.num_filters_total = self.num_filters * len(self.filter_sizes)
        self.s_fc = nn.Linear(size + self.num_filters_total, items)
        self.dropout = nn.Dropout(0.2)

    def represent(self, items: Tensor, lengths: Tensor) -> Tensor:
        picture = self.item_embeddings(items) * (items != self.item_num)[..., None]
        picture = picture[:, None]
        found = [conv(picture).relu().flatten(2).max(-1).values for conv in self.horizontal_cnn]
        return torch.cat([*found, self.vertical_cnn(picture).relu().flatten(1)], 1)


class ResidualBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(after)
        self.conv2 = nn.Conv1d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm1d(after)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if x.shape != y.shape:
            more = y.shape[1] - x.shape[1]
            x = F.pad(x[:, :, ::2], (0, 0, more // 2, (more + 1) // 2))
        return (x + y).relu()


class Router(nn.Module):
    """The gate; their class is called otherwise, and its name is in no file."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(16)
        sizes = {"layer1": (16, 16, 1), "layer2": (16, 32, 2), "layer3": (32, 64, 2)}
        for name, (before, after, stride) in sizes.items():
            blocks = [ResidualBlock(before, after, stride)]
            blocks += [ResidualBlock(after, after, 1) for _ in range(2)]
            setattr(self, name, nn.Sequential(*blocks))
        self.gate = nn.ModuleDict({"fc": nn.Linear(64, experts)})

    def forward(self, z: Tensor) -> Tensor:
        x = self.bn1(self.conv1(z[:, None])).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.gate["fc"](x.mean(-1)).softmax(-1)


def lightning(state: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A checkpoint as Lightning writes it around a state dict."""
    return {
        "epoch": 4,
        "global_step": 100,
        "pytorch-lightning_version": "1.8.6",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 5}}}},
        "callbacks": {"EarlyStopping{}": {"wait_count": 0, "best_score": torch.tensor(0.5)}},
        "lr_schedulers": [],
        "hparams_name": "kargs",
        "hyper_parameters": settings,
    }
