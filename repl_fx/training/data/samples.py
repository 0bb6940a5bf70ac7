"""Samples that are read one by one, checked as they come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from repl_fx.arguments import in_words
from repl_fx.errors import BadInput
from repl_fx.training.data.kinds import Data, Sample, Split, Tensors, length
from repl_fx.training.data.targets import require_masks


def samples_of(data: Data, split: Split, name: str) -> Split:
    """A split of a data set, whose samples are refused where they cannot be.

    Args:
        name: of the split, for messages.
    """
    if isinstance(split, Tensors) or data.task != "segmentation":
        return split
    return CheckedMasks(split, data.classes, f"{data.name}: {name}")


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


def require_picture(picture: Any, where: str) -> None:
    """Refuse what is no tensor (channels, height, width)."""
    if not isinstance(picture, Tensor) or picture.ndim != 3:
        found = f"of shape {tuple(picture.shape)}" if isinstance(picture, Tensor) else in_words(picture)
        raise BadInput(f"{where}: the picture is {found}; give a tensor (channels, height, width)")
