"""Text, each token to be predicted from those before: `text:PATH`, of one file or of the files below a folder.

    tokens     a b c d e f g h …        context 3
    inputs     a b c | d e f | …
    targets    b c d | e f g | …

Tokens are those of the model's tokenizer, where there is one, and else bytes. A zero byte ends each file, or the token
for an end. Of several files some are held out, chosen by a hash of their paths, so that the choice is
the same on each machine; of one file the end is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from repl_fx.errors import BadInput, first_line
from repl_fx.training.data.data_set import Data, DataRequest, Tensors, rows_of

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
    """A data set of the tokens of two splits, cut into windows; what does not fill the last window is left out.

    Raises:
        BadInput: a split is too short for one window.
    """
    tokenizer = request.tokenizer
    if tokenizer is None:
        ids = [np.frombuffer(part, np.uint8) for part in (train, test)]
        known, kind, said = BYTES, "bytes", "bytes, by their values"
    else:
        ids = [_tokens(tokenizer, part) for part in (train, test)]
        known, kind, said = len(tokenizer), "tokens", f"tokens of {type(tokenizer).__name__}, the model's own"
    for split, part in zip(("train", "test"), ids, strict=True):
        if len(part) <= request.context:
            raise BadInput(
                f"{request.name}: the {split} split has {len(part)} {kind}, too little for a context of "
                f"{request.context}, which takes {request.context + 1}; give more text or a smaller context"
            )
    windows, held_out = (_windows(part, request.context) for part in ids)
    return Data(
        *(request.name, "language-modelling", known, (request.context,), windows, held_out),
        changes=(f"text of {request.name}: {said}",),
        bytes_per_token=len(test) / len(ids[1]),
    )


def texts_data(request: DataRequest, classes: int, train: tuple[Any, Any], test: tuple[Any, Any]) -> Data:
    """A data set of texts and their classes: tokens, padded to the longest, with the mask that says where they end.

    Args:
        request: gives name, context and tokenizer.
        classes: how many there are.
        train, test: texts, and the class of each.

    Raises:
        BadInput: a split is empty.
    """
    (texts, labels), (held_out, held_labels) = train, test
    encoded = _encoded(request, [*map(str, texts), *map(str, held_out)])
    whole = torch.tensor([*map(int, labels), *map(int, held_labels)])
    first, second = (
        Tensors(rows_of(encoded, part), whole[part]) for part in (slice(len(texts)), slice(len(texts), None))
    )
    length = first.main.shape[1]
    by = "bytes" if request.tokenizer is None else f"tokens of {type(request.tokenizer).__name__}, the model's own"
    said = f"texts of {request.name}: {by}, cut or padded to {length}, with {', '.join(list(encoded)[1:])}"
    return Data(request.name, "classification", classes, (length,), first, second, changes=(said,))


def _encoded(request: DataRequest, texts: Sequence[str]) -> dict[str, Tensor]:
    tokenizer = request.tokenizer
    if tokenizer is not None:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        options: Any = {"padding": True, "truncation": True, "max_length": request.context, "return_tensors": "pt"}
        return dict(tokenizer(list(texts), **options))
    rows = [torch.frombuffer(bytearray(text.encode()[: request.context] or END), dtype=torch.uint8) for text in texts]
    ids, mask = (pad_sequence(part, batch_first=True).long() for part in (rows, [torch.ones_like(row) for row in rows]))
    return {"input_ids": ids, "attention_mask": mask}


def _tokens(tokenizer: Any, text: bytes) -> npt.NDArray[Any]:
    """The ids of the tokens of files, each of which ends in the token for that, where there is one."""
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    files = [part.decode("utf-8", "replace") for part in text.split(END) if part]
    # What is too long for a model is cut into windows: nothing to be warned of.
    found = tokenizer(files, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return np.fromiter((token for ids in found for token in (*ids, *ends)), np.int64)


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


def _windows(text: npt.NDArray[Any], context: int) -> Tensors:
    ids = torch.from_numpy(text.astype(np.int64))
    count = (len(ids) - 1) // context
    # Two views of one memory.
    inputs, targets = (ids[i : i + count * context].view(count, context) for i in (0, 1))
    return Tensors(inputs, targets)
