"""A small residual network over a vector, as the gate of the paper's released code has it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (16, 32, 64)  # channels; each stage but the first halves the length


class ResidualNetwork(nn.Module):
    """``[B, n] -> [B, 64]``: the vector as a signal of one channel and n places.

    A convolution to 16 channels, three stages of residual blocks with 16, 32 and 64 channels at
    n, n/2 and n/4 places, and the mean over the places: the CIFAR network of He et al. (CVPR 2016)
    in one dimension. The statistics of its batch normalisation are buffers of the state dict.
    """

    out_channels = STAGES[-1]

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = _convolution(1, STAGES[0])
        self.bn1 = nn.BatchNorm1d(STAGES[0])
        before, stages = STAGES[0], []
        for number, channels in enumerate(STAGES):
            first = _Block(before, channels, stride=1 if number == 0 else 2)
            rest = [_Block(channels, channels) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(first, *rest))
            before = channels
        self.layer1, self.layer2, self.layer3 = stages

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(z[:, None])))  # [B, 16, n]
        return self.layer3(self.layer2(self.layer1(x))).mean(-1)


class _Block(nn.Module):
    """relu(x' + bn(conv(relu(bn(conv(x)))))), x' = x with places dropped and channels of zeros added."""

    def __init__(self, before: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _convolution(before, channels, stride)
        self.bn1 = nn.BatchNorm1d(channels)
        self.conv2 = _convolution(channels, channels)
        self.bn2 = nn.BatchNorm1d(channels)
        self.stride = stride
        self.added = channels - before

    def forward(self, x: Tensor) -> Tensor:
        change = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        low = self.added // 2
        return F.relu(F.pad(x[:, :, :: self.stride], (0, 0, low, self.added - low)) + change)


def _convolution(before: int, channels: int, stride: int = 1) -> nn.Conv1d:
    return nn.Conv1d(before, channels, 3, stride, padding=1, bias=False)
