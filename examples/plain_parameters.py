"""A residual network written as one loop over bare parameters: no layer is a module, and no block is one either.

What repeats in it is visible in the computation only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainNetwork(nn.Module):
    """Pre-norm residual MLP blocks, spelled out with matrix products.

    Args:
        features: size of the input.
        classes: size of the output.
        width: size between the blocks.
        depth: number of blocks.
    """

    def __init__(self, features: int = 32, classes: int = 10, width: int = 128, depth: int = 6) -> None:
        super().__init__()
        hidden = 2 * width
        self.stem = _matrix(features, width)
        self.head = _matrix(width, classes)
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(width)) for _ in range(depth))
        self.up = nn.ParameterList(_matrix(width, hidden) for _ in range(depth))
        self.up_bias = nn.ParameterList(nn.Parameter(torch.zeros(hidden)) for _ in range(depth))
        self.down = nn.ParameterList(_matrix(hidden, width) for _ in range(depth))
        self.down_bias = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, features) to logits (batch, classes)."""
        x = x @ self.stem
        layers = zip(self.gains, self.up, self.up_bias, self.down, self.down_bias, strict=True)
        for gain, up, up_bias, down, down_bias in layers:
            normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain
            x = x + F.silu(normed @ up + up_bias) @ down + down_bias
        return x @ self.head


def _matrix(rows: int, columns: int) -> nn.Parameter:
    """A matrix that keeps the scale of what it is multiplied with."""
    return nn.Parameter(torch.randn(rows, columns) / math.sqrt(rows))


def model() -> nn.Module:
    """The network with random weights."""
    return PlainNetwork()


def example_inputs() -> tuple[Tensor, ...]:
    """Two rows of 32 features."""
    return (torch.randn(2, 32),)
