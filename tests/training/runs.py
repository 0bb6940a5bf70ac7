"""Small networks and small data to train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import repl_fx
from examples.shapes import CLASSES, scene
from repl_fx.training.data.data_set import Data, Tensors
from repl_fx.training.data.targets import no_targets
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


class OneByOne(Net):
    """The network with a loop over its inputs, which a graph has for one batch alone."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.stack([logits[i] for i in range(x.shape[0])])


def pictures(count: int = 48) -> Data:
    """Pictures whose class is where they are bright."""
    drawn = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (count + 16,), generator=drawn)
    inputs = torch.randint(0, 60, (count + 16, 1, 4, 4), generator=drawn, dtype=torch.uint8)
    inputs[torch.arange(count + 16), 0, targets] += 150
    train, test = Tensors(inputs[:count], targets[:count]), Tensors(inputs[count:], targets[count:])
    return Data("bright", "classification", 3, (1, 4, 4), train, test, (0.3,), (0.3,))


def bare() -> Data:
    """The pictures without their classes."""
    data = pictures()
    assert isinstance(data.train, Tensors) and isinstance(data.test, Tensors)
    train, test = (Tensors(part.inputs, no_targets(part.inputs)) for part in (data.train, data.test))
    return replace(data, train=train, test=test, classes=0, has_targets=False)


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


class Spots(nn.Module):
    """Detects one spot in a picture (3, 8, 8) or larger, with losses in training as torchvision's models give them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(64, 16), nn.Sequential(*(MlpBlock(16) for _ in range(3)))
        self.box, self.label = nn.Linear(16, 4), nn.Linear(16, 3)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        small = torch.stack([F.adaptive_avg_pool2d(image.mean(0, keepdim=True), 8).flatten() for image in images])
        hidden = self.blocks(self.stem(small))
        boxes, logits = self.box(hidden) + torch.tensor([2.0, 2.0, 6.0, 6.0]), self.label(hidden)
        if self.training:
            assert targets is not None
            wanted = torch.stack([target["boxes"][0] for target in targets])
            labels = torch.cat([target["labels"] for target in targets])
            return {"boxes": F.l1_loss(boxes, wanted), "labels": F.cross_entropy(logits, labels)}
        scores, labels = logits.softmax(1)[:, 1:].max(1)
        return [
            {"boxes": boxes[i : i + 1], "scores": scores[i : i + 1], "labels": labels[i : i + 1] + 1}
            for i in range(len(images))
        ]


class SpottedPictures(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Pictures (3, 8, 8) or wider with one spot, wide or high."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = torch.Generator().manual_seed(self.first + index)
        picture = torch.rand(3, 8, 8 + index % 2, generator=drawn) / 4
        wide = int(torch.randint(2, (), generator=drawn))
        x, y = torch.randint(0, 4, (2,), generator=drawn).tolist()
        box = torch.tensor([x, y, x + (4 if wide else 2), y + (2 if wide else 4)])
        picture[:, box[1] : box[3], box[0] : box[2]] += 0.7
        return picture, {"boxes": box[None].float(), "labels": torch.tensor([1 + wide])}


def spots(train: int = 48, test: int = 16) -> Data:
    """Pictures with a spot each."""
    return Data("spots", "detection", 3, (3,), SpottedPictures(0, train), SpottedPictures(train, test))


def spots_net(seed: int = 0) -> nn.Module:
    """The network for spots with a surrogate in place."""
    torch.manual_seed(seed)
    images, targets = zip(*(SpottedPictures(0, 2)[index] for index in range(2)), strict=True)
    return repl_fx.transform(Spots(), (list(images), list(targets)), surrogate="blend").model
