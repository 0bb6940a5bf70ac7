"""Pictures with masks in files: pairs, classes, sizes, and files that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

pytest.importorskip("torchvision")

from PIL import Image

from examples import shapes
from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data
from repl_fx.training.data.masks import MaskedPictures
from repl_fx.training.data.sets import load_data


def read(path: Path, size: int | None = None) -> Data:
    data = load_data(f"masks:{path}", size=size)
    assert isinstance(data, Data)
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scenes = [shapes.scene(number, 16) for number in range(5)]
    shapes.write_masks(tmp_path / "train", scenes[:3])
    shapes.write_masks(tmp_path / "test", scenes[3:])
    return tmp_path


def mask_of(folder: Path) -> Path:
    return folder / "train" / "masks" / "0001.png"


def test_pictures_and_masks_are_read(folder: Path) -> None:
    data = read(folder)
    assert str(data) == f"masks:{folder}: 3 + 2 of 3x16x16, 3 classes" and data.task == "segmentation"
    assert isinstance(data.train, MaskedPictures) and isinstance(data.test, MaskedPictures)
    for split, first in ((data.train, 0), (data.test, 3)):
        for number, (picture, mask) in enumerate(split[index] for index in range(len(split))):
            wanted = shapes.scene(first + number, 16)
            assert torch.equal(picture, torch.from_numpy(wanted.picture).permute(2, 0, 1))
            assert type(mask) is torch.Tensor and torch.equal(mask, torch.from_numpy(wanted.mask).long())
    assert data.mean == ()


def test_a_mask_is_cut_like_its_picture_and_keeps_its_numbers(folder: Path) -> None:
    # The middle of a wide picture is its columns 4 to 11.
    wide = np.zeros((8, 16), dtype=np.uint8)
    wide[:, 4:8] = 2
    Image.fromarray(wide).save(mask_of(folder))
    Image.fromarray(wide * 100).convert("RGB").save(folder / "train" / "images" / "0001.png")
    (folder / "test").rename(folder / "val")
    data = read(folder, size=4)
    assert isinstance(data.train, MaskedPictures)
    picture, mask = data.train[1]
    assert picture.shape == (3, 4, 4) and mask.tolist() == [[2, 2, 0, 0]] * 4
    assert torch.equal(picture[0] > 100, mask == 2)


def test_a_palette_is_of_numbers_too(folder: Path) -> None:
    mask = Image.open(mask_of(folder))
    coloured = mask.convert("L").copy()
    coloured.putpalette([7, 8, 9] * 256)
    assert coloured.mode == "P"
    coloured.save(mask_of(folder))
    split = read(folder).train
    assert isinstance(split, MaskedPictures)
    assert torch.equal(split[1][1], torch.from_numpy(shapes.scene(1, 16).mask).long())


def _broken(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


def _save(array: npt.NDArray[Any], file: Path) -> None:
    Image.fromarray(array).save(file)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: mask_of(path).unlink(), r"images/0001.png has no mask in .*train; give one of the same name"),
        (lambda path: (path / "test/images/0000.png").unlink(), r"masks/0000.png has no picture in .*test"),
        (lambda path: _broken(mask_of(path)), r"picture .*masks/0001.png cannot be read"),
        (lambda path: _broken(path / "train/images/0001.png"), r"picture .*images/0001.png cannot be read"),
        (lambda path: _save(np.zeros((4, 5), np.uint8), mask_of(path)), r"0001.png and its picture are 4x5 and 16x16"),
        (
            lambda path: _save(np.zeros((16, 16, 3), np.uint8), mask_of(path)),
            "0001.png is RGB; give the number",
        ),
        (
            lambda path: _save(np.full((16, 16), 300, np.uint16), mask_of(path)),
            "has the class 300; give classes from 0 to 254",
        ),
        (lambda path: _save(np.zeros((9, 9), np.uint8), path / "train/images/0001.jpg"), "0001.png have the same name"),
        (lambda path: (path / "test").rename(path / "other"), r"no folder .*test.images; give pictures in images/"),
        (lambda path: (path / "train").rename(path / "other"), r"no folder .*train; give one with train/images"),
        (lambda path: _save(np.full((16, 16), 3, np.uint8), path / "test/masks/0001.png"), None),
    ],
)
def test_what_cannot_be_is_a_line(folder: Path, spoil: object, said: str | None) -> None:
    assert callable(spoil)
    spoil(folder)
    if said is None:
        # One to be tested on is not read before: the loaders check it.
        read(folder)
        return
    with pytest.raises(BadInput, match=said) as refused:
        found: Any = read(folder).train
        for index in range(len(found)):
            found[index]
    assert "\n" not in str(refused.value)
