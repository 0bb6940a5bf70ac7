"""What data consist of, as a hash: a run that goes on with other rows under the same names would be another run.

in memory                     all of it
files, up to 1 GiB            their order, names, targets and bytes
more                          their order, names, targets and sizes, and the bytes of some, evenly spread: 1 GiB in all
batches of a user's loaders   nothing: only the loader knows
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from repl_fx.errors import BadInput, first_line
from repl_fx.training.data.coco import BoxedPictures
from repl_fx.training.data.data_set import Data, Split, Tensors, UserData, length
from repl_fx.training.data.masks import MaskedPictures
from repl_fx.training.data.pictures import Pictures, opened

_MOST_BYTES = 2**30
# Of pictures that lie in no files of their own, and have to be decoded.
_MOST_PICTURES = 256


def content_of(data: Data | UserData) -> str:
    """A hash of the samples of a data set, wherever they lie; empty for loaders of a user.

    Raises:
        BadInput: a file cannot be read.
    """
    if isinstance(data, UserData):
        return ""
    found = hashlib.sha256()
    for split in (data.train, data.test):
        for part in _parts(split):
            found.update(part)
    return found.hexdigest()


def require_content(data: Data | UserData, known: str, of: object) -> None:
    """Refuse data that are not those of a run.

    Args:
        data: to go on with.
        known: what `content_of` said of the data of the run; empty where it said nothing.
        of: the run, in words.

    Raises:
        BadInput: they are others; names them.
    """
    found = content_of(data) if known else ""
    if known and found and known != found:
        raise BadInput(
            f"{data.name} has other samples, or another order, than when {of} began; put the data back, or begin anew "
            "with --force"
        )


def _parts(split: Split) -> Iterable[Any]:
    yield f"{length(split)} samples".encode()
    if isinstance(split, Tensors):
        inputs = split.inputs.values() if isinstance(split.inputs, Mapping) else (split.inputs,)
        yield from map(_bytes_of, inputs)
        # The targets of a text are its inputs, from the next token on.
        shared = split.targets.untyped_storage().data_ptr() == split.main.untyped_storage().data_ptr()
        yield _bytes_of(split.targets[-1:] if shared else split.targets)
    elif isinstance(split, MaskedPictures):
        yield from _of_files([file for pair in split.files for file in pair])
    elif isinstance(split, BoxedPictures):
        yield msgspec.json.encode((split.images, sorted(split.annotations.items()), sorted(split.labels.items())))
        yield from _of_files([split.folder / image.file_name for image in split.images])
    elif isinstance(split, Pictures):
        yield ",".join(str(label) for _, label in split.samples).encode()
        handles = [handle for handle, _ in split.samples]
        if all(isinstance(handle, str | Path) for handle in handles):
            yield from _of_files([Path(handle) for handle in handles])
        else:
            yield from (opened(split.read, handle).tobytes() for handle in _spread(handles, _MOST_PICTURES))


def _of_files(files: Sequence[Path]) -> Iterable[bytes]:
    """Names and sizes of files, and their bytes: of all where they are not too many."""
    try:
        sizes = [file.stat().st_size for file in files]
        yield "\n".join(f"{file.name} {size}" for file, size in zip(files, sizes, strict=True)).encode(
            "utf-8", "replace"
        )
        share = min(1.0, _MOST_BYTES / max(sum(sizes), 1))
        for file in _spread(files, max(1, int(share * len(files)))):
            yield file.read_bytes()
    except OSError as problem:
        # A disk that fails under an open file names none.
        named = problem.filename or file
        raise BadInput(f"{named} cannot be read ({first_line(problem)}); mend or remove it") from problem


def _spread(entries: Sequence[Any], most: int) -> Sequence[Any]:
    """Evenly spread entries, the first and no more than so many."""
    return entries[:: max(1, -(-len(entries) // most))]


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.contiguous().numpy().reshape(-1).view("uint8").data
