"""The data sets themselves: inputs and targets of two splits, checked once, when they are put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from repl_fx.errors import BadInput
from repl_fx.training.data.targets import IGNORED, NO_TARGET, require_labels, require_masks

Task = Literal["classification", "language-modelling", "segmentation", "detection"]
TASKS = get_args(Task)
_INPUT_TYPES = (torch.uint8, torch.float32, torch.int64)


@dataclass(frozen=True, eq=False)
class Tensors:
    """A split that is held whole in memory.

    Attributes:
        inputs: uint8, float32 or int64, (n, *shape of one input); or several by the names that a model has for them,
            the main one first.
        targets: int64; (n,) for classification, (n, context) for language modelling, (n, height, width) for
            segmentation, with 255 for pixels that have no class.
    """

    inputs: Tensor | Mapping[str, Tensor]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def main(self) -> Tensor:
        """The inputs, or the main ones of several."""
        return self.inputs if isinstance(self.inputs, Tensor) else next(iter(self.inputs.values()))


def rows_of(part: Any, which: Any) -> Any:
    """Rows of a part of a batch: of a tensor, of a list of samples, and of each entry of a mapping or a tuple."""
    if isinstance(part, Mapping):
        return {name: rows_of(value, which) for name, value in part.items()}
    return tuple(rows_of(value, which) for value in part) if isinstance(part, tuple) else part[which]


# Of one sample: a label, a mask (height, width), or a mapping of boxes and labels.
Target = int | Tensor | Mapping[str, Tensor]
Sample = tuple[Tensor, Target]
# A split in memory, or one that is read file by file: samples by their number.
Split = Tensors | Dataset[Sample]


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs and targets to train on, and held out.

    Attributes:
        name: the specification that led to the data set.
        task: one of `TASKS`.
        classes: number of classes, with the background for detection; or of token ids: 256 for bytes; 0 without
            targets.
        shape: of one input: (channels, height, width) of a picture, (features,) of a vector, (context,) of a text;
            (channels,) for detection, whose pictures differ in size.
        train, test: the two splits.
        mean, std: of each channel, by which pictures are standardised, in units of 255 grey levels where the inputs
            are uint8; empty where they are not.
        has_targets: whether there is more than `NO_TARGET` for each input; without, a model learns from its original
            alone.
        augment: whether training pictures are shifted and mirrored where the settings do not say.
        changes: one line for each change that reading made of what lies in the files.
        prepared: whose preprocessing `mean` and `std` are of; empty where they are of the data themselves.
        bytes_per_token: of a text that is held out.

    Raises:
        BadInput: a split is empty, has a type, a shape or a target that cannot be, or values that are not finite.
    """

    name: str
    task: Task
    classes: int
    shape: tuple[int, ...]
    train: Split
    test: Split
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    has_targets: bool = True
    augment: bool = False
    changes: tuple[str, ...] = ()
    prepared: str = ""
    bytes_per_token: float = 1.0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise BadInput(f"{self.name}: task is {self.task!r}; wanted is {', '.join(TASKS)}")
        if self.has_targets and self.classes < 2:
            raise BadInput(f"{self.name}: {self.classes} class; at least 2 are needed to tell something apart")
        channels = self.shape[0] if len(self.shape) == 3 else 0
        if (len(self.mean), len(self.std)) not in ((0, 0), (channels, channels)):
            raise BadInput(
                f"{self.name}: {len(self.mean)} means and {len(self.std)} deviations for inputs of shape {self.shape}; "
                "give one of each for every channel, or none"
            )
        for split, part in (("train", self.train), ("test", self.test)):
            where = f"{self.name}: {split}"
            if length(part) == 0:
                raise BadInput(f"{where} is empty; give at least one sample to each split")
            if isinstance(part, Tensors):
                self._check(part, where)

    def __str__(self) -> str:
        """Name, sizes and shape on one line."""
        shape = "pictures" if self.task == "detection" else "x".join(map(str, self.shape))
        classes = f"{self.classes} classes" if self.has_targets else "no targets"
        return f"{self.name}: {length(self.train)} + {length(self.test)} of {shape}, {classes}"

    def _check(self, part: Tensors, where: str) -> None:
        inputs, targets = part.main, part.targets
        if inputs.dtype not in _INPUT_TYPES:
            raise BadInput(f"{where}: inputs are {inputs.dtype}; give uint8, float32 or int64")
        if len(inputs) != len(targets):
            raise BadInput(f"{where}: {len(inputs)} inputs but {len(targets)} targets; give one target for each input")
        if tuple(inputs.shape[1:]) != self.shape:
            raise BadInput(f"{where}: inputs are of shape {tuple(inputs.shape[1:])}; the data set's is {self.shape}")
        if self.task == "detection":
            raise BadInput(f"{where} is tensors; give a Dataset of (picture, dict of boxes and labels) for detection")
        if not self.has_targets:
            require_labels(targets - NO_TARGET, 1, (len(targets),), where)
        elif self.task == "segmentation":
            require_masks(targets, self.classes, (len(targets), *self.shape[1:]), where)
            if bool((targets == IGNORED).all()):
                raise BadInput(f"{where}: no pixel has a class, all are {IGNORED}; give masks of classes")
        else:
            wanted = self.shape if self.task == "language-modelling" else ()
            require_labels(targets, self.classes, (len(targets), *wanted), where)
        if inputs.is_floating_point() and not (finite := inputs.isfinite()).all():
            first = tuple(int(i) for i in (~finite).nonzero()[0])
            raise BadInput(f"{where}: inputs hold {float(inputs[first])} at {first}; give finite numbers")


@dataclass(frozen=True, eq=False)
class UserData:
    """Data of a user's own function, as the function returned them.

    Attributes:
        name: the specification.
        train, test: batches of (inputs, targets), where the function returned a pair of loaders.
        module: the LightningDataModule, where the function returned one.
        changes: one line for each thing about its batches that is not as the function returned it.
    """

    name: str
    train: Iterable[Any] | None = None
    test: Iterable[Any] | None = None
    module: object | None = None
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataRequest:
    """The request for a data set that a loader function gets.

    Attributes:
        name: the whole specification, for messages.
        argument: the part of it behind the colon: a path, or the name of a data set elsewhere.
        root: directory under which the files of named data sets lie.
        download: whether missing files may be fetched.
        context: bytes in one input of a text.
        held_out: share that becomes the test split where the data come unsplit, above 0 and below 1.
        size: height and width in pixels that pictures read file by file are brought to; None leaves them as they are.
        tokenizer: of transformers, for text; None takes it by bytes.
    """

    name: str
    argument: str
    root: Path
    download: bool = False
    context: int = 256
    held_out: float = 0.1
    size: int | None = None
    tokenizer: Any = None

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise BadInput(f"held_out is {self.held_out}; give a share above 0 and below 1")
        if self.context < 1:
            raise BadInput(f"context is {self.context}; give at least one byte")
        if self.size is not None and self.size < 1:
            raise BadInput(f"size is {self.size}; give at least one pixel")


def length(part: Split) -> int:
    """Number of samples of a split."""
    if not isinstance(part, Sized) or isinstance(part, IterableDataset):
        raise BadInput(
            f"a split of type {type(part).__name__} has no samples by number; give a map-style Dataset with len()"
        )
    return len(part)
