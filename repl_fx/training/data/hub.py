"""Data sets of the library `datasets`: `hf:NAME`, a name on its hub or a folder: pictures or texts by class, or text.

The splits are `train` and `test`, or `validation` where `test` is missing or has no classes; a share of `train` is held
out if both are. Pictures are the first column of type Image, classes the first of type ClassLabel; text is the column
`text`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from repl_fx.errors import BadInput, ForeignError, first_line, foreign_code
from repl_fx.running.meanwhile import attributes_set
from repl_fx.training.data.data_set import Data, DataRequest
from repl_fx.training.data.pictures import in_rgb, pictures_data
from repl_fx.training.data.text import END, text_data, texts_data


def load_hugging_face(request: DataRequest) -> Data:
    """Read `hf:NAME`, see the module; nothing is fetched without permission to download.

    Raises:
        BadInput: the library is not installed, the data set is not there or cannot be read, or has no such columns.
    """
    found = _found(request)
    features = found["train"].features
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    pictures = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    inputs = pictures[0] if pictures and labels else "text"
    if inputs not in kinds:
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise BadInput(f"{request.name} has the columns {listed}; needed are an Image and a ClassLabel, or text")
    parts = _splits(found, [inputs, *labels[:1]], request)
    texts = [] if pictures and labels else _columns(request, parts, "text", lambda text: isinstance(text, str))
    if not labels:
        whole = [b"".join(text.encode() + END for text in part) for part in texts]
        return text_data(request, *whole)
    classes = features[labels[0]].num_classes
    targets = _columns(request, parts, labels[0], range(classes).__contains__)
    if texts:
        return texts_data(request, classes, *zip(texts, targets, strict=True))
    train, test = (
        [((name, row), target) for row, target in enumerate(own)] for name, own in zip(parts, targets, strict=True)
    )
    return pictures_data(request, classes, train, test, partial(_read, parts, inputs))


def _found(request: DataRequest) -> Any:
    """The splits by name, with train among them."""
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
    if "train" not in found:
        raise BadInput(f"{request.name} has the splits {', '.join(found)}; train is needed")
    return found


def _offline(datasets: Any) -> AbstractContextManager[None]:
    """Keep the library from the network; its option `local_files_only` is read nowhere, and the variable once."""
    from huggingface_hub import constants

    return attributes_set((datasets.config, constants), "HF_HUB_OFFLINE", True)


def _splits(found: Any, columns: Sequence[str], request: DataRequest) -> dict[str, Any]:
    """The two splits, by name; those of a contest have no classes, or -1 for each."""
    for name in ("test", "validation"):
        part = found.get(name)
        if part is not None and {*columns} <= part.features.keys() and any(label != -1 for label in part[columns[-1]]):
            return {"train": found["train"], name: part}
    with foreign_code(lambda problem: BadInput(f"{request.name} cannot be divided ({first_line(problem)})")):
        return dict(found["train"].train_test_split(test_size=request.held_out, seed=0))


def _columns(
    request: DataRequest, parts: Mapping[str, Any], column: str, can_be: Callable[[Any], bool]
) -> list[list[Any]]:
    """The values of a column of texts or of classes, of each split.

    Raises:
        BadInput: one of them is none; names its row.
    """
    columns = {split: list(part[column]) for split, part in parts.items()}
    for split, values in columns.items():
        for row in (row for row, value in enumerate(values) if not can_be(value)):
            raise BadInput(
                f"{request.name}: {split}: row {row} has {values[row]!r} for {column}; give each row a text or a class"
            )
    return list(columns.values())


def _read(parts: Mapping[str, Any], column: str, handle: tuple[str, int]) -> Any:
    split, row = handle
    return in_rgb(parts[split][row][column])
