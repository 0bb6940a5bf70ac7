"""Samples that cannot be are refused by their number, from loaders too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, Tensors
from repl_fx.training.data.loaders import BatchLoader
from repl_fx.training.data.samples import samples_of


class Listed(Dataset[Any]):
    def __init__(self, *samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


PICTURE, MASK = torch.rand(3, 2, 4), torch.zeros(2, 4, dtype=torch.long)


def checked(*samples: Any, task: Any = "segmentation", flip: bool = False) -> Dataset[Any]:
    data = Data("mine", task, 2, (3, 2, 4), Listed(*samples), Listed(*samples))
    made = samples_of(data, data.train, "train", flip=flip)
    assert not isinstance(made, Tensors)
    return made


def test_masks_come_in_a_tensor() -> None:
    pictures, masks = next(iter(BatchLoader(checked((PICTURE, MASK), (PICTURE, MASK + 1)), 2, workers=0)))
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
        next(iter(BatchLoader(checked((PICTURE, MASK), sample), 2, workers=0)))


def boxed(*boxes: tuple[float, ...], width: int = 6, **more: Any) -> tuple[Tensor, dict[str, Any]]:
    """A picture that is bright in its boxes."""
    picture = torch.zeros(3, 4, width, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        picture[:, int(y1) : int(y2), int(x1) : int(x2)] = 255
    target = {"boxes": torch.tensor(boxes).reshape(-1, 4).float(), "labels": torch.ones(len(boxes), dtype=torch.long)}
    return picture, {**target, **more}


def test_pictures_of_any_size_come_in_lists() -> None:
    samples = boxed((0, 0, 2, 3), (3, 1, 5, 4)), boxed((4, 1, 9, 3), width=10, image_id=7), boxed()
    loader = BatchLoader(checked(*samples, task="detection"), 2, workers=0)
    batches = list(loader)
    assert [[tuple(one.shape) for one in pictures] for pictures, _ in batches] == [[(3, 4, 6), (3, 4, 10)], [(3, 4, 6)]]
    pictures, targets = batches[0]
    assert pictures[0].dtype == torch.float32 and pictures[0].max() == 1
    assert torch.equal(targets[0]["boxes"], samples[0][1]["boxes"]) and targets[1]["image_id"] == 7
    assert batches[1][1][0]["boxes"].shape == (0, 4)


def test_boxes_and_masks_are_mirrored_with_their_pictures() -> None:
    masks = boxed((1, 0, 3, 2))[0][:1] // 255
    samples = [boxed((1, 0, 3, 2), masks=masks)] * 12
    loader = BatchLoader(checked(*samples, task="detection", flip=True), 12, workers=0)
    pictures, targets = next(iter(loader))
    seen = {tuple(target["boxes"][0].tolist()) for target in targets}
    assert seen == {(1, 0, 3, 2), (3, 0, 5, 2)}
    for picture, target in zip(pictures, targets, strict=True):
        assert type(picture) is type(target["boxes"]) is type(target["masks"]) is Tensor
        x1, y1, x2, y2 = target["boxes"][0].long().tolist()
        assert picture[:, y1:y2, x1:x2].min() == 1 and picture.sum() == 12
        assert torch.equal(target["masks"][0].float(), picture[0])
    again, _ = next(iter(BatchLoader(checked(*samples, task="detection", flip=True), 12, workers=0)))
    assert all(map(torch.equal, pictures, again))
    pointed = [boxed((1, 0, 3, 2), keypoints=torch.ones(1, 2, 3))] * 12
    pictures, _ = next(iter(BatchLoader(checked(*pointed, task="detection", flip=True), 12, workers=0)))
    assert all(torch.equal(one, pictures[0]) for one in pictures)


def test_a_box_that_cannot_be_is_a_line() -> None:
    picture, target = boxed((0, 0, 2, 3))
    wrong = {**target, "labels": torch.tensor([2])}
    with pytest.raises(BadInput, match="mine: train: sample 1: label 2 is out of range; labels are 1 to 1"):
        list(BatchLoader(checked((picture, target), (picture, wrong), task="detection"), 2, workers=0))
