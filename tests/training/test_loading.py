"""Which changes the inputs of a run go through."""

from __future__ import annotations

import pytest
import torch

from repl_fx.errors import BadInput
from repl_fx.training.config import TrainConfig
from repl_fx.training.data.augmentation import Chain, CropAndFlip, CutMix, Mixup, Normalise
from repl_fx.training.data.kinds import Data, Tensors, UserData
from repl_fx.training.data.loaders import BatchLoader
from repl_fx.training.loading import loaders
from tests.training.runs import pictures, scenes

TABLE = Tensors(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))
CPU = torch.device("cpu")


def _kinds(loader: object) -> list[type]:
    assert isinstance(loader, BatchLoader)
    assert isinstance(loader.change, Chain)
    return [type(change) for change in loader.change.changes]


def test_training_pictures_are_changed_and_those_held_out_are_not() -> None:
    data, config = pictures(), TrainConfig(mixup=0.2, cutmix=1.0, augment=True, batch_size=8)
    assert _kinds(loaders(data, config, CPU)[0]) == [CropAndFlip, CutMix, Normalise, Mixup]
    assert _kinds(loaders(data, config, CPU)[1]) == [Normalise]
    assert _kinds(loaders(data, TrainConfig(batch_size=8), CPU)[0]) == [Normalise]


def test_what_is_grey_is_not_mirrored() -> None:
    loader, _ = loaders(pictures(), TrainConfig(augment=True, batch_size=8), CPU)
    assert isinstance(loader, BatchLoader) and isinstance(loader.change, Chain)
    assert loader.change.changes[0] == CropAndFlip(1, flip=False)


def test_text_is_as_it_is() -> None:
    ids = torch.arange(24).reshape(4, 6)
    data = Data("text", "language-modelling", 256, (6,), Tensors(ids, ids + 1), Tensors(ids, ids + 1))
    assert _kinds(loaders(data, TrainConfig(batch_size=2), CPU)[0]) == []


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        (scenes(4, 2), {"mixup": 0.2}, "--mixup is for classification, and shapes is data for segmentation; leave it"),
        (UserData("mine", [1], [1]), {"cutmix": 1.0}, "--cutmix changes data sets, and mine gives batches"),
        (
            Data("table", "classification", 2, (3,), TABLE, TABLE),
            {"cutmix": 1.0},
            r"--cutmix is for pictures, and inputs of table are of shape \(3,\); leave it out",
        ),
    ],
)
def test_mixtures_that_cannot_be_are_a_line(data: Data | UserData, settings: dict[str, float], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        loaders(data, TrainConfig(batch_size=2).changed(**settings), CPU)


def test_pictures_with_masks_are_changed_like_others() -> None:
    train, test = loaders(scenes(4, 2), TrainConfig(augment=True, batch_size=2), CPU)
    assert _kinds(train) == [CropAndFlip, Normalise] and _kinds(test) == [Normalise]


def test_all_that_is_held_out_is_seen_once() -> None:
    seen = torch.cat([targets for _, targets in loaders(pictures(), TrainConfig(batch_size=5), CPU)[1]])
    assert len(seen) == 16
