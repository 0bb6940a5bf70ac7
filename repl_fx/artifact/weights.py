"""Tensors of a module to a file and back; tied ones once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from repl_fx.errors import ArtifactError, OutputError, one_line


def write_weights(module: nn.Module, file: Path) -> dict[str, str]:
    """Write the state of a module, each tensor once.

    Returns:
        The other names of tied tensors, and the name under which each was written.

    Raises:
        OutputError: a tensor has no values.
        SafetensorError, OSError: the file cannot be written.
    """
    known: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_meta:
            raise OutputError(f"{name} is on the meta device and has no values to save; materialise the model first")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if key in known:
            aliases[name] = known[key]
            continue
        known[key] = name
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    # The library makes a file that its owner alone can read.
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(mode)
    return aliases


def read_weights(file: Path, aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Read what `write_weights` wrote, under all names.

    Raises:
        ArtifactError: the file holds no tensors, or not those that aliases name.
    """
    try:
        state = load_file(file)
    except (SafetensorError, OSError, ValueError) as problem:
        raise ArtifactError(f"{file} is damaged: {one_line(problem)}; transform the model again") from problem
    for alias, name in aliases.items():
        if name not in state or alias in state:
            why = "is no tensor in it" if name not in state else "is a tensor in it, too"
            raise ArtifactError(f"{file} does not fit its manifest: {alias} should be {name}, which {why}")
        state[alias] = state[name]
    return state


def load_state(file: Path, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module the state from a file, which has to be exactly its own.

    Raises:
        ArtifactError: a tensor is missing, foreign, or of another shape or dtype.
    """
    own = module.state_dict(keep_vars=True)
    missing, foreign = own.keys() - state.keys(), state.keys() - own.keys()
    if missing or foreign:
        words = [
            f"{len(m)} tensors {w}, e.g. {min(m)}" for m, w in ((missing, "are missing"), (foreign, "are foreign")) if m
        ]
        raise ArtifactError(f"{file} does not fit its model: {'; '.join(words)}; transform it again")
    for name, tensor in own.items():
        if tuple(tensor.shape) != tuple(state[name].shape) or tensor.dtype != state[name].dtype:
            found, wanted = (f"{t.dtype!s}{list(t.shape)}" for t in (state[name], tensor))
            raise ArtifactError(f"{file} does not fit its model: {name} is {found}, the model has {wanted}")
    module.load_state_dict(dict(state))
