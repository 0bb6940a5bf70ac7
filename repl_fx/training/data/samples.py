"""Samples that are read one by one, checked as they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from repl_fx.arguments import in_words
from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, Sample, Split, Task, Tensors, length
from repl_fx.training.data.targets import require_boxes, require_masks


def samples_of(data: Data, split: Split, name: str, *, flip: bool) -> Split:
    """A split of a data set as a loader reads it: samples of segmentation and of detection are checked.

    Args:
        name: of the split, for messages.
        flip: whether every other picture is mirrored, with its boxes; for detection alone.
    """
    if isinstance(split, Tensors) or data.task not in ("segmentation", "detection"):
        return split
    return CheckedSamples(split, data.task, data.classes, f"{data.name}: {name}", flip)


@dataclass(frozen=True, eq=False)
class CheckedSamples(Dataset[Sample]):
    """Samples whose targets have to be masks, or boxes and labels; of the latter, pictures become floats.

    Attributes:
        samples: the data set.
        task: what the targets are for.
        classes: how many there are, with the background.
        where: words that begin each error.
        flip: whether a picture with boxes is mirrored, left to right, with probability 1/2, by torch's random state.
            One with keypoints is not: which of them change sides, nobody tells.
    """

    samples: Dataset[Any]
    task: Task
    classes: int
    where: str
    flip: bool

    def __len__(self) -> int:
        return length(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """A picture and its target; beside boxes it is float32, and from 0 to 1 where it was uint8.

        Raises:
            BadInput: the target is none; names the number of the sample.
        """
        picture, target = self.samples[index]
        where = f"{self.where}: sample {index}"
        require_picture(picture, where)
        size = tuple(picture.shape[1:])
        if self.task == "segmentation":
            require_masks(target, self.classes, size, where)
            return picture, target
        require_boxes(target, self.classes, size, where)
        return _mirrored(picture, target, flip=self.flip and "keypoints" not in target)


def _mirrored(picture: Tensor, target: Mapping[str, Tensor], *, flip: bool) -> Sample:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    picture = v2.functional.to_dtype(picture, torch.float32, scale=True)
    if not flip:
        return picture, dict(target)
    size = picture.shape[1:]
    # Each of its class: the transform knows by it how to mirror it.
    kinds = {"boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)}
    if "masks" in target:
        kinds["masks"] = tv_tensors.Mask(target["masks"])
    flipped, kinds = v2.RandomHorizontalFlip()(tv_tensors.Image(picture), kinds)
    return flipped.as_subclass(Tensor), {**target, **{name: one.as_subclass(Tensor) for name, one in kinds.items()}}


def require_picture(picture: Any, where: str) -> None:
    """Refuse what is no tensor (channels, height, width)."""
    if not isinstance(picture, Tensor) or picture.ndim != 3:
        found = f"of shape {tuple(picture.shape)}" if isinstance(picture, Tensor) else in_words(picture)
        raise BadInput(f"{where}: the picture is {found}; give a tensor (channels, height, width)")


@dataclass(frozen=True, eq=False)
class KeptSamples(Dataset[Sample]):
    """Samples that are kept as they were read, to be gone over again and again by one process.

    Each pass over a data set in files starts worker processes, which takes longer than reading a few hundred samples.
    """

    samples: Dataset[Sample]
    _kept: dict[int, Sample] = field(default_factory=dict)

    def __len__(self) -> int:
        return length(self.samples)

    def __getitem__(self, index: int) -> Sample:
        if index not in self._kept:
            self._kept[index] = self.samples[index]
        return self._kept[index]
