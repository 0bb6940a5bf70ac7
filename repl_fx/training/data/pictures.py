"""Pictures that are read file by file: `folder:PATH`, in the layout of torchvision's ImageFolder.

PATH/train/CLASS/*.png, PATH/val/CLASS/*.png    or test/ in the place of val/
PATH/CLASS/*.png                                split by a hash of the paths, in each class
PATH/*.png, PATH/train/*.png, PATH/val/*.png    pictures without targets, to learn from an original model alone
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from repl_fx.errors import BadInput, ForeignError, first_line, foreign_code
from repl_fx.training.data.arrays import channel_scale
from repl_fx.training.data.kinds import Data, Request
from repl_fx.training.data.targets import NO_TARGET
from repl_fx.training.data.text import split_by_name

# The usual size of a picture that a network takes; larger ones are brought down to it.
_LARGEST = 224
# Pictures that mean and deviation are estimated from, spread evenly.
_SAMPLED = 200


@dataclass(frozen=True, eq=False)
class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures of one size, each read and decoded when it is asked for.

    Attributes:
        samples: an opaque handle of each picture, such as its path, and its class.
        read: the picture of a handle, as a PIL image in RGB.
        size: height and width in pixels.
        random_crop: whether a part of the picture, drawn from torch's random state, is brought to the size
            (torchvision's RandomResizedCrop); its middle otherwise.
    """

    samples: Sequence[tuple[Any, int]]
    read: Callable[[Any], Any]
    size: int
    random_crop: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A picture, uint8 (3, size, size), and its class.

        Raises:
            BadInput: the picture cannot be read; names its handle.
        """
        from torchvision.transforms import v2

        handle, label = self.samples[index]
        picture = v2.functional.pil_to_tensor(opened(self.read, handle))
        if self.random_crop:
            cut: Tensor = v2.RandomResizedCrop(self.size, antialias=True)(picture)
        else:
            cut = v2.functional.center_crop(v2.functional.resize(picture, [self.size], antialias=True), [self.size])
        return cut, label


def load_folder(request: Request) -> Data:
    """Find the pictures of `folder:PATH`, see the module.

    Raises:
        BadInput: nothing lies there, a class has no picture, the two splits have other classes, or one of the pictures
            that the scale is estimated from cannot be read.
    """
    path = Path(request.argument)
    if not path.is_dir():
        raise BadInput(f"no folder {path}; give one with a folder of pictures for each class, or with train/ and val/")
    tests = [path / name for name in ("val", "test") if (path / name).is_dir()]
    if (path / "train").is_dir() and tests:
        classes, train = _found(path / "train")
        others, test = _found(tests[0])
        if bool(classes) is not bool(others):
            raise BadInput(f"one of {path / 'train'} and {tests[0]} has pictures by class, one has none; give both")
        if unknown := sorted(set(others) - set(classes)):
            raise BadInput(f"{tests[0]} has the class {unknown[0]!r}, unknown to {path / 'train'}; give both the same")
        test = [(file, classes.index(others[label])) for file, label in test] if classes else test
    else:
        top = path / "train" if (path / "train").is_dir() else path
        classes, samples = _found(top)
        train, test = _split(samples, top, request.held_out)
    return pictures_data(request, len(classes), train, test, rgb)


def pictures_data(
    request: Request,
    classes: int,
    train: Sequence[tuple[Any, int]],
    test: Sequence[tuple[Any, int]],
    read: Callable[[Any], Any],
) -> Data:
    """A data set of pictures that are read one by one, with a scale estimated from some of them.

    Args:
        request: gives name and size.
        classes: number of classes; 0 where there are no targets.
        train, test: samples of the splits, see `Pictures`.
        read: see `Pictures`.

    Raises:
        BadInput: a split is empty, or a picture cannot be read.
    """
    for split, samples in (("train", train), ("test", test)):
        if not samples:
            raise BadInput(f"{request.name}: {split} is empty; give at least two pictures of a class")
    size = square_size(request, opened(read, train[0][0]))
    splits = Pictures(train, read, size), Pictures(test, read, size)
    scale = channel_scale(some_pictures(splits[0]))
    return Data(request.name, "classification", classes, (3, size, size), *splits, *scale, has_targets=classes > 0)


def square_size(request: Request, first: Any) -> int:
    """Height and width that pictures are brought to: those asked for, else the shorter side of a PIL image, or 224."""
    return request.size or min(*first.size, _LARGEST)


def some_pictures(split: Any) -> Tensor:
    """Pictures from all over a split, (n, channels, height, width), for their scale."""
    step = max(1, len(split) // _SAMPLED)
    return torch.stack([split[index][0] for index in range(0, len(split), step)])


def _found(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Classes by name, none where there are no targets, and the path and class of each picture."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension as is_picture

    if not any(path.is_dir() for path in folder.iterdir()):
        files = [str(path) for path in sorted(folder.iterdir()) if is_picture(path.name, IMG_EXTENSIONS)]
        if files:
            return [], [(file, NO_TARGET) for file in files]
    try:
        found = ImageFolder(folder)
    except FileNotFoundError as problem:
        raise BadInput(f"{folder} is no folder of pictures by class: {first_line(problem)}") from problem
    return found.classes, found.samples


def _split(samples: Sequence[tuple[str, int]], top: Path, held_out: float) -> tuple[list[Any], list[Any]]:
    by_class: dict[int, list[str]] = defaultdict(list)
    for file, label in samples:
        by_class[label].append(file)
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label, files in by_class.items():
        # By the path below the folder: the folder may be moved.
        names = {Path(file).relative_to(top).as_posix(): file for file in files}
        for part, chosen in zip((train, test), split_by_name(names, held_out), strict=True):
            part += [(names[name], label) for name in chosen]
    return train, test


def rgb(path: str | Path) -> Any:
    """The picture in a file, as a PIL image in RGB."""
    from PIL import Image

    with Image.open(path) as picture:
        return picture.convert("RGB")


def opened(read: Callable[[Any], Any], handle: Any) -> Any:
    """The picture of a handle, as a function reads it.

    Raises:
        BadInput: the picture cannot be read; names its handle.
    """
    try:
        with foreign_code():
            return read(handle)
    except ForeignError as failed:
        raise BadInput(f"picture {handle} cannot be read ({failed}); mend or remove it") from failed.problem
