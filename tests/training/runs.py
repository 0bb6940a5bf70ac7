"""Small networks and small data to train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import repl_fx
from examples.shapes import CLASSES, scene
from repl_fx.training.data.kinds import Data, Tensors
from tests.nets import ConvBlock, MlpBlock


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


class PixelNet(nn.Module):
    """Pictures (batch, 3, height, width) to three classes at half the size, and again from the stem alone."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(ConvBlock(8) for _ in range(3)))
        self.head, self.aux = nn.Conv2d(8, classes, 1), nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        return {"out": self.head(self.blocks(x)), "aux": self.aux(x)}


def scenes(train: int = 32, test: int = 8) -> Data:
    """Pictures of squares and discs, and their masks."""
    drawn = [scene(number, 16) for number in range(train + test)]
    inputs = torch.stack([torch.from_numpy(one.picture).permute(2, 0, 1) for one in drawn])
    masks = torch.stack([torch.from_numpy(one.mask).long() for one in drawn])
    splits = Tensors(inputs[:train], masks[:train]), Tensors(inputs[train:], masks[train:])
    return Data("shapes", "segmentation", len(CLASSES), (3, 16, 16), *splits, (0.3,) * 3, (0.3,) * 3)


def pixel_net(seed: int = 0) -> nn.Module:
    """The network for pixels with a surrogate in place."""
    torch.manual_seed(seed)
    return repl_fx.transform(PixelNet(), (torch.randn(2, 3, 16, 16),), surrogate="blend").model
