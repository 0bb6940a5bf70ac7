"""`save_pretrained`: what transformers writes of a model in place, as an artifact.

    DIR/config.json, …         of transformers, with a name of the weights that its `from_pretrained` refuses
    DIR/model.safetensors      of transformers, under the names that it writes; the weights of the artifact
    DIR/manifest.json, …       of repl-fx

So a checkpoint of transformers' Trainer is one that both read: to resume, and by `repl_fx.load`. `from_pretrained`
would build the source's class, and make the weights of its replaced blocks anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from safetensors.torch import load_file
from torch import Tensor, nn

from repl_fx.artifact.changing import changing
from repl_fx.artifact.provenance import require_as_made, with_origin
from repl_fx.artifact.store import CONSTANTS, WEIGHTS, write_rest
from repl_fx.artifact.tensor_files import write_constants, write_file
from repl_fx.errors import BadInput, ReplFxError
from repl_fx.graph.state import address
from repl_fx.rewriting.in_place.pretrained import SavePretrained, with_own_names
from repl_fx.sources.hugging_face_weights import REWRITTEN
from repl_fx.sources.source import hash_file
from repl_fx.tracing.parts.origin import CONFIG, Model, SourceOptions

_INDEX = f"{WEIGHTS}.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def save_pretrained(
    model: nn.Module,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Write a model in place as transformers writes models, and what makes the directory an artifact.

    Where it cannot be an artifact, as for a model that was changed since, a warning says so, and the weights are as
    transformers wrote them. `from_pretrained` refuses the directory either way. `repl_fx.load` needs no other argument
    where the model is one of transformers, of its config.

    Args:
        model: a model in place of transformers.
        save_directory, is_main_process, state_dict, options: see `PreTrainedModel.save_pretrained`.

    Returns:
        What the class's own method returns.

    Raises:
        BadInput: the model has no such method, or that of another library, or would be uploaded without its plan.
    """
    method = getattr(type(model), "save_pretrained", None)
    if method is None:
        raise BadInput(f"a {type(model).__name__} has no save_pretrained; use repl_fx.save")
    if options.get("push_to_hub"):
        raise BadInput("push_to_hub uploads what transformers writes, without the plan; use model.push_to_hub(NAME)")
    if not _is_of_transformers(model):
        return _saved_by_parts(model, method, Path(save_directory), options)
    result = method(model, save_directory, is_main_process=is_main_process, state_dict=state_dict, **options)
    if is_main_process:
        _refuse_from_pretrained(Path(save_directory) / CONFIG)
    if is_main_process and not options.get("variant") and not options.get("distributed_checkpoint"):
        try:
            _add_artifact(model, Path(save_directory))
        except ReplFxError as problem:
            warnings.warn(f"{save_directory} has weights, and is no artifact for repl_fx.load: {problem}", stacklevel=3)
    return result


def _is_of_transformers(model: nn.Module) -> bool:
    # Another library may show the config of the model that it holds (sentence-transformers).
    return "transformers" in sys.modules and isinstance(model, sys.modules["transformers"].PreTrainedModel)


def _saved_by_parts(model: nn.Module, method: Any, directory: Path, options: dict[str, Any]) -> Any:
    """Save a model of another library, where that saves a rewritten model of transformers in it by its own method."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=re.escape(folder))
        parts = [part for part in model.modules() if part is not model]
        known = any(isinstance(vars(part).get("save_pretrained"), SavePretrained) for part in parts)
        result = method(model, folder, **options) if known else None
        if not any(REWRITTEN in file.read_text(encoding="utf-8") for file in Path(folder).rglob(CONFIG)):
            raise BadInput(
                f"{type(model).__name__}.save_pretrained would write weights of which from_pretrained loads the kept "
                "blocks alone; use repl_fx.save"
            )
        shutil.copytree(folder, directory, dirs_exist_ok=True)
    warnings.warn(f"{directory} has weights, and is no artifact for repl_fx.load; use repl_fx.save", stacklevel=4)
    return result


def _refuse_from_pretrained(config: Path) -> None:
    values = json.loads(config.read_text(encoding="utf-8"))
    text = json.dumps({**values, "transformers_weights": REWRITTEN}, indent=2, sort_keys=True)
    config.write_text(f"{text}\n", encoding="utf-8")


def _add_artifact(model: nn.Module, directory: Path) -> None:
    module, origin = with_origin(model)
    require_as_made(module, origin)
    origin = msgspec.structs.replace(origin, model=_spec(module, directory) or origin.model)
    with _written(directory) as files, changing(directory) as change:
        aliases = _tied(module, _joined(files, change.place / WEIGHTS))
        aliases |= write_constants(module, change.place / CONSTANTS)
        write_rest(change, module, origin, aliases)
        for file in files:
            file.unlink()


@contextmanager
def _written(directory: Path) -> Iterator[list[Path]]:
    """The files of weights that transformers has written, under other names, which are their own again after a failure.

    Raises:
        BadInput: there are none.
    """
    found = sorted(path for path in directory.iterdir() if _SHARD.fullmatch(path.name) or path.name == WEIGHTS)
    if not found:
        raise BadInput("transformers wrote no weights of the whole model")
    index = directory / _INDEX
    moved = {path.with_name(f".{path.name}.written"): path for path in (*found, *([index] if index.exists() else []))}
    for now, path in moved.items():
        path.replace(now)
    try:
        yield list(moved)
    finally:
        for now, path in moved.items():
            if now.exists():
                now.replace(path)


def _joined(files: list[Path], weights: Path) -> dict[str, Tensor]:
    """Put the tensors of all files into one."""
    shards = [file for file in files if _INDEX not in file.name]
    tensors: dict[str, Tensor] = {}
    for file in shards:
        tensors |= load_file(file)
    write_file(tensors, weights)
    return tensors


def _tied(module: nn.Module, written: dict[str, Tensor]) -> dict[str, str]:
    """Names of tied tensors that were left out, each with the one that was written.

    Raises:
        BadInput: the names are those of another model.
    """
    state = module.state_dict(keep_vars=True)
    named = with_own_names(module, written)
    foreign = next((name for name in named if name not in state), None)
    if foreign is not None:
        raise BadInput(f"transformers wrote {foreign}, which is no name of the model in place")
    in_file = {id(tensor): name for name, tensor in written.items()}
    known = {address(state[name]): in_file.get(id(tensor)) for name, tensor in named.items()}
    missing = [name for name in state if name not in named]
    lost = next((name for name in missing if known.get(address(state[name])) is None), None)
    if lost is not None:
        raise BadInput(f"transformers did not write {lost}")
    return {name: str(known[address(state[name])]) for name in missing}


def _spec(model: Any, directory: Path) -> Model | None:
    """Describe how the config beside the artifact makes the source; None for a class that transformers lacks."""
    import transformers

    kind, config, saves = type(model), directory / CONFIG, vars(model).get("save_pretrained")
    if getattr(transformers, kind.__name__, None) is not kind or not isinstance(saves, SavePretrained):
        return None
    if not config.is_file() or "auto_map" in json.loads(config.read_text()):
        return None
    name = kind.__name__
    options = SourceOptions(input_shape=None, seed=0, options=saves.captured)
    return Model(spec=f"hf:{CONFIG}:{name}", options=options, kind=name, files={CONFIG: hash_file(config)})
