"""A network of stages, whose repeats are similar ones, and its inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Unit(nn.Module):
    """A basic block; where it changes the size, its shortcut is a projection."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.down = nn.Sequential(nn.Conv2d(given, width, 1, stride), nn.BatchNorm2d(width)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.down is None else self.down(x)))


class Stages(nn.Module):
    """ResNet-18 in small: stages of a few units, each stage twice as wide and half as large as the one before."""

    def __init__(self, *depths: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        widths = [4 * 2**i for i in range(len(depths))]
        self.units = nn.ModuleList()
        given = 4
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for i in range(depth):
                self.units.append(Unit(given, width, 2 if number and not i else 1))
                given = width
        self.head = nn.Linear(given, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            x = unit(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
