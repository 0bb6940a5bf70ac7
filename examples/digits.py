"""A small residual network for scikit-learn's handwritten digits: grey 8×8 pictures, six blocks of two convolutions.

The blocks are those of He et al., Identity Mappings in Deep Residual Networks (arXiv 1603.05027): norm and activation
before each convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions beside a path that leaves the picture as it is.

    Args:
        width: number of channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, width, height, width of the picture)."""
        inner = self.conv1(F.relu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.relu(self.norm2(inner)))
        return out


def model() -> nn.Module:
    """The network; its logits are (batch, 10)."""
    width = 32
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        *(Block(width) for _ in range(6)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def example_inputs() -> tuple[Tensor, ...]:
    """Two pictures."""
    return (torch.randn(2, 1, 8, 8),)
