"""COCO's layout: boxes, classes, masks, and annotations that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from PIL import Image

from examples import shapes
from repl_fx.errors import BadInput
from repl_fx.training.data.coco import BoxedPictures
from repl_fx.training.data.data_set import Data
from repl_fx.training.data.sets import load_data

Found = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scenes = [shapes.scene(number, 32) for number in range(6)]
    shapes.write_coco(tmp_path, "train2017", scenes[:4])
    shapes.write_coco(tmp_path, "val2017", scenes[4:])
    return tmp_path


def change(folder: Path, by: Callable[[Found], object], split: str = "train2017") -> None:
    file = folder / "annotations" / f"instances_{split}.json"
    found = json.loads(file.read_text())
    by(found)
    file.write_text(json.dumps(found))


def read(folder: Path) -> tuple[Data, BoxedPictures, BoxedPictures]:
    data = load_data(f"coco:{folder}")
    assert isinstance(data, Data) and isinstance(data.train, BoxedPictures) and isinstance(data.test, BoxedPictures)
    return data, data.train, data.test


def test_boxes_classes_and_masks(folder: Path) -> None:
    data, train, _ = read(folder)
    assert str(data) == f"coco:{folder}: 4 + 2 of pictures, 3 classes" and data.task == "detection"
    for number in range(4):
        wanted = shapes.scene(number, 32)
        picture, target = train[number]
        assert torch.equal(picture, torch.from_numpy(wanted.picture).permute(2, 0, 1))
        kinds = [kind for kind, *_ in wanted.shapes]
        boxes = [(x - half, y - half, x + half, y + half) for _, x, y, half in wanted.shapes]
        assert target["labels"].tolist() == kinds
        assert torch.equal(target["boxes"], torch.tensor(boxes).reshape(-1, 4))
        for kind, mask in zip(kinds, target["masks"], strict=True):
            inside = torch.from_numpy(wanted.mask) == kind
            # The rim of a shape, of no class, lies on the border of the mask.
            assert mask[inside].float().mean() > 0.95 and int(mask.sum()) < 2 * int(inside.sum())


@pytest.mark.parametrize(
    ("numbers", "classes"),
    [
        ([1, 2, 3, 5], [1, 2, 3, 5]),  # As COCO's own, by which weights of torchvision count.
        ([1, 2, 3, 6], [1, 2, 3, 4]),
        ([0, 1, 2, 3], [1, 2, 3, 4]),
    ],
)
def test_categories_with_few_gaps_keep_their_numbers(folder: Path, numbers: list[int], classes: list[int]) -> None:
    def number_them(found: Found) -> None:
        found["categories"] = [{"id": number, "name": str(number)} for number in numbers]
        for one in found["annotations"]:
            one["category_id"] = numbers[-1]

    for split in ("train2017", "val2017"):
        change(folder, number_them, split)
    data, train, _ = read(folder)
    assert data.classes == classes[-1] + 1 and list(train.labels.values()) == classes
    assert set(train[0][1]["labels"].tolist()) == {classes[-1]}


def test_pictures_without_boxes_are_kept(folder: Path) -> None:
    change(folder, lambda found: found["annotations"].clear())
    _, target = read(folder)[1][2]
    assert target["boxes"].shape == (0, 4) and target["labels"].dtype == torch.int64
    assert target["masks"].shape == (0, 32, 32)


def _crowd(found: Found) -> None:
    found["annotations"][0] |= {"iscrowd": 1, "segmentation": {"size": [32, 32], "counts": [32, 64, 928]}}


def test_crowds_count_in_an_evaluation_alone(folder: Path) -> None:
    for split in ("train2017", "val2017"):
        change(folder, _crowd, split)
    _, train, test = read(folder)
    assert len(train[0][1]["boxes"]) == len(shapes.scene(0, 32).shapes) - 1
    _, target = test[0]
    assert target["iscrowd"].tolist()[0] == 1 and len(target["boxes"]) == len(shapes.scene(4, 32).shapes)
    # Runs go down the columns.
    assert target["masks"][0].sum() == 64 and bool(target["masks"][0][:, 1:3].all())


def _set(**values: Any) -> Callable[[Found], None]:
    return lambda found: found["annotations"][0].update(values)


def test_boxes_are_cut_off_at_the_border_and_those_without_extent_left_out(folder: Path) -> None:
    change(folder, _set(bbox=[-3, 20, 10, 12.5]))
    data, train, _ = read(folder)
    assert train[0][1]["boxes"][0].tolist() == [0, 20, 7, 32]
    said = "boxes of coco:{}: {} without extent left out, {} cut off at the border of their picture"
    assert data.changes[1:] == (said.format(folder, 0, 1),)
    change(folder, _set(bbox=[3, 20, 10, 0]))
    assert len(read(folder)[1][0][1]["boxes"]) == len(shapes.scene(0, 32).shapes) - 1
    assert read(folder)[0].changes[1:] == (said.format(folder, 1, 0),)
    for split in ("train2017", "val2017"):
        change(folder, lambda found: found["annotations"].clear(), split)
    assert len(read(folder)[0].changes) == 1


def test_without_outlines_there_are_no_masks(folder: Path) -> None:
    change(folder, lambda found: found["annotations"][0].pop("segmentation"))
    assert set(read(folder)[1][0][1]) == {"boxes", "labels", "iscrowd"}


@pytest.mark.parametrize("outline", [[], [[]], None])
def test_an_empty_outline_is_none(folder: Path, outline: object) -> None:
    change(folder, _set(segmentation=outline))
    _, target = read(folder)[1][0]
    assert set(target) == {"boxes", "labels", "iscrowd"}


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (_set(bbox=[40, 2, 5, 5]), r"annotation 1 has the box \[40.0, 2.0, 5.0, 5.0\], which lies outside"),
        (_set(bbox=[4, 2, -5, 5]), r"annotation 1 has the box \[4.0, 2.0, -5.0, 5.0\]; give x, y, width, height"),
        (
            _set(bbox=[4, 2, 5]),
            r"instances_train2017.json holds no COCO annotations \(ValidationError: Expected `array`",
        ),
        (_set(category_id=5), "annotation 1 is of category 5, which is not there"),
        (_set(image_id=99), "annotation 1 is of image 99, which is not there"),
        (lambda found: found["images"].append(found["images"][0]), "two images have the same number"),
        (lambda found: found["categories"].pop(), r"category \(20, 'disc'\) is not in both files of annotations"),
        (lambda found: found.pop("images"), "holds no COCO annotations .*missing required field `images`"),
    ],
)
def test_annotations_that_cannot_be_are_a_line(folder: Path, by: Callable[[Found], object], said: str) -> None:
    change(folder, by)
    with pytest.raises(BadInput, match=said) as refused:
        read(folder)
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read_are_a_line(folder: Path) -> None:
    picture = folder / "train2017" / "000000000001.png"
    train = read(folder)[1]
    Image.new("RGB", (32, 30)).save(picture)
    with pytest.raises(BadInput, match=r"000000000001.png is 30x32, and its annotations say 32x32"):
        train[1]
    picture.unlink()
    with pytest.raises(BadInput, match=r"picture .*000000000001.png cannot be read"):
        train[1]
    for outline, said in (
        ({"size": [32, 32]}, "of annotation 1 cannot be read .KeyError"),
        ({"size": [30, 32], "counts": [960]}, "of annotation 1 is of 30x32 pixels, and its picture has 32x32"),
    ):
        change(folder, _set(segmentation=outline, bbox=[1, 1, 5, 5]))
        with pytest.raises(BadInput, match=said):
            read(folder)[1][0]
    file = folder / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(BadInput, match=r"instances_val2017.json holds no COCO annotations \(DecodeError"):
        read(folder)
    file.unlink()
    with pytest.raises(BadInput, match=r"no file .*instances_val2017.json; give a folder with train2017, val2017"):
        read(folder)


def test_a_missing_folder_of_pictures_is_a_line(folder: Path) -> None:
    (folder / "val2017").rename(folder / "other")
    with pytest.raises(BadInput, match=r"no folder .*val2017; give the pictures of"):
        read(folder)
