"""Pictures with boxes in COCO's layout, read file by file: `coco:PATH`.

PATH/train2017/*.jpg, PATH/val2017/*.jpg
PATH/annotations/instances_train2017.json, PATH/annotations/instances_val2017.json

Classes are the categories' numbers where these are from 1 to not many more than there are, as COCO's 80 up to 90, by
which trained models count; else they count from 1 in the order of the numbers. 0 is the background. Pictures without
boxes are kept. No crowd is trained on, and boxes without extent are left out, as in torchvision's
references/detection/coco_utils.py; in an evaluation crowds count as COCO counts them.

pycocotools decodes outlines. Its reader of the file, which torchvision's CocoDetection has too, prints to stdout, and
takes any annotation: of no image, of no category, of a box without numbers.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from repl_fx.errors import BadInput, foreign_code, one_line
from repl_fx.training.data.data_set import Data, DataRequest
from repl_fx.training.data.pictures import as_read, opened, rgb

_SPLITS = ("train2017", "val2017")
# The largest number of a category by how many there are, up to which the number is the class.
_GAPS = 1.25


class _Image(msgspec.Struct, frozen=True, gc=False):
    id: int
    file_name: str
    height: int
    width: int


class _Annotation(msgspec.Struct, frozen=True, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0
    # Polygons or runs; decoded with the picture.
    segmentation: msgspec.Raw = msgspec.Raw()

    @property
    def has_outline(self) -> bool:
        """Tell whether there is an outline: tools that draw boxes alone write an empty list, or null."""
        return bytes(self.segmentation).strip(b"[] \t\r\n") not in (b"", b"null")


class _Category(msgspec.Struct, frozen=True, gc=False):
    id: int
    name: str


class _Instances(msgspec.Struct, frozen=True):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True, eq=False)
class BoxedPictures(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Pictures with boxes, each read and decoded when it is asked for.

    Attributes:
        folder: of the pictures.
        images: entries of the annotations' file.
        annotations: those of each image, by its number.
        labels: the class of each category, by its number.
        outlined: whether each annotation has an outline, and samples get masks.
    """

    folder: Path
    images: Sequence[_Image]
    annotations: Mapping[int, Sequence[_Annotation]]
    labels: Mapping[int, int]
    outlined: bool

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """A picture, uint8 (3, height, width), and what is in it.

        That is boxes (n, 4) as x1, y1, x2, y2 in pixels, labels (n,), iscrowd (n,), and masks uint8
        (n, height, width) where there are outlines.

        Raises:
            BadInput: the picture or an outline cannot be read, or the picture is of another size; names it.
        """
        from torchvision.transforms import v2

        image = self.images[index]
        picture: Tensor = v2.functional.pil_to_tensor(opened(rgb, self.folder / image.file_name))
        if picture.shape[1:] != (image.height, image.width):
            sizes = f"{'x'.join(map(str, picture.shape[1:]))}, and its annotations say {image.height}x{image.width}"
            raise BadInput(f"picture {self.folder / image.file_name} is {sizes}; mend one of them")
        found = self.annotations.get(image.id, ())
        target = {
            "boxes": torch.tensor([_corners(one, image) for one in found], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([self.labels[one.category_id] for one in found], dtype=torch.int64),
            "iscrowd": torch.tensor([one.iscrowd for one in found], dtype=torch.int64),
        }
        if self.outlined:
            masks = [_mask(one, image) for one in found]
            target["masks"] = torch.stack(masks) if masks else torch.zeros(0, *picture.shape[1:], dtype=torch.uint8)
        return picture, target


def load_coco(request: DataRequest) -> Data:
    """Read the annotations of `coco:PATH`, see the module.

    Raises:
        BadInput: a file or a folder is missing or damaged, or an annotation cannot be; names it.
    """
    path = Path(request.argument)
    files = {split: path / "annotations" / f"instances_{split}.json" for split in _SPLITS}
    instances = {split: _read(file) for split, file in files.items()}
    train, test = (sorted((one.id, one.name) for one in found.categories) for found in instances.values())
    if train != test:
        first = min(set(train) ^ set(test))
        raise BadInput(f"{path}: category {first} is not in both files of annotations; give both the same")
    labels = _classes([number for number, _ in train], files[_SPLITS[0]])
    outlined = all(one.has_outline for found in instances.values() for one in found.annotations)
    splits: dict[str, BoxedPictures] = {}
    boxes: Counter[str] = Counter()
    for split, found in instances.items():
        if not (path / split).is_dir():
            raise BadInput(f"no folder {path / split}; give the pictures of {files[split]} there")
        by_image = _by_image(found, labels, files[split], boxes, crowds=split != _SPLITS[0])
        splits[split] = BoxedPictures(path / split, found.images, by_image, labels, outlined)
    train_part, test_part = (splits[split] for split in _SPLITS)
    changes = as_read(request)[:1]
    if boxes.total():
        left_out, cut = boxes["left out"], boxes["cut"]
        said = f"{left_out} without extent left out, {cut} cut off at the border of their picture"
        changes = (*changes, f"boxes of {request.name}: {said}")
    return Data(request.name, "detection", max(labels.values()) + 1, (3,), train_part, test_part, changes=changes)


def _classes(numbers: list[int], file: Path) -> dict[int, int]:
    """The class of each category by its number; numbers are in order."""
    if len(set(numbers)) < len(numbers) or not numbers:
        raise BadInput(f"{file}: {len(numbers)} categories with {len(set(numbers))} numbers; number each")
    own = numbers[0] > 0 and numbers[-1] <= _GAPS * len(numbers)
    return {number: number if own else place for place, number in enumerate(numbers, 1)}


def _read(file: Path) -> _Instances:
    if not file.is_file():
        raise BadInput(f"no file {file}; give a folder with {', '.join(_SPLITS)} and annotations")
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Instances)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise BadInput(f"{file} holds no COCO annotations ({one_line(problem)}); write it again") from problem


