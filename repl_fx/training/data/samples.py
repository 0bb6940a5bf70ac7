"""Samples that are read one by one, checked as they come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from repl_fx.arguments import in_words
from repl_fx.errors import BadInput
from repl_fx.training.data.kinds import Data, Sample, Split, Tensors, length
from repl_fx.training.data.targets import require_boxes, require_masks


def samples_of(data: Data, split: Split, name: str, *, flip: bool) -> Split:
    """A split of a data set as a loader reads it: samples of segmentation and of detection are checked.

    Args:
        name: of the split, for messages.
        flip: whether every other picture is mirrored, with its boxes; for detection alone.
    """
    if isinstance(split, Tensors) or data.task not in ("segmentation", "detection"):
        return split
    if data.task == "segmentation":
        return CheckedMasks(split, data.classes, f"{data.name}: {name}")
    return CheckedBoxes(split, data.classes, f"{data.name}: {name}", flip)


@dataclass(frozen=True, eq=False)
class CheckedMasks(Dataset[Sample]):
    """Samples whose targets have to be masks.

    Attributes:
        samples: the data set.
        classes: how many the masks may have.
        where: words that begin each error.
    """

    samples: Dataset[Any]
    classes: int
    where: str

    def __len__(self) -> int:
        return length(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """A picture and its mask.

        Raises:
            BadInput: the mask is none; names the number of the sample.
        """
        picture, mask = self.samples[index]
        where = f"{self.where}: sample {index}"
        require_picture(picture, where)
        require_masks(mask, self.classes, tuple(picture.shape[1:]), where)
        return picture, mask


@dataclass(frozen=True, eq=False)
class CheckedBoxes(Dataset[Sample]):
    """Samples whose targets have to be boxes and labels; their pictures become floats.

    Attributes:
        samples: the data set.
        classes: how many there are, with the background.
        where: words that begin each error.
        flip: whether a picture is mirrored, left to right, with probability 1/2, by torch's random state. One with
            keypoints is not: which of them change sides, nobody tells.
    """

    samples: Dataset[Any]
    classes: int
    where: str
    flip: bool

    def __len__(self) -> int:
        return length(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """A picture, float32 and from 0 to 1 where it was uint8, and its boxes.

        Raises:
            BadInput: the target is none; names the number of the sample.
        """
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        picture, target = self.samples[index]
        where = f"{self.where}: sample {index}"
        require_picture(picture, where)
        size = tuple(picture.shape[1:])
        require_boxes(target, self.classes, size, where)
        picture, target = v2.functional.to_dtype(picture, torch.float32, scale=True), dict(target)
        if self.flip and "keypoints" not in target:
            # Each of its class: the transform knows by it how to mirror it.
            kinds = {"boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)}
            if "masks" in target:
                kinds["masks"] = tv_tensors.Mask(target["masks"])
            flipped, kinds = v2.RandomHorizontalFlip()(tv_tensors.Image(picture), kinds)
            picture = flipped.as_subclass(Tensor)
            target.update({name: one.as_subclass(Tensor) for name, one in kinds.items()})
        return picture, target


def require_picture(picture: Any, where: str) -> None:
    """Refuse what is no tensor (channels, height, width)."""
    if not isinstance(picture, Tensor) or picture.ndim != 3:
        found = f"of shape {tuple(picture.shape)}" if isinstance(picture, Tensor) else in_words(picture)
        raise BadInput(f"{where}: the picture is {found}; give a tensor (channels, height, width)")
