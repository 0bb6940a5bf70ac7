"""Samples that cannot be are refused by their number, from loaders too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from repl_fx.errors import BadInput
from repl_fx.training.data.kinds import Data, Tensors
from repl_fx.training.data.loaders import FileLoader
from repl_fx.training.data.samples import samples_of


class Listed(Dataset[Any]):
    def __init__(self, *samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


PICTURE, MASK = torch.rand(3, 2, 4), torch.zeros(2, 4, dtype=torch.long)


def checked(*samples: Any) -> Dataset[Any]:
    data = Data("mine", "segmentation", 2, (3, 2, 4), Listed(*samples), Listed(*samples))
    made = samples_of(data, data.train, "train")
    assert not isinstance(made, Tensors)
    return made


def test_masks_come_in_a_tensor() -> None:
    pictures, masks = next(iter(FileLoader(checked((PICTURE, MASK), (PICTURE, MASK + 1)), 2, workers=0)))
    assert pictures.shape == (2, 3, 2, 4) and masks.dtype == torch.int64
    assert torch.equal(masks, torch.stack([MASK, MASK + 1]))


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ((PICTURE, MASK + 2), "mine: train: sample 1: label 2 is out of range; labels are 0 to 1, and 255 for none"),
        ((PICTURE, MASK[1:]), r"mine: train: sample 1: targets are of shape \(1, 4\); wanted is \(2, 4\)"),
        ((PICTURE, 1), "mine: train: sample 1: targets are an int"),
        ((PICTURE[0], MASK), r"mine: train: sample 1: the picture is of shape \(2, 4\); give a tensor"),
        (("name.png", MASK), "mine: train: sample 1: the picture is a str; give a tensor"),
        ((PICTURE[:, 1:], MASK[1:]), "inputs of a batch are of shapes 3x1x4 and 3x2x4; bring them to one size"),
    ],
)
def test_what_cannot_be_is_a_line(sample: tuple[Any, Tensor], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        next(iter(FileLoader(checked((PICTURE, MASK), sample), 2, workers=0)))