def _by_image(
    found: _Instances, labels: Mapping[int, int], file: Path, boxes: Counter[str], *, crowds: bool
) -> dict[int, list[_Annotation]]:
    """The annotations to use, by the number of their image; boxes that are not as in the file are counted."""
    images = {one.id: one for one in found.images}
    if len(images) < len(found.images):
        raise BadInput(f"{file}: two images have the same number; number each")
    kept: dict[int, list[_Annotation]] = defaultdict(list)
    for one in found.annotations:
        if one.image_id not in images:
            raise BadInput(f"{file}: annotation {one.id} is of image {one.image_id}, which is not there")
        if one.category_id not in labels:
            raise BadInput(f"{file}: annotation {one.id} is of category {one.category_id}, which is not there")
        x, y, width, height = one.bbox
        if not all(map(math.isfinite, one.bbox)) or width < 0 or height < 0:
            raise BadInput(f"{file}: annotation {one.id} has the box {list(one.bbox)}; give x, y, width, height")
        x1, y1, x2, y2 = _corners(one, images[one.image_id])
        if x1 < x2 and y1 < y2:
            boxes["cut"] += (x1, y1, x2, y2) != (x, y, x + width, y + height)
            if crowds or not one.iscrowd:
                kept[one.image_id].append(one)
        elif width and height:
            raise BadInput(f"{file}: annotation {one.id} has the box {list(one.bbox)}, which lies outside its picture")
        else:
            boxes["left out"] += 1
    return kept


def _corners(one: _Annotation, image: _Image) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a box, cut off at the border of its picture."""
    x, y, width, height = one.bbox
    return max(0.0, x), max(0.0, y), min(x + width, image.width), min(y + height, image.height)


def _mask(one: _Annotation, image: _Image) -> Tensor:
    """The pixels within an outline, (height, width)."""
    from pycocotools.coco import COCO

    fails = f"the outline of annotation {one.id} cannot be read"
    refused = foreign_code(lambda problem: BadInput(f"{fails} ({one_line(problem)}); mend it"))
    # pycocotools is older than the array protocol of numpy 2.
    with refused, warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        reader = COCO()
        reader.imgs = {image.id: {"height": image.height, "width": image.width}}
        outline = msgspec.json.decode(one.segmentation)
        found: Any = reader.annToMask({"image_id": image.id, "segmentation": outline})
    if found.shape != (image.height, image.width):
        sizes = f"{'x'.join(map(str, found.shape))} pixels, and its picture has {image.height}x{image.width}"
        raise BadInput(f"the outline of annotation {one.id} is of {sizes}; mend it")
    return torch.from_numpy(np.ascontiguousarray(found))
