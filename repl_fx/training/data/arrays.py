"""Arrays as splits: pictures or vectors and their classes or masks, and `npz:PATH`.

train_x, test_x    (n, height, width, channels) uint8, or (n, height, width) uint8 of one channel;
(n, channels, height, width) or (n, features) of floats
train_y, test_y    (n,) integers from 0; or masks for segmentation, (n, height, width) integers from 0, 255 for none;
both may be left out where a model learns from its original alone
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repl_fx.errors import BadInput, one_line
from repl_fx.training.data.data_set import Data, DataRequest, Task, Tensors
from repl_fx.training.data.targets import IGNORED, no_targets

Array = npt.NDArray[Any]
KEYS = ("train_x", "train_y", "test_x", "test_y")
_CHANNELS = (1, 3, 4)


def load_npz(request: DataRequest) -> Data:
    """Read `npz:PATH`, see the module.

    Raises:
        BadInput: the file is missing or damaged, lacks an array, or an array is not what it should be.
    """
    path = Path(request.argument)
    return data_of(request.name, read_npz(path), classes=None, where=str(path))


def read_npz(path: Path) -> dict[str, Array]:
    """The four arrays of a file, or the two of inputs where it has no targets; nothing is unpickled.

    Raises:
        BadInput: the file is missing, damaged, or lacks an array.
    """
    if not path.is_file():
        raise BadInput(f"no file {path}; give the path of an .npz file with {', '.join(KEYS)}")
    try:
        # A stream of our own: numpy leaves one of its own open where the file is damaged.
        with path.open("rb") as stream:
            return _four(np.load(stream, allow_pickle=False), path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        raise BadInput(f"{path} is damaged or no .npz file ({one_line(problem)}); write it again") from problem


def _four(file: Any, path: Path) -> dict[str, Array]:
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise BadInput(f"{path} is a single array, not an .npz file; save {', '.join(KEYS)} with numpy.savez")
    with file:
        missing = [key for key in KEYS if key not in file.files]
        if missing and missing != [key for key in KEYS if key.endswith("_y")]:
            there = ", ".join(file.files) or "nothing"
            raise BadInput(f"{path} has no {', '.join(missing)}, but {there}; save {', '.join(KEYS)}")
        return {key: file[key] for key in KEYS if key not in missing}


def data_of(name: str, arrays: Mapping[str, Array], *, classes: int | None, where: str) -> Data:
    """A data set of four arrays.

    Args:
        name: of the data set.
        arrays: by the names in `KEYS`, see the module.
        classes: number of classes; None for those up to the highest in `train_y`, 0 where there is none.
        where: words that begin each error, such as the path of a file.

    Raises:
        BadInput: an array has the wrong type, shape or length, or values that cannot be; names it.
    """
    splits: dict[str, Tensors] = {}
    for split in ("train", "test"):
        inputs = _inputs(arrays[f"{split}_x"], f"{where}: {split}_x")
        targets = no_targets(inputs)
        if f"{split}_y" in arrays:
            targets = _labels(arrays[f"{split}_y"], f"{where}: {split}_y")
        splits[split] = Tensors(inputs, targets)
    train, test = splits["train"], splits["test"]
    if train.main.dtype != test.main.dtype:
        raise BadInput(f"{where}: train_x is {train.main.dtype}, test_x {test.main.dtype}; give both the same type")
    shape = tuple(train.main.shape[1:])
    if train.targets.ndim != test.targets.ndim:
        found = " and ".join(str(tuple(part.targets.shape)) for part in (train, test))
        raise BadInput(f"{where}: train_y and test_y are of shapes {found}; give both labels, or both masks")
    task: Task = "segmentation" if train.targets.ndim == 3 else "classification"
    if classes is None:
        known = train.targets[train.targets != IGNORED] if task == "segmentation" else train.targets
        classes = int(known.max()) + 1 if len(known) else 0
    if task == "segmentation" and len(shape) != 3:
        raise BadInput(f"{where}: inputs of masks are of shape {shape}; give pictures (n, height, width, channels)")
    types = {arrays[key].dtype for key in ("train_x", "test_x")} - {np.dtype(np.uint8), np.dtype(np.float32)}
    changes = tuple(f"inputs of {name}: {found} -> float32" for found in sorted(map(str, types)))
    if train.main.dtype == torch.uint8:
        changes = (f"pictures of {name}: (height, width, channels) -> (channels, height, width)",)
    return Data(name, task, classes, shape, train, test, has_targets="train_y" in arrays, changes=changes)


def _inputs(array: Array, where: str) -> Tensor:
    if array.size == 0 or array.ndim == 0:
        raise BadInput(f"{where} is of shape {array.shape}; give at least one input")
    if array.dtype == np.uint8:
        if array.ndim == 3:
            array = array[..., None]
        if array.ndim != 4 or array.shape[-1] not in _CHANNELS:
            raise BadInput(f"{where} is uint8 of shape {array.shape}; give (n, height, width, 1, 3 or 4 channels)")
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
    if not np.issubdtype(array.dtype, np.floating):
        raise BadInput(f"{where} is {array.dtype}; give uint8 pictures or floats")
    if array.ndim not in (2, 4):
        raise BadInput(
            f"{where} is {array.dtype} of shape {array.shape}; give (n, features) or (n, channels, height, width)"
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _labels(array: Array, where: str) -> Tensor:
    if not np.issubdtype(array.dtype, np.integer):
        raise BadInput(f"{where} is {array.dtype}; give integers from 0")
    if array.ndim not in (1, 3):
        raise BadInput(
            f"{where} is of shape {array.shape}; give one label for each input, (n,), or masks (n, height, width)"
        )
    if len(array) == 0:
        raise BadInput(f"{where} is empty; give at least one label")
    return torch.from_numpy(array.astype(np.int64))
