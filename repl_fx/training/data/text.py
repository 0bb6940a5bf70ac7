"""Text as bytes, each to be predicted from those before: `text:PATH`, of one file or of the files below a folder.

    bytes      a b c d e f g h …        context 3
    inputs     a b c | d e f | …
    targets    b c d | e f g | …

A zero byte ends each file. Of several files some are held out, chosen by a hash of their paths, so that the choice is
the same on each machine; of one file the end is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from repl_fx.errors import BadInput, first_line
from repl_fx.training.data.kinds import Data, DataRequest, Tensors

# A zero byte, which no ordinary text has.
END = b"\0"
BYTES = 256


def load_text(request: DataRequest) -> Data:
    """Read `text:PATH`, see the module; hidden files and folders are left out.

    Raises:
        BadInput: nothing lies there, a file cannot be read, or a split is too short for one window.
    """
    path = Path(request.argument)
    if path.is_file():
        whole = _read([path])
        held = max(1, round(len(whole) * request.held_out))
        return text_data(request, whole[:-held], whole[-held:])
    if not path.is_dir():
        raise BadInput(f"no file or folder {path}; give text:PATH of a text, or of a folder of them")
    files = [file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
    if len(files) < 2:
        raise BadInput(f"{path} has {len(files)} files; give a folder with two or more, or the path of the file itself")
    names = {file.relative_to(path).as_posix(): file for file in files}
    train, test = split_by_name(names, request.held_out)
    return text_data(request, *(_read(names[name] for name in part) for part in (train, test)))


def text_data(request: DataRequest, train: bytes, test: bytes) -> Data:
    """A data set of the bytes of two splits, cut into windows; what does not fill the last window is left out.

    Raises:
        BadInput: a split is too short for one window.
    """
    for split, part in (("train", train), ("test", test)):
        if len(part) <= request.context:
            raise BadInput(
                f"{request.name}: the {split} split has {len(part)} bytes, too little for a context of "
                f"{request.context}, which takes {request.context + 1}; give more text or a smaller context"
            )
    windows, held_out = (_windows(part, request.context) for part in (train, test))
    return Data(request.name, "language-modelling", BYTES, (request.context,), windows, held_out)


def split_by_name(names: Iterable[str], held_out: float) -> tuple[list[str], list[str]]:
    """Names for training and held out: at least one of each where there are two, in alphabetical order.

    The names whose hashes are lowest are held out; the order in which they are given does not matter.
    """
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
    held = min(max(1, round(len(by_hash) * held_out)), len(by_hash) - 1)
    return sorted(by_hash[held:]), sorted(by_hash[:held])


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _read(files: Iterable[Path]) -> bytes:
    parts: list[bytes] = []
    for file in files:
        try:
            parts += file.read_bytes(), END
        except OSError as problem:
            raise BadInput(f"{file} cannot be read ({first_line(problem)}); mend or remove it") from problem
    return b"".join(parts)


def _windows(text: bytes, context: int) -> Tensors:
    ids = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    count = (len(ids) - 1) // context
    # Two views of one memory.
    inputs, targets = (ids[i : i + count * context].view(count, context) for i in (0, 1))
    return Tensors(inputs, targets)
