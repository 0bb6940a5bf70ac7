"""Data to train on, whole on the device: images with augmentation, and the source text of Python's standard library.

Nothing is downloaded. Images are read from files in a directory; the text is that of the running interpreter.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from repl_fx.errors import BadInput

# Tests are long tables as often as code, and other people's packages differ from machine to machine.
NO_SOURCES = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
HELD_OUT = 10
RAW = "FashionMNIST/raw/{}-{}-ubyte"
FILES = {
    "cifar10": ("cifar10.npz",),
    "fashion-mnist": tuple(RAW.format(a, b) for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")),
}
LAYOUT = {
    "cifar10": "cifar10.npz holds the uint8 arrays train_x and test_x, (n, 32, 32, 3), train_y and test_y, (n,)",
    "fashion-mnist": "they are the files of Fashion-MNIST as its authors publish them, unpacked",
}


class Data(Protocol):
    """What a recipe trains and evaluates on: pairs of inputs and the ids of the classes that are wanted."""

    def train(self, batch: int, steps: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """So many batches for training; the generator alone decides which, and how they are changed."""

    def test(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All that is held out, always the same."""

    def facts(self) -> dict[str, Any]:
        """What a reader has to know of it."""


@dataclass(frozen=True)
class Images:
    """Pictures and their classes.

    Attributes:
        train_x, test_x: uint8, (n, height, width, channels).
        train_y, test_y: int64, (n,).
        padding: black pixels around a picture, of which training crops one of the old size at random.
        flip: whether training mirrors every other picture.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    padding: int = 4
    flip: bool = True

    def train(self, batch: int, steps: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in an order that is new in each epoch; what does not fill the last batch of an epoch is left out."""
        scale = self._scale()
        device = self.train_x.device
        order = torch.empty(0, dtype=torch.long, device=device)
        for _ in range(steps):
            if len(order) < batch:
                order = torch.randperm(len(self.train_x), generator=generator, device=device)
            picked, order = order[:batch], order[batch:]
            pictures = shift_and_flip(self.train_x[picked], generator, self.padding, self.flip)
            yield _normalised(pictures, *scale), self.train_y[picked]

    def test(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test pictures in their order, as they are."""
        scale = self._scale()
        for x, y in zip(torch.split(self.test_x, batch), torch.split(self.test_y, batch), strict=True):
            yield _normalised(x, *scale), y

    def facts(self) -> dict[str, Any]:
        """Numbers of pictures, and their size."""
        size = "x".join(map(str, self.train_x.shape[1:3]))
        return {"training images": len(self.train_x), "test images": len(self.test_x), "size": size}

    def halved(self) -> Images:
        """The same at half the height and width: means of squares of four pixels."""

        def half(x: Tensor) -> Tensor:
            squares = x.unfold(1, 2, 2).unfold(2, 2, 2).float()
            return squares.mean((-1, -2)).round().to(torch.uint8)

        return replace(self, train_x=half(self.train_x), test_x=half(self.test_x), padding=self.padding // 2)

    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel, of the training pictures."""
        # In pieces: the whole set as float is four times as large.
        pieces = [piece.double() for piece in torch.split(self.train_x, 5000)]
        count = self.train_x[..., 0].numel()
        mean = sum((p.sum((0, 1, 2)) for p in pieces), torch.zeros((), device=self.train_x.device)) / count
        square = sum((p.square().sum((0, 1, 2)) for p in pieces), torch.zeros_like(mean)) / count
        return mean.float(), (square - mean.square()).clamp_min(1e-6).sqrt().float()


def _normalised(pictures: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Pictures as (n, channels, height, width), in the memory layout that convolutions are fastest on."""
    return ((pictures.float() - mean) / deviation).permute(0, 3, 1, 2)


def shift_and_flip(pictures: Tensor, generator: torch.Generator, padding: int, flip: bool) -> Tensor:
    """Shift each picture at random by up to `padding` pixels, black coming in, and mirror it with probability 1/2.

    Args:
        pictures: (n, height, width, channels).
        generator: of the device of the pictures.
    """
    n, height, width, _ = pictures.shape
    device = pictures.device
    padded = torch.nn.functional.pad(pictures, (0, 0, padding, padding, padding, padding))
    down, right = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator, device=device)
    rows = down + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(n, width)
    if flip:
        mirrored = torch.rand((n, 1), generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = columns + right
    return padded[torch.arange(n, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


@dataclass(frozen=True)
class Text:
    """Bytes, each to be predicted from those before it.

    Attributes:
        train_bytes, test_bytes: uint8, (n,).
        context: bytes in one input.
        windows: inputs of the evaluation, spread evenly over `test_bytes`.
        files: numbers of files for training and held out.
    """

    train_bytes: Tensor
    test_bytes: Tensor
    context: int
    windows: int
    files: tuple[int, int]

    def train(self, batch: int, steps: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs from places drawn at random."""
        for _ in range(steps):
            last = len(self.train_bytes) - self.context
            starts = torch.randint(0, last, (batch,), generator=generator, device=self.train_bytes.device)
            yield self._cut(self.train_bytes, starts)

    def test(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The fixed windows of the held-out files."""
        last = len(self.test_bytes) - self.context - 1
        starts = torch.linspace(0, last, self.windows, dtype=torch.float64).long().to(self.test_bytes.device)
        for some in torch.split(starts, batch):
            yield self._cut(self.test_bytes, some)

    def facts(self) -> dict[str, Any]:
        """Files and bytes, and what the evaluation sees of them."""
        return {
            "training files": self.files[0],
            "training bytes": len(self.train_bytes),
            "held-out files": self.files[1],
            "held-out bytes": len(self.test_bytes),
            "windows": f"{self.windows} of {self.context} bytes",
        }

    def _cut(self, source: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        cut = source[starts[:, None] + torch.arange(self.context + 1, device=source.device)].long()
        return cut[:, :-1], cut[:, 1:]


def check_files(name: str, folder: Path) -> None:
    """Raise BadInput where files of a data set of pictures are not in a directory."""
    missing = [file for file in FILES[name] if not (folder / file).exists()]
    if missing:
        wanted = ", ".join(missing)
        raise BadInput(f"the directory {folder} has no {wanted}; {LAYOUT[name]}; say with --data where {name} lies")


def load_images(name: str, limit: int | None, half: bool, folder: Path, device: str) -> Images:
    """Read a data set onto a device.

    Args:
        name: `cifar10` or `fashion-mnist`.
        limit: train on the first so many pictures alone.
        half: halve height and width.
        folder: where its files lie.

    Raises:
        BadInput: a file is not there, or is not what it should be.
    """
    check_files(name, folder)
    colour = name == "cifar10"
    try:
        arrays = _cifar10(folder) if colour else _fashion_mnist(folder)
    except (KeyError, ValueError) as problem:
        raise BadInput(f"{name} in {folder} cannot be read ({problem}); {LAYOUT[name]}") from None
    train_x, train_y, test_x, test_y = (torch.from_numpy(array).to(device) for array in arrays)
    padding = 4 if colour else 2
    made = Images(train_x[:limit], train_y[:limit].long(), test_x, test_y.long(), padding, flip=colour)
    return made.halved() if half else made


def _cifar10(folder: Path) -> list[np.ndarray]:
    with np.load(folder / "cifar10.npz") as file:
        return [file[key] for key in ("train_x", "train_y", "test_x", "test_y")]


def _fashion_mnist(folder: Path) -> list[np.ndarray]:
    # The files begin with a header of four numbers (pictures) or two (labels), each of four bytes.
    whole = [np.frombuffer(bytearray((folder / file).read_bytes()), np.uint8) for file in FILES["fashion-mnist"]]
    return [part[8:] if i % 2 else part[16:].reshape(-1, 28, 28, 1) for i, part in enumerate(whole)]


def is_held_out(relative: str) -> bool:
    """Whether a file is for evaluation: one of ten, by a hash of its path inside the library."""
    return int.from_bytes(hashlib.sha256(relative.encode()).digest()[:4], "big") % HELD_OUT == 0


def split_sources(root: Path) -> tuple[list[Path], list[Path]]:
    """The Python files below a directory, for training and held out; tests and installed packages are left out."""
    files = [file for file in root.rglob("*.py") if not NO_SOURCES.intersection(file.relative_to(root).parts)]
    split: tuple[list[Path], list[Path]] = ([], [])
    for relative in sorted(file.relative_to(root).as_posix() for file in files):
        split[is_held_out(relative)].append(root / relative)
    return split


def load_text(context: int, windows: int, folder: Path, device: str, root: Path | None = None) -> Text:
    """Read the standard library of the running Python onto a device.

    Args:
        context, windows: see `Text`.
        folder: of other data; there is nothing of this in it.
        root: another directory of Python files.

    Raises:
        BadInput: there is too little source text.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    split = split_sources(root)
    # A zero byte, which no source file has, ends each file.
    train, test = (
        np.frombuffer(bytearray(b"".join(file.read_bytes() + b"\0" for file in files)), np.uint8) for files in split
    )
    if min(len(train), len(test)) < context + 2:
        raise BadInput(f"{root} has {len(train)} bytes of Python source to train on and {len(test)} held out; too few")
    train_bytes, test_bytes = (torch.from_numpy(part).to(device) for part in (train, test))
    return Text(train_bytes, test_bytes, context, windows, (len(split[0]), len(split[1])))
