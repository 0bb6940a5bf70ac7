"""Pictures and masks that are read file by file: `masks:PATH`.

PATH/train/images/NAME.jpg, PATH/train/masks/NAME.png    test/ or val/ likewise

A mask has the number of a class in each pixel, in grey or by a palette, and 255 where there is none. A picture and its
mask have the same name, but for its ending.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, DataRequest
from repl_fx.training.data.pictures import as_read, decoded, opened, rgb
from repl_fx.training.data.targets import IGNORED

# Modes of PIL with one number in each pixel.
_MODES = ("1", "L", "P", "I", "I;16")


@dataclass(frozen=True, eq=False)
class MaskedPictures(Dataset[tuple[Tensor, Tensor]]):
    """Pictures with a class for each pixel, of one size, each read and decoded when it is asked for.

    Attributes:
        files: a picture and its mask.
        size: height and width in pixels: the shorter side is brought to it, and the middle taken; of a mask by nearest
            neighbours. None leaves both as they are.
    """

    files: Sequence[tuple[Path, Path]]
    size: int | None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A picture, uint8 (3, height, width), and its mask, int64 (height, width).

        Raises:
            BadInput: one of them cannot be read, or they differ in size; names it.
        """
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        picture_file, mask_file = self.files[index]
        picture, mask = v2.functional.pil_to_tensor(opened(rgb, picture_file)), _mask(mask_file)
        if picture.shape[1:] != mask.shape:
            sizes = " and ".join("x".join(map(str, shape)) for shape in (mask.shape, picture.shape[1:]))
            raise BadInput(f"mask {mask_file} and its picture are {sizes} pixels; give both the same size")
        if self.size is None:
            return picture, mask.long()
        fit = v2.Compose([v2.Resize([self.size], antialias=True), v2.CenterCrop([self.size])])
        cut, of_mask = fit(tv_tensors.Image(picture), tv_tensors.Mask(mask))
        return cut.as_subclass(Tensor), of_mask.as_subclass(Tensor).long()


def load_masks(request: DataRequest) -> Data:
    """Find the pictures and masks of `masks:PATH`, see the module; each mask to train on is read once, for its classes.

    Raises:
        BadInput: nothing lies there, a picture or a mask has no other, or one that is read here cannot be.
    """
    path = Path(request.argument)
    if not (path / "train").is_dir():
        raise BadInput(f"no folder {path / 'train'}; give one with train/images, train/masks, test/images, test/masks")
    held = next((path / name for name in ("test", "val") if (path / name).is_dir()), path / "test")
    train, test = _pairs(path / "train"), _pairs(held)
    with ThreadPoolExecutor() as several:
        classes = 1 + max(several.map(_largest, (mask for _, mask in train)))
    splits = MaskedPictures(train, request.size), MaskedPictures(test, request.size)
    shape = tuple(splits[0][0][0].shape)
    return Data(request.name, "segmentation", classes, shape, *splits, changes=as_read(request))


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    pictures = _by_name(folder / "images", IMG_EXTENSIONS)
    masks = _by_name(folder / "masks", IMG_EXTENSIONS)
    for own, others, kind in ((pictures, masks, "mask"), (masks, pictures, "picture")):
        if alone := sorted(own.keys() - others.keys()):
            raise BadInput(f"{own[alone[0]]} has no {kind} in {folder}; give one of the same name")
    if not pictures:
        raise BadInput(f"{folder / 'images'} has no pictures; give at least one")
    return [(pictures[name], masks[name]) for name in sorted(pictures)]


def _by_name(folder: Path, endings: Iterable[str]) -> dict[str, Path]:
    """The files of a folder, by their path in it without its ending."""
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}; give pictures in images/ and their masks in masks/")
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in endings and not file.name.startswith("."):
            name = file.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise BadInput(f"{found[name]} and {file} have the same name; remove one of them")
            found[name] = file
    return found


def _mask(file: Path) -> Tensor:
    mask = opened(decoded, file)
    if mask.mode not in _MODES:
        raise BadInput(f"mask {file} is {mask.mode}; give the number of a class in each pixel, in grey or by a palette")
    return torch.from_numpy(np.array(mask, dtype=np.int32))


def _largest(file: Path) -> int:
    mask = _mask(file)
    known = mask[mask != IGNORED]
    largest = int(known.max()) if len(known) else 0
    if largest > IGNORED:
        raise BadInput(
            f"mask {file} has the class {largest}; give classes from 0 to {IGNORED - 1}, or {IGNORED} for none"
        )
    return largest
