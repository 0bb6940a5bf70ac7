"""A residual MLP for small tables: eight pre-norm blocks of width 256, 64 features in and 10 classes out.

The sizes are those of the 8×8 digits of scikit-learn. The blocks follow the ResNet for tables of
Gorishniy et al. (arXiv 2106.11959).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Norm, widen, ReLU, narrow, add.

    Args:
        width: size of the input and the output.
        dropout: probability of dropping a hidden feature.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width) to the same shape."""
        hidden = self.dropout(self.activation(self.up(self.norm(x))))
        out: Tensor = x + self.down(hidden)
        return out


class ResidualMLP(nn.Module):
    """A stack of residual blocks between two linear layers.

    Args:
        features: size of the input.
        classes: size of the output.
        width: size between the blocks.
        depth: number of blocks.
        dropout: probability of dropping a hidden feature.
    """

    def __init__(
        self, features: int = 64, classes: int = 10, width: int = 256, depth: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(features, width)
        self.blocks = nn.Sequential(*(Block(width, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, features) to logits (batch, classes)."""
        logits: Tensor = self.head(self.norm(self.blocks(self.stem(x))))
        return logits


def model() -> nn.Module:
    """The residual MLP with random weights."""
    return ResidualMLP()


def example_inputs() -> tuple[Tensor, ...]:
    """Two rows of 64 features."""
    return (torch.randn(2, 64),)
