"""A small network and small data to train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.training.data.kinds import Data, Tensors
from tests.nets import MlpBlock


class Net(nn.Module):
    """Pictures (batch, 1, 4, 4) to three classes."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 8)
        self.blocks = nn.Sequential(*(MlpBlock(8) for _ in range(3)))
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.blocks(self.stem(x.flatten(1)))))  # type: ignore[no-any-return]


def pictures(count: int = 48) -> Data:
    """Pictures whose class is where they are bright."""
    drawn = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (count + 16,), generator=drawn)
    inputs = torch.randint(0, 60, (count + 16, 1, 4, 4), generator=drawn, dtype=torch.uint8)
    inputs[torch.arange(count + 16), 0, targets] += 150
    train, test = Tensors(inputs[:count], targets[:count]), Tensors(inputs[count:], targets[count:])
    return Data("bright", "classification", 3, (1, 4, 4), train, test, (0.3,), (0.3,))


def rewritten(seed: int = 0) -> nn.Module:
    """The network with a surrogate in place."""
    torch.manual_seed(seed)
    return repl_fx.transform(Net(), (torch.randn(2, 1, 4, 4),), surrogate="blend").model
