"""Which changes the inputs of a run go through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from examples import shapes
from repl_fx.errors import BadInput
from repl_fx.sources import Purpose
from repl_fx.tracing.parts.origin import Preprocessing
from repl_fx.training.data.augmentation import CropAndFlip, CutMix, Mixup, Normalise
from repl_fx.training.data.data_set import Data, Tensors, UserData
from repl_fx.training.data.loaders import BatchLoader
from repl_fx.training.loading import changes_of, kept_preprocessing, loaders, prepared, purpose_of, read_data
from repl_fx.training.train_config import TrainConfig
from tests.training.runs import pictures, scenes

TABLE = Tensors(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))
CPU = torch.device("cpu")


def _kinds(loader: object) -> list[type]:
    assert isinstance(loader, BatchLoader)
    return [type(change) for change in loader.changes]


def test_training_pictures_are_changed_and_those_held_out_are_not() -> None:
    data, config = pictures(), TrainConfig(mixup=0.2, cutmix=1.0, augment=True, batch_size=8)
    assert _kinds(loaders(data, config, CPU)[0]) == [CropAndFlip, CutMix, Normalise, Mixup]
    assert _kinds(loaders(data, config, CPU)[1]) == [Normalise]
    assert _kinds(loaders(data, TrainConfig(batch_size=8), CPU)[0]) == [Normalise]


def test_what_is_grey_is_not_mirrored() -> None:
    loader, _ = loaders(pictures(), TrainConfig(augment=True, batch_size=8), CPU)
    assert isinstance(loader, BatchLoader)
    assert loader.changes[0] == CropAndFlip(1, flip=False)


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


def test_pictures_with_masks_get_the_channels_that_the_weights_want(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    for part in ("train", "test"):
        shapes.write_masks(tmp_path / part, [shapes.scene(number, 16) for number in range(3)])
    config = TrainConfig(data=f"masks:{tmp_path}")
    data = prepared(read_data(config), WANTED, config)
    assert isinstance(data, Data) and (data.shape, data.mean, data.std) == ((3, 16, 16), WANTED.mean, WANTED.std)
    assert kept_preprocessing(WANTED, data, config) == WANTED
    told = config.changed(normalise="none")
    assert prepared(read_data(told), WANTED, told).mean == ()  # type: ignore[union-attr]


def test_all_that_is_held_out_is_seen_once() -> None:
    seen = torch.cat([targets for _, targets in loaders(pictures(), TrainConfig(batch_size=5), CPU)[1]])
    assert len(seen) == 16


def _folder(place: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for number, name in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (place / name).mkdir(parents=True)
        for size in (20, 31, 44):
            image.new("RGB", (size, 2 * size), (60 * number, 90, 120)).save(place / name / f"{size}.png")
    return place


WANTED = Preprocessing("theirs", (24,), "bicubic", (16, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_pictures_in_files_come_as_the_weights_want_them(tmp_path: Path) -> None:
    config = TrainConfig(data=f"folder:{_folder(tmp_path)}", batch_size=4)
    read = read_data(config)
    assert purpose_of(read, config) == Purpose("classification", 2, ())
    data = prepared(read, WANTED, config)
    assert isinstance(data, Data) and (data.shape, data.mean, data.std) == ((3, 16, 16), WANTED.mean, WANTED.std)
    (inputs, _), *_ = loaders(data, config, CPU)[1]
    assert inputs.shape == (6, 3, 16, 16)
    colour = torch.tensor([120.0, 90, 120]) / 255
    torch.testing.assert_close(inputs[0, :, 0, 0], (colour - torch.tensor(WANTED.mean)) / torch.tensor(WANTED.std))
    sizes, channels = (line.removeprefix(config.data) for line in changes_of(data, config)[1::2])
    assert sizes.endswith("the shorter side brought to 24 pixels, bicubic, the middle 16 x 16 taken (as theirs wants)")
    assert channels.endswith(
        "less their mean (0.5, 0.4, 0.3), divided by their deviation (0.2, 0.3, 0.4) (as theirs wants)"
    )
    # What the user says comes first.
    scales = {"size": (WANTED.mean, WANTED.std), "normalise": ((), ()), "mean": ((0.5,) * 3, (0.25,) * 3)}
    for told in ({"size": 8}, {"normalise": "none"}, {"mean": "0.5", "std": "0.25"}):
        own = config.changed(**told)
        as_told = prepared(read_data(own), WANTED, own)
        assert isinstance(as_told, Data) and (as_told.mean, as_told.std) == scales[next(iter(told))]
        assert as_told.shape == ((3, 8, 8) if "size" in told else (3, 16, 16))


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ({}, WANTED),
        ({"normalise": "none"}, structs.replace(WANTED, mean=(), std=())),
        ({"mean": "0.5", "std": "0.25"}, structs.replace(WANTED, mean=(0.5,) * 3, std=(0.25,) * 3)),
        ({"size": 8}, structs.replace(WANTED, resize=(8,), crop=(8, 8), interpolation="bilinear")),
    ],
    ids=["nothing", "normalise", "mean", "size"],
)
def test_what_pictures_go_through_is_kept(tmp_path: Path, told: dict[str, Any], kept: Preprocessing) -> None:
    plain = TrainConfig(data=f"folder:{_folder(tmp_path)}", batch_size=4)
    config = plain.changed(**told)
    data = prepared(read_data(config), WANTED, config)
    found = kept_preprocessing(WANTED, data, config)
    assert found == kept
    # As the artifact's own, it does the same.
    again = prepared(read_data(plain), found, plain)
    for first, second in zip(loaders(data, config, CPU)[1], loaders(again, plain, CPU)[1], strict=True):
        assert torch.equal(first[0], second[0])


def test_a_run_without_weights_that_know_keeps_what_it_did(tmp_path: Path) -> None:
    config = TrainConfig(data=f"folder:{_folder(tmp_path)}", size=8, normalise="imagenet")
    found = kept_preprocessing(None, read_data(config), config)
    wanted: Any = {"crop": (8, 8), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert found == Preprocessing("its training", (8,), **wanted)
    plain = TrainConfig(data=config.data)
    floats = Tensors(torch.zeros(4, 3, 6, 6), torch.tensor([0, 1, 0, 1]))
    read = Data("npz:x", "classification", 2, (3, 6, 6), floats, floats)
    assert kept_preprocessing(None, read_data(plain), plain) is None
    assert kept_preprocessing(WANTED, read, plain.changed(normalise="data")) is WANTED


def test_bytes_in_memory_get_the_channels_that_the_weights_want_and_floats_pass() -> None:
    config, colours = TrainConfig(data="npz:x"), torch.zeros(4, 3, 6, 6, dtype=torch.uint8)
    split = Tensors(colours, torch.tensor([0, 1, 0, 1]))
    read = Data("npz:x", "classification", 2, (3, 6, 6), split, split, (0.1,) * 3, (0.9,) * 3)
    assert purpose_of(read, config) == Purpose("classification", 2, (3, 6, 6))
    assert purpose_of(read, config, trained=True) == Purpose("classification")
    data = prepared(read, WANTED, config)
    assert isinstance(data, Data) and (data.mean, data.shape) == (WANTED.mean, (3, 6, 6))
    floats = Tensors(colours.float(), split.targets)
    for other in (replace(read, train=floats, test=floats), read):
        preprocessing = WANTED if other is not read else None
        assert prepared(other, preprocessing, config) is other
    grey = Tensors(colours[:, :1], split.targets)
    one = replace(read, shape=(1, 6, 6), train=grey, test=grey, mean=(), std=())
    assert prepared(one, WANTED, config) is one
    assert prepared(read, WANTED, config.changed(data="mine.py:data")) is read


def test_loaders_say_what_they_are_for_by_the_task_and_a_batch() -> None:
    batches = [({"ids": torch.zeros(4, 3, dtype=torch.int64), "mask": torch.ones(4, 3)}, torch.zeros(4))]
    data = UserData("mine", batches, batches)
    assert purpose_of(data, TrainConfig(task="mine.py:Task")) is None
    assert purpose_of(data, TrainConfig(task="classification")) == Purpose("classification", shape=(3,))
    found = purpose_of(data, TrainConfig())
    assert found is not None and found.task == "" and found.inputs is not None
    assert {name: tuple(value.shape) for name, value in found.inputs.kwargs.items()} == {"ids": (2, 3), "mask": (2, 3)}
    module = UserData("mine", module=object())
    assert purpose_of(module, TrainConfig()) is None
    assert purpose_of(module, TrainConfig(task="classification")) == Purpose("classification")
