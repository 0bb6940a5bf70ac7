"""Weights of a directory of transformers: reading them, and giving them to a model.

    before   a model as its config says, with random weights; model.safetensors, or shards and their index
    after    the same model, of the same modules, buffers, ties and mode, with the weights of the files

Only safetensors are read. transformers makes of their tensors what it makes of a directory (old names, fused experts,
tied weights, parts that stay in float32), but is given no path: some files of a directory it would unpickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from repl_fx.errors import SourceError, listed
from repl_fx.graph.kinds import dtype_name
from repl_fx.sources.checkpoints.fitting import size_of, tied_names
from repl_fx.sources.source import describe, package_code

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Files of weights that are left alone, in a directory that has none of those above.
_OTHERS = ("pytorch_model*.bin", "*.safetensors", "*.gguf", "*.ckpt", "tf_model.h5", "flax_model.msgpack")
# In place of the name of their file in the config beside weights of a model in place: it ends up in the one line with
# which transformers refuses it, as it would make the weights of replaced blocks anew.
REWRITTEN = "none, as repl-fx rewrote this model: load the directory with repl_fx.load"


def read_weights(directory: Path, config: Any) -> dict[str, Tensor] | None:
    """Read the tensors of a directory, under the names that they have there; the config may name their file.

    Returns:
        The tensors, in memory of their own; None where the directory has no safetensors that transformers would load.
    """
    named = getattr(config, "transformers_weights", None)
    if named == REWRITTEN:
        raise SourceError(f"{directory} is an artifact of repl-fx, and no source model; give its path without hf:")
    entry = named or next((name for name in (_WEIGHTS, _INDEX) if (directory / name).is_file()), None)
    if entry is None:
        return None
    if (directory / "adapter_config.json").is_file():
        raise SourceError(
            f"{directory} holds an adapter too (adapter_config.json), which is not applied; merge it into the "
            "weights, or move it away"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise SourceError(f"the weights of {directory} are quantised (quantization_config); dequantise them")
    # A few classes have heads in files of their own.
    heads = [directory / name for name in getattr(type(config), "extra_files", ()) if (directory / name).is_file()]
    file = _inside(directory, entry)
    if not entry.endswith(".index.json"):
        return _read([file, *heads])
    try:
        shards = json.loads(file.read_bytes())["weight_map"]
        files = [_inside(directory, shard) for shard in sorted(set(shards.values()))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{file} cannot be read: {describe(error)}; copy the directory again") from error
    state = _read([*files, *heads])
    if gone := shards.keys() - state.keys():
        raise SourceError(f"{file} names weights that its files do not hold: {listed(sorted(gone))}")
    return state


def _inside(directory: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise SourceError(f"weights in {name!r} are not read; they have to be safetensors in {directory}")
    return directory / path


def _read(files: Iterable[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                # Copies: these would change with the file, and be gone with it.
                state |= {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, ValueError) as error:
            raise SourceError(f"{file} cannot be read: {describe(error)}; copy the directory again") from error
    return state


def why_random(config: Path, directory: Path | None) -> str:
    """A note on random weights: of a config file alone, or of a directory without weights that are read."""
    if directory is None:
        beside = any((config.parent / name).is_file() for name in (_WEIGHTS, _INDEX))
        return f"weights are random: {config} is a config alone" + f"; hf:{config.parent} has weights too" * beside
    others = sorted({file.name for pattern in _OTHERS for file in directory.glob(pattern)})
    left = ""
    if others:
        left = f"; {listed(others)} {'is' if len(others) == 1 else 'are'} not read"
        left += ", as it would be unpickled" * all(name.endswith(".bin") for name in others)
    return f"weights are random: {directory} has no {_WEIGHTS}{left}"


def dtype_of(state: Mapping[str, Tensor]) -> torch.dtype | None:
    """The dtype that transformers gives weights whose config names none: that of the first floating one."""
    return next((t.dtype for t in state.values() if t.is_floating_point() and t.dtype.itemsize > 1), None)


def load_weights_(model: Any, state: Mapping[str, Tensor], directory: Path) -> tuple[str, ...]:
    """Give a model of transformers the weights of a directory; it keeps its mode, and what is no weight.

    Returns:
        Notes on what is not as in the directory.
    """
    _refuse_quantised(model, state, directory)
    with package_code(f"the weights of {directory} could not be loaded"):
        loaded, found = _as_transformers_loads(model, state)
    if mismatched := found["mismatched_keys"]:
        shapes = [f"{name} is {size_of(there)} there and {size_of(here)} here" for name, there, here in mismatched]
        raise SourceError(
            f"{len(mismatched)} of the weights of {directory} do not fit {type(model).__name__}: "
            f"{listed(sorted(shapes), separator='; ')}; take the config that they were made with"
        )
    missing, unexpected = set(found["missing_keys"]), set(found["unexpected_keys"])
    own = model.state_dict(keep_vars=True)
    if own.keys() <= missing:
        raise SourceError(
            f"none of the weights of {directory} is in {type(model).__name__}: they are {listed(sorted(state))}; "
            f"its own are {listed(sorted(own))}"
        )
    new = loaded.state_dict(keep_vars=True)
    if untied := {*tied_names(own).values()} - {*tied_names(new).values()}:
        tied = listed(sorted(min(untied)), separator=" and ")
        raise SourceError(
            f"{tied} are one tensor by config.json and differ in {directory}; set tie_word_embeddings to false in it"
        )
    try:
        model.load_state_dict(new, assign=True)
    except RuntimeError as error:
        raise SourceError(f"the weights of {directory} make another model: {describe(error)}") from error
    notes = []
    if missing:
        notes.append(f"{_weights(missing)} not in {directory}, so random: {listed(sorted(missing))}")
    if unexpected:
        classes = [name for name in getattr(model.config, "architectures", None) or () if name != type(model).__name__]
        there = f" (it was saved from {', '.join(classes)})" if classes else ""
        lacking = f"not in {type(model).__name__}: {listed(sorted(unexpected))}"
        notes.append(f"{_weights(unexpected)} in {directory}{there} but {lacking}")
    kinds = {dtype_name(t.dtype) for t in state.values() if t.is_floating_point()}
    kind = dtype_name(model.dtype)
    if kinds and kind not in kinds:
        notes.append(f"weights are {listed(sorted(kinds))} in {directory} and {kind} here, as the config says")
    return tuple(notes)


def keep_precision_(model: Any) -> None:
    """Give random weights the dtypes that loaded ones have: transformers keeps some in float32 where most are half."""
    kept = any(getattr(model, name, None) for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"))
    if kept and model.dtype in (torch.float16, torch.bfloat16):
        loaded, _ = _as_transformers_loads(model, model.state_dict())
        model.load_state_dict(loaded.state_dict(keep_vars=True), assign=True)


def _as_transformers_loads(model: Any, state: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Any]]:
    loaded: tuple[nn.Module, dict[str, Any]] = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=dict(state),
        dtype=model.dtype,
        local_files_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return loaded


def _refuse_quantised(model: nn.Module, state: Mapping[str, Tensor], directory: Path) -> None:
    """Refuse bytes in place of floats, which transformers would convert as if they were the values."""
    floating = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            quantised = tensor.dtype.itemsize == 1
        else:
            # The name may have a prefix more or less than in the model.
            named = any(name == n or name.endswith(f".{n}") or n.endswith(f".{name}") for n in floating)
            quantised = named and not tensor.is_complex()
        if quantised:
            kind = dtype_name(tensor.dtype)
            raise SourceError(f"weights of {directory} are quantised ({name} is {kind}); dequantise them")


def _weights(names: set[str]) -> str:
    return "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
