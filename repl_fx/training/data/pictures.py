"""Pictures that are read file by file: `folder:PATH`, in the layout of torchvision's ImageFolder.

PATH/train/CLASS/*.png, PATH/val/CLASS/*.png    or test/ in the place of val/
PATH/CLASS/*.png                                split by a hash of the paths, in each class
PATH/*.png, PATH/train/*.png, PATH/val/*.png    pictures without targets, to learn from an original model alone
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from repl_fx.errors import BadInput, first_line, foreign_code, one_line
from repl_fx.graph.grouping import grouped
from repl_fx.tracing.parts.origin import Preprocessing
from repl_fx.training.data.data_set import Data, DataRequest
from repl_fx.training.data.targets import NO_TARGET
from repl_fx.training.data.text import split_by_name


@dataclass(frozen=True, eq=False)
class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures of one size, each read and decoded when it is asked for.

    Attributes:
        samples: an opaque handle of each picture, such as its path, and its class.
        read: the picture of a handle, as a PIL image in RGB.
        preprocessing: the sizes that they are brought to; None leaves each as it is.
    """

    samples: Sequence[tuple[Any, int]]
    read: Callable[[Any], Any]
    preprocessing: Preprocessing | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A picture, uint8 (3, height, width), and its class.

        Raises:
            BadInput: the picture cannot be read; names its handle.
        """
        handle, label = self.samples[index]
        return fitted(opened(self.read, handle), self.preprocessing or Preprocessing("")), label


def fitted(picture: Any, preprocessing: Preprocessing) -> Tensor:
    """A PIL image as uint8 (3, height, width), in the size that a model wants, made as its library makes it."""
    from torchvision.transforms import InterpolationMode, v2

    # transformers resizes tensors, timm and torchvision PIL's images, which round between the two sides.
    picture = picture if preprocessing.rounds else v2.functional.pil_to_tensor(picture)
    if preprocessing.resize:
        by = InterpolationMode(preprocessing.interpolation)
        picture = v2.functional.resize(picture, list(preprocessing.resize), interpolation=by, antialias=True)
    if preprocessing.crop:
        (height, width), (high, wide) = v2.functional.get_size(picture), preprocessing.crop
        if preprocessing.rounds or wide > width or high > height:
            picture = v2.functional.center_crop(picture, [high, wide])
        else:
            picture = v2.functional.crop(picture, (height - high) // 2, (width - wide) // 2, high, wide)
    pixels: Tensor = picture if isinstance(picture, Tensor) else v2.functional.pil_to_tensor(picture)
    return pixels


def load_folder(request: DataRequest) -> Data:
    """Find the pictures of `folder:PATH`, see the module.

    Raises:
        BadInput: nothing lies there, a class has no picture, the two splits have other classes, or the first picture
            cannot be read.
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
    request: DataRequest,
    classes: int,
    train: Sequence[tuple[Any, int]],
    test: Sequence[tuple[Any, int]],
    read: Callable[[Any], Any],
) -> Data:
    """A data set of pictures that are read one by one.

    Args:
        request: gives name and size.
        classes: number of classes; 0 where there are no targets.
        train, test: samples of the splits, see `Pictures`.
        read: see `Pictures`.

    Raises:
        BadInput: a split is empty, or the first picture cannot be read.
    """
    for split, samples in (("train", train), ("test", test)):
        if not samples:
            raise BadInput(f"{request.name}: {split} is empty; give at least two pictures of a class")
    size = request.size
    fit = None if size is None else Preprocessing("--size", (size,), crop=(size, size))
    splits = Pictures(train, read, fit), Pictures(test, read, fit)
    shape = tuple(splits[0][0][0].shape)
    own: Any = {"has_targets": classes > 0, "changes": as_read(request)}
    return Data(request.name, "classification", classes, shape, *splits, **own)


def as_read(request: DataRequest) -> tuple[str, ...]:
    """The lines on what reading does to pictures in files, whatever is in them, and what a size does."""
    lines = [f"pictures of {request.name}: in RGB of 8 bits; grey in three equal channels, and no transparency"]
    if request.size is not None:
        said = f"the shorter side brought to {request.size} pixels, and the middle taken"
        lines.append(f"pictures of {request.name}: {said} (--size)")
    return tuple(lines)


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
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label, files in grouped((label, file) for file, label in samples).items():
        # By the path below the folder: the folder may be moved.
        names = {Path(file).relative_to(top).as_posix(): file for file in files}
        for part, chosen in zip((train, test), split_by_name(names, held_out), strict=True):
            part += [(names[name], label) for name in chosen]
    return train, test


def decoded(path: str | Path) -> Any:
    """The picture in a file, as a PIL image."""
    from PIL import Image

    with Image.open(path) as picture:
        picture.load()
        return picture


def rgb(path: str | Path) -> Any:
    """The picture in a file, as a PIL image in RGB."""
    return in_rgb(decoded(path))


def in_rgb(picture: Any) -> Any:
    """A PIL image in RGB; raises a ValueError where that would cut its numbers off."""
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are of mode {picture.mode}, which 8 bits cut off; give arrays: npz:PATH")
    return picture.convert("RGB")


def opened(read: Callable[[Any], Any], handle: Any) -> Any:
    """The picture of a handle, as a function reads it.

    Raises:
        BadInput: the picture cannot be read; names its handle.
    """
    fails = f"picture {handle} cannot be read"
    with foreign_code(lambda problem: BadInput(f"{fails} ({one_line(problem)}); mend or remove it")):
        return read(handle)
