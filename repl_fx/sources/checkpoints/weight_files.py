"""Files of checkpoints: safetensors, files of torch without any code in them, shards with an index, directories.

    model.safetensors                   a safetensors file, whatever its name
    weights.pt, last.ckpt, …            a file of `torch.save`, read with `weights_only=True`
    model.safetensors.index.json        an index of shards beside it, also of `pytorch_model.bin.index.json`
    DIR                                 a directory with one of these files, as transformers writes it, or an artifact

Nothing is unpickled but tensors, containers and the `argparse.Namespace` that training scripts keep their options in.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from repl_fx.arguments import in_words
from repl_fx.errors import BadInput, ForeignError, foreign_code, listed, one_line

# The weights of a model as a user gives them: a file, a directory, or the state dict itself.
Weights = str | os.PathLike[str] | Mapping[str, Any]

_INDEX = ".index.json"
# The files of a directory that are its weights, best first.
_OF_OTHERS = (f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", _INDEX))
_IN_DIRECTORY = (*_OF_OTHERS, "repl-fx.safetensors")


def describe_weights(weights: Weights) -> str:
    """Weights in words, for messages."""
    return "the given state" if isinstance(weights, Mapping) else str(weights)


def read_weights(weights: Weights) -> Mapping[str, Any]:
    """The content of a checkpoint: a state dict, or a mapping that holds one.

    Raises:
        BadInput: there is no such file, or it is damaged, more than weights, or none.
    """
    if isinstance(weights, Mapping):
        return weights
    if not isinstance(weights, str | os.PathLike):
        raise BadInput(f"weights are a file, a directory or a state dict, and this is {in_words(weights)}")
    path = Path(weights)
    if path.is_dir():
        path = _in_directory(path)
    if not path.is_file():
        raise BadInput(f"no file {path}; give a .safetensors file, a file of torch.save, or a directory with weights")
    return _read_shards(path) if path.name.endswith(_INDEX) else _read_file(path)


def _in_directory(directory: Path) -> Path:
    if (directory / "adapter_config.json").is_file():
        raise BadInput(
            f"{directory} holds an adapter (adapter_config.json), which is not applied; merge it into the weights first"
        )
    if (directory / ".metadata").is_file():
        raise BadInput(
            f"{directory} is a distributed checkpoint; make one file of it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {directory} weights.pt"
        )
    found = next((directory / name for name in _IN_DIRECTORY if (directory / name).is_file()), None)
    if found is None:
        raise BadInput(f"{directory} has no {', '.join(_IN_DIRECTORY)}; give the file of the weights itself")
    return found


def _read_shards(index: Path) -> dict[str, Any]:
    try:
        shards = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(shards.values()))
        outside = next((n for n in names if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts), None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
        raise BadInput(f"{index} is no index of shards: {one_line(problem)}; copy it again") from problem
    if outside is not None:
        raise BadInput(f"{index} names the shard {outside}, which does not lie beside it")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise BadInput(f"{index} names {listed(absent)} beside it, which are not there; copy the directory again")
    state: dict[str, Any] = {}
    for name in names:
        state |= _read_file(index.parent / name)
    if gone := [name for name in shards if name not in state]:
        raise BadInput(f"{index} names weights that its shards do not hold: {listed(gone)}; copy the directory again")
    return state


def _read_file(file: Path) -> Mapping[str, Any]:
    try:
        if not _is_safetensors(file):
            return _read_torch(file)
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as problem:
        raise BadInput(f"{file} cannot be read: {one_line(problem)}; copy it again") from problem


def _is_safetensors(file: Path) -> bool:
    """Tell whether a file begins as such a file does: with the size of its header, which is JSON."""
    with file.open("rb") as stream:
        head = stream.read(9)
    fits = int.from_bytes(head[:8], "little") < file.stat().st_size
    return file.suffix == ".safetensors" or (head[8:] == b"{" and fits)


def _read_torch(file: Path) -> Mapping[str, Any]:
    own = torch.serialization.safe_globals([argparse.Namespace])
    # Warnings on protocols of pickles say nothing to a user.
    with foreign_code(partial(_unreadable, file)), own, warnings.catch_warnings(action="ignore"):
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(loaded, Mapping):
        raise BadInput(f"{file} holds {in_words(loaded)}; save a state_dict: torch.save(model.state_dict(), FILE)")
    return loaded


def _unreadable(file: Path, problem: Exception) -> BadInput:
    if not isinstance(problem, pickle.UnpicklingError):
        return BadInput(f"{file} is neither safetensors nor a whole file of torch.save: {one_line(problem)}")
    try:
        with foreign_code():
            # In torch's older format it finds none.
            classes = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except ForeignError:
        classes = []
    foreign = sorted({*classes} - {"argparse.Namespace"})
    return BadInput(
        f"{file} is a pickle of more than weights{f' ({listed(foreign)})' if foreign else ''}, which could run code "
        "and is not loaded; where you trust it, load it with torch and save its state_dict alone"
    )
