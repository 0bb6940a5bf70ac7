"""The source model of an artifact, built anew: what code may run for it, and what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from repl_fx.artifact.manifest import Manifest, read_manifest
from repl_fx.display.shell import typed
from repl_fx.errors import ArtifactError
from repl_fx.sources import Source, load_source, names_no_file
from repl_fx.sources.checkpoints.digest import digest_of
from repl_fx.sources.hugging_face import split_class
from repl_fx.sources.hugging_face_code import OPTION as TRUST
from repl_fx.sources.registry import code_of
from repl_fx.sources.source import hash_file
from repl_fx.tracing.parts.origin import CONFIG, Model, SourceOptions

# How a model of transformers generates.
_GENERATION = "generation_config.json"


def build_original(directory: str | Path, model: str | None, weights: Path | None, trusted: bool) -> nn.Module:
    """The model that an artifact was made from, with its weights, which the artifact has in part alone.

    Args:
        model: a specification of it; None takes what the manifest names.
        weights: a file or directory of them; None takes what the manifest names, and checks them.
        trusted: see `build_source`.

    Raises:
        ArtifactError: see `build_source`; or the weights are not known, gone, or others than they were.
    """
    directory = Path(directory)
    manifest, known = read_manifest(directory), None
    give = "give the weights of the original with --teacher FILE"
    if weights is None:
        known = None if manifest.model is None else manifest.model.weights
        if known is None:
            raise ArtifactError(f"{directory} does not say which weights its blocks were replaced in; {give}")
        weights = None if known.file is None else Path(known.file)
        if weights is not None and not weights.exists():
            raise ArtifactError(f"{directory} was made with the weights {weights}, which are gone; {give}")
    built = build_source(directory, manifest, model, trusted, weights or True)
    found = built.model if isinstance(built, Source) else built
    if known is not None and digest_of(found) != known.sha256:
        where = known.file or (manifest.model and manifest.model.spec)
        raise ArtifactError(f"the weights of {where} are not those that {directory} was made with; {give}")
    return found


def build_source(
    directory: Path,
    manifest: Manifest,
    model: nn.Module | str | None,
    trusted: bool,
    weights: Path | bool = False,
) -> nn.Module | Source:
    """The source model of an artifact; with how it was built, where it was not given.

    Args:
        model: the model, or a specification of it; None takes what the manifest names.
        trusted: whether code beside the config of an `hf:` model may run.
        weights: see `load_source`; none by default, as the artifact has its own.

    Raises:
        ArtifactError: the manifest names no model, or code that is not to be run.
    """
    if isinstance(model, nn.Module):
        return model
    known = manifest.model
    if known is None and model is None:
        raise ArtifactError(
            f"{directory} was saved from Python without a model spec; name the model: --model SPEC "
            "(load(directory, model=…))"
        )
    options = SourceOptions(input_shape=None, seed=0, options={}) if known is None else known.options
    if model is None and known is not None and known.is_beside:
        return _from_config(directory, known, weights)
    if model is None and known is not None:
        _require_same_files(directory, known)
        trusted = _runs_code(directory, known, trusted)
        model = known.spec
        kind, _, name = model.partition(":")
        if kind == "hf" and known.files and not trusted and split_class(name)[1] is None:
            # Of an older repl-fx, which took AutoModel where no class was named.
            model = f"{model}:{known.kind}"
    return load_source(
        str(model),
        input_shape=options.input_shape,
        seed=options.seed,
        options=options.options,
        weights=weights,
        pretrained=options.pretrained and weights is True,
        trust_remote_code=trusted,
    )


def _from_config(directory: Path, model: Model, weights: Path | bool) -> nn.Module:
    """A model of transformers from the config in the artifact; its example inputs are the artifact's."""
    config = directory / CONFIG
    if not config.is_file() or hash_file(config) != model.files[CONFIG]:
        raise ArtifactError(
            f"{directory} was saved with a {CONFIG} that is gone or changed; name the model: --model SPEC "
            "(load(directory, model=…))"
        )
    # Code of a config would run with permission alone.
    source = load_source(f"hf:{config.resolve()}:{model.kind}", options=model.options.options, weights=weights)
    built: Any = source.model
    if (directory / _GENERATION).is_file():
        built.generation_config = type(built.generation_config).from_pretrained(directory)
    return source.model


def _require_same_files(directory: Path, model: Model) -> None:
    """Refuse to run a model file that an artifact names, unless it is the one that the artifact was made from."""
    name, is_file = model.spec, not names_no_file(model.spec)
    otherwise = f"to take another, name it: --model {typed(name)} (load(directory, model=…))"
    if is_file and not any(name == file or name.startswith(f"{file}:") for file in model.files):
        raise ArtifactError(f"{directory} names the model {name}, and no hash of that file; {otherwise}")
    for text, digest in model.files.items():
        file = Path(text)
        if not file.is_absolute():
            raise ArtifactError(f"{directory} names the model file {file}, which is no absolute path; {otherwise}")
        if file.resolve().is_relative_to(directory.resolve()):
            raise ArtifactError(f"{directory} names the model file {file}, which came with it; {otherwise}")
        if not file.is_file():
            raise ArtifactError(f"{directory} was made from {file}, which is gone; {_seen(directory, model, file)}")
        if hash_file(file) != digest:
            raise ArtifactError(f"{file} changed since {directory} was made from it; {otherwise}")


def _seen(directory: Path, model: Model, file: Path) -> str:
    """Advice on a model file that is gone; a file like it is named, and never run unasked."""
    for near in (Path(file.name), directory.parent / file.name):
        if model.spec.startswith(str(file)) and near.is_file() and hash_file(near) == model.files[str(file)]:
            spec = model.spec.replace(str(file), str(near), 1)
            return f"a file like it is there: take it with --model {typed(spec)} (load(directory, model={spec!r}))"
    return "name where it is: --model PATH (load(directory, model=…))"


def _runs_code(directory: Path, model: Model, trusted: bool) -> bool:
    """Tell whether a model is made of code that runs with permission alone: that which the artifact has hashes of."""
    kind, _, name = model.spec.partition(":")
    own_code = code_of(kind)
    code = [file for file in model.files if file.endswith(".py")]
    if own_code is None or not code:
        return False
    if not trusted:
        raise ArtifactError(
            f"{directory} was made from a model with code of its own ({code[0]}); to run it, add {TRUST}"
        )
    if other := [file for file in own_code(name) if str(file) not in model.files]:
        raise ArtifactError(f"{directory} names the model {model.spec}, and no hash of {other[0]}, which is part of it")
    return True
