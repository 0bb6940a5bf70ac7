"""Data sets of the library `datasets`: `hf:NAME`, a name on its hub or a folder: pictures or texts by class, or text.

The splits are `train` and `test`, or `validation` in the place of a missing `test`; a share of `train` is held out if
both are missing. Pictures are the first column of type Image, classes the first of type ClassLabel; text is the column
`text`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from repl_fx.errors import BadInput, ForeignError, foreign_code
from repl_fx.running.meanwhile import attributes_set
from repl_fx.training.data.data_set import Data, DataRequest
from repl_fx.training.data.pictures import in_rgb, pictures_data
from repl_fx.training.data.text import END, text_data, texts_data


def load_hugging_face(request: DataRequest) -> Data:
    """Read `hf:NAME`, see the module; nothing is fetched without permission to download.

    Raises:
        BadInput: the library is not installed, the data set is not there or cannot be read, or has no such columns.
    """
    try:
        import datasets
    except ImportError as problem:
        raise BadInput(f"{request.name} needs the library datasets; pip install datasets") from problem
    try:
        with foreign_code(), nullcontext() if request.download else _offline(datasets):
            found = datasets.load_dataset(request.argument, cache_dir=str(request.root / "huggingface"))
    except ForeignError as failed:
        hint = "" if request.download else ", or fetch it with --download"
        raise BadInput(f"{request.name} cannot be read ({failed}); check the name{hint}") from failed.problem
    train, test = _splits(found, request)
    kinds = {name: type(feature).__name__ for name, feature in train.features.items()}
    pictures = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if pictures and labels:
        return _pictures(request, train, test, pictures[0], labels[0])
    if "text" in kinds and labels:
        classes = train.features[labels[0]].num_classes
        return texts_data(request, classes, *((part["text"], part[labels[0]]) for part in (train, test)))
    if "text" in kinds:
        of_train, of_test = (b"".join(str(text).encode() + END for text in part["text"]) for part in (train, test))
        return text_data(request, of_train, of_test)
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    raise BadInput(f"{request.name} has the columns {listed}; needed are an Image and a ClassLabel, or text")


def _offline(datasets: Any) -> AbstractContextManager[None]:
    """Keep the library from the network; its option `local_files_only` is read nowhere, and the variable once."""
    from huggingface_hub import constants

    return attributes_set((datasets.config, constants), "HF_HUB_OFFLINE", True)


def _splits(found: Any, request: DataRequest) -> tuple[Any, Any]:
    if "train" not in found:
        raise BadInput(f"{request.name} has the splits {', '.join(found)}; train is needed")
    test = next((found[name] for name in ("test", "validation") if name in found), None)
    if test is None:
        halves = found["train"].train_test_split(test_size=request.held_out, seed=0)
        return halves["train"], halves["test"]
    return found["train"], test


def _pictures(request: DataRequest, train: Any, test: Any, picture: str, label: str) -> Data:
    classes = train.features[label].num_classes
    of_train, of_test = (
        [((part, row), int(target)) for row, target in enumerate(table[label])]
        for part, table in enumerate((train, test))
    )
    return pictures_data(request, classes, of_train, of_test, partial(_read, (train, test), picture))


def _read(tables: tuple[Any, Any], column: str, handle: tuple[int, int]) -> Any:
    part, row = handle
    return in_rgb(tables[part][row][column])
