"""Data sets with a name: scikit-learn's digits, which are installed with it, and those that torchvision can read.

They come with the changes that are usual for them: standardised, and augmented in training.
"""

from __future__ import annotations

import numpy as np

from repl_fx.errors import BadInput, ForeignError, foreign_code, listed, not_importable
from repl_fx.training.data.arrays import KEYS, Array, data_of, read_npz
from repl_fx.training.data.data_set import Data, DataRequest
from repl_fx.training.data.standardising import with_scale

_CLASSES = 10
_DIGITS_HELD_OUT = 360
# The darkest level of scikit-learn's digits.
_DARKEST = 16

_CIFAR = "cifar-10-batches-py/"
_FASHION = "FashionMNIST/raw/"
_STL = "stl10_binary/"
# The class of torchvision of each data set, and those of which channels come first and splits have names.
_CLASS = {"cifar10": "CIFAR10", "svhn": "SVHN", "stl10": "STL10", "fashion-mnist": "FashionMNIST"}
_CHANNELS_FIRST = ("svhn", "stl10")
# The files of each data set, as torchvision lays them out below its root.
FILES: dict[str, tuple[str, ...]] = {
    "cifar10": (*(f"{_CIFAR}data_batch_{i}" for i in range(1, 6)), f"{_CIFAR}test_batch", f"{_CIFAR}batches.meta"),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "stl10": tuple(f"{_STL}{name}.bin" for name in ("train_X", "train_y", "unlabeled_X", "test_X", "test_y")),
    "fashion-mnist": tuple(
        f"{_FASHION}{s}-{f}-ubyte" for s in ("train", "t10k") for f in ("images-idx3", "labels-idx1")
    ),
}


def load_digits(request: DataRequest) -> Data:
    """Read `digits`: 1,797 pictures of 8x8 pixels, one channel, of which 360 are held out, the same ones always.

    Raises:
        BadInput: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as digits
        from sklearn.model_selection import train_test_split
    except ImportError as problem:
        raise BadInput("digits needs scikit-learn, which is not installed; pip install 'repl-fx[train]'") from problem
    found = digits()
    pictures = np.round(found.images * (255 / _DARKEST)).astype(np.uint8)
    train_x, test_x, train_y, test_y = train_test_split(
        pictures, found.target, test_size=_DIGITS_HELD_OUT, random_state=0, stratify=found.target
    )
    arrays = dict(zip(KEYS, (train_x, train_y, test_x, test_y), strict=True))
    return with_scale(data_of(request.name, arrays, classes=_CLASSES, where=request.name), augment=True)


def load_cifar10(request: DataRequest) -> Data:
    """Read `cifar10`: torchvision's files, or else `cifar10.npz` with the arrays train_x, train_y, test_x and test_y.

    Raises:
        BadInput: neither is there, or a file is damaged.
    """
    path = request.root / "cifar10.npz"
    if path.is_file():
        return with_scale(data_of(request.name, read_npz(path), classes=_CLASSES, where=str(path)), augment=True)
    return load_of_torchvision(request)


def load_of_torchvision(request: DataRequest) -> Data:
    """Read one of `FILES`; the labelled pictures alone of `stl10`.

    Raises:
        BadInput: torchvision or a file is missing, or a file is damaged.
    """
    name, root = request.name, request.root
    _check_files(request)
    arrays: dict[str, Array] = {}
    try:
        with foreign_code():
            from torchvision import datasets

            for split in ("train", "test"):
                own = {"split": split} if request.name in _CHANNELS_FIRST else {"train": split == "train"}
                found = getattr(datasets, _CLASS[request.name])(request.root, download=request.download, **own)
                pictures = np.asarray(found.data)
                arrays[f"{split}_x"] = pictures.transpose(0, 2, 3, 1) if name in _CHANNELS_FIRST else pictures
                labels = found.labels if hasattr(found, "labels") else found.targets
                arrays[f"{split}_y"] = np.asarray(labels)
    except ForeignError as failed:
        hint = "fetch them again with --download into another --data-dir"
        if isinstance(failed.problem, ModuleNotFoundError):
            hint = f"{failed.problem.name} is missing; pip install 'repl-fx[zoo,train]'"
        elif (broken := not_importable(failed.problem)) is not None:
            raise BadInput(f"{name} needs torchvision: {broken}") from failed.problem
        raise BadInput(f"{name} in {root} cannot be read ({failed}); {hint}") from failed.problem
    return with_scale(data_of(name, arrays, classes=_CLASSES, where=f"{name} in {root}"), augment=True)


def _check_files(request: DataRequest) -> None:
    missing = [file for file in FILES[request.name] if not (request.root / file).is_file()]
    if missing and not request.download:
        also = " or cifar10.npz" if request.name == "cifar10" else ""
        raise BadInput(
            f"{request.name}: no {listed(missing, 1)}{also} in {request.root}; "
            "say with --data-dir where the files lie, or fetch them with --download"
        )
