"""Data sets by specification: a name, a kind and a path, or a function of the user's own.

digits                                   scikit-learn's, installed with it
cifar10, svhn, stl10, fashion-mnist      files as torchvision lays them out, under a root
folder:PATH                              pictures in a folder for each class, read file by file
masks:PATH                               pictures and masks of the same names, for segmentation, read file by file
coco:PATH                                pictures with boxes in COCO's layout, for detection, read file by file
npz:PATH                                 arrays train_x, train_y, test_x, test_y
text:PATH                                bytes of a file, or of the files below a folder
hf:NAME                                  a data set of the library `datasets`
file.py:function                         code of the user
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from repl_fx.errors import BadInput, close_matches
from repl_fx.training.data.arrays import load_npz
from repl_fx.training.data.coco import load_coco
from repl_fx.training.data.data_set import Data, DataRequest, UserData
from repl_fx.training.data.hub import load_hugging_face
from repl_fx.training.data.masks import load_masks
from repl_fx.training.data.named_sets import load_cifar10, load_digits, load_of_torchvision
from repl_fx.training.data.pictures import load_folder
from repl_fx.training.data.standardising import standardised
from repl_fx.training.data.text import load_text
from repl_fx.training.data.user_code import load_user_code
from repl_fx.training.train_config import Scale, names_python_file

DEFAULT = "digits"
# A key with a colon takes an argument behind it.
_LOADERS: dict[str, Callable[[DataRequest], Data]] = {
    "digits": load_digits,
    "cifar10": load_cifar10,
    "svhn": load_of_torchvision,
    "stl10": load_of_torchvision,
    "fashion-mnist": load_of_torchvision,
    "folder:": load_folder,
    "masks:": load_masks,
    "coco:": load_coco,
    "npz:": load_npz,
    "text:": load_text,
    "hf:": load_hugging_face,
}
# Pictures that are decoded where they are read can be brought to a size.
_SIZED = ("folder:", "masks:", "hf:")


def load_data(
    spec: str = DEFAULT,
    *,
    root: Path | None = None,
    download: bool = False,
    context: int = 256,
    held_out: float = 0.1,
    size: int | None = None,
    normalise: Scale | None = None,
    tokenizer: Any = None,
) -> Data | UserData:
    """Read the data set that a specification names.

    Args:
        spec: see the module.
        root: directory with the files of named data sets; by default `~/.cache/repl-fx/data`.
        download: whether missing files of named data sets may be fetched, into `root`.
        context: bytes in one input of a text.
        held_out: share that becomes the test split where the data come unsplit.
        size: height and width in pixels that pictures read file by file are brought to; by default they are as they
            are.
        normalise: how each channel of pictures is standardised: by mean and deviation of the training part ("data"),
            by ImageNet's or by these; by default data sets with a name are by their own, and no others.
        tokenizer: of transformers, for text; by default text is bytes.

    Returns:
        The data set; `UserData` where the user's own code returned loaders or a module.

    Raises:
        BadInput: the specification leads to no data, or to data that cannot be trained on; one line, with what to do.
    """
    key, colon, argument = spec.partition(":")
    where = default_root() if root is None else root
    request = DataRequest(spec, argument, where, download, context, held_out, size, tokenizer)
    if size is not None and key + colon not in _SIZED:
        sized = ", ".join(map(_with_argument, _SIZED))
        raise BadInput(f"{spec} is read in the size that it has, and size is for {sized}; leave out --size")
    # Before the kinds: the path may begin with anything.
    if names_python_file(spec):
        return standardised(load_user_code(request), normalise)
    if key + colon not in _LOADERS:
        close = close_matches(key + colon, _LOADERS)
        raise BadInput(f"no data set {spec!r}{close}; known are {', '.join(known_data())}")
    if colon and not argument:
        raise BadInput(f"{spec!r} names nothing behind the colon; write {_with_argument(spec)}")
    return standardised(_LOADERS[key + colon](request), normalise)


def known_data() -> tuple[str, ...]:
    """The specifications that `load_data` takes, as they are written."""
    return (*map(_with_argument, _LOADERS), "file.py:function")


def default_root() -> Path:
    """The directory of named data sets where none is given."""
    return Path.home() / ".cache" / "repl-fx" / "data"


def _with_argument(key: str) -> str:
    argument = "NAME" if key == "hf:" else "PATH"
    return f"{key}{argument}" if key.endswith(":") else key
