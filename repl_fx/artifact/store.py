"""`save` and `load`: a result of `transform` to a directory, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx.artifact.changing import changing, require_free
from repl_fx.artifact.inputs import Inputs
from repl_fx.artifact.manifest import MANIFEST, Captured, Manifest, Model, Options, read_manifest
from repl_fx.artifact.weights import load_state, read_weights, write_weights
from repl_fx.errors import ArtifactError, BadInput, CaptureError, NothingToReplace, PlanMismatch, one_line
from repl_fx.graph import copy_model
from repl_fx.partial import Part, capture_as_called
from repl_fx.plan import Plan
from repl_fx.sources import ZOOS, Source, load_source
from repl_fx.sources.hugging_face import own_code
from repl_fx.sources.hugging_face_code import OPTION as TRUST
from repl_fx.sources.source import hash_file, to_device
from repl_fx.tracing.fingerprint import code_of
from repl_fx.tracing.size_questions import refuse_sizes_, refused_sizes
from repl_fx.tracing.untouched import device_of
from repl_fx.transform import TransformResult, rewrite, transform

PLAN, WEIGHTS, GRAPH, STRUCTURE = "plan.json", "model.safetensors", "graph.txt", "source.txt"
# What `repl-fx export` proved.
PROOF = "verify.json"


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact.

    Attributes:
        directory: where it lies.
        manifest: what manifest.json says.
        plan: what was done to the model.
        module: the rewritten model with its weights.
        args, kwargs: example inputs.
        result: what applying the plan again gave: the graph before, its repeats and what became of each block.
    """

    directory: Path
    manifest: Manifest
    plan: Plan
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: TransformResult

    own_files = (PLAN, WEIGHTS, GRAPH, STRUCTURE)

    @property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten model, where the whole model is one graph."""
        return self.result.graph_module


def save(result: TransformResult, directory: str | Path, *, source: Source | None = None, force: bool = False) -> Path:
    """Write an artifact; all of it or nothing.

    Args:
        result: from `transform`; its weights are saved as they are now, so training in between is kept.
        directory: where to; it must be absent or empty.
        source: how to build the model again; without it, `load` needs the model itself.
        force: replace the artifact that is there. Files of others in its directory stay.

    Returns:
        The directory.

    Raises:
        OutputError: the place is taken or cannot be written.
    """
    require_free(directory, force=force)
    with changing(directory) as change:
        aliases = write_weights(result.module, change.place / WEIGHTS)
        (change.place / PLAN).write_text(result.plan.to_json() + "\n")
        (change.place / GRAPH).write_text(parts_text(result.parts))
        (change.place / STRUCTURE).write_text("".join(f"{line}\n" for line in result.structure))
        change.commit(_manifest(result, source, aliases))
    return Path(directory)


def load(directory: str | Path, model: nn.Module | str | None = None, *, trust_remote_code: bool = False) -> nn.Module:
    """Load the rewritten model of an artifact.

    Args:
        directory: the artifact.
        model: the source model, for artifacts that were saved without a source; its weights do not matter. Or a
            specification of it (`repl_fx.sources`), for artifacts whose model file is elsewhere now, or another.
        trust_remote_code: let code run that lies in the directory of an `hf:` model; see `load_source`.

    Returns:
        The module, in evaluation mode: a graph module where the whole model is one graph.

    Raises:
        ArtifactError: no artifact, a damaged or foreign one, one whose model file is not the one it was made from, or
            one that no longer fits its model.
    """
    return load_artifact(directory, model, trust_remote_code=trust_remote_code).module


def load_artifact(
    directory: str | Path, model: nn.Module | str | None = None, *, trust_remote_code: bool = False
) -> Artifact:
    """Load an artifact with its plan and example inputs; see `load`."""
    directory = Path(directory)
    manifest, plan, state, structure = _read(directory)
    source, args, kwargs = _source(directory, manifest, model, trust_remote_code)
    copy = isinstance(model, nn.Module)
    try:
        try:
            result = _applied(source, args, kwargs, plan, manifest, copy=copy)
        except PlanMismatch as problem:
            if not problem.structure or not _may_trace_otherwise(manifest, source):
                raise
            result = _applied(source, args, kwargs, replace(plan, fingerprint=""), manifest, copy=copy)
    except (PlanMismatch, NothingToReplace) as problem:
        found = problem.structure if isinstance(problem, PlanMismatch) else ()
        raise ArtifactError(
            f"{directory} no longer fits its model: {type(source).__name__} has changed since it was transformed; "
            f"{_difference(structure, found)}transform it again"
        ) from problem
    refused = {part.path: part.refused_sizes for part in manifest.parts}
    for part in result.parts:
        # The example inputs are made anew, of the same shapes; the model itself may not run on their values.
        refuse_sizes_(part.graph_module, refused.get(part.path, ()))
    load_state(directory / WEIGHTS, result.module, state)
    return Artifact(directory, manifest, plan, result.module.eval(), result.args, result.kwargs, result)


def _may_trace_otherwise(manifest: Manifest, model: nn.Module) -> bool:
    """Whether a model may have another graph and be the same: where other versions trace the same code."""
    now = _versions()
    changed = {name for name in (*manifest.versions, *now) if manifest.versions.get(name) != now.get(name)}
    of_model = {type(module).__module__.partition(".")[0] for module in model.modules()} - {"torch"}
    return bool(changed) and not changed & of_model and manifest.code == code_of(model)


def _difference(before: Sequence[str], after: Sequence[str]) -> str:
    """The first line in which two structures differ, in words."""
    if not after:
        return ""
    at = next((i for i, pair in enumerate(zip_longest(before, after)) if pair[0] != pair[1]), None)
    if at is None:
        return ""
    was, now = (lines[at] if at < len(lines) else "nothing" for lines in (before, after))
    return f"what differs first: {now}, which was {was}; "


def _read(directory: Path) -> tuple[Manifest, Plan, dict[str, Tensor], list[str]]:
    """What the files of an artifact say, each of which is as it was written."""
    manifest = read_manifest(directory)
    while True:
        try:
            plan = Plan.from_json(_written(directory, manifest, PLAN).read_text())
            state = read_weights(_written(directory, manifest, WEIGHTS), manifest.aliases)
            structure = _written(directory, manifest, STRUCTURE).read_text().splitlines()
            _written(directory, manifest, GRAPH)
            return manifest, plan, state, structure
        except (ArtifactError, OSError) as problem:
            # Another process may have replaced the artifact between the first file and the last.
            again = read_manifest(directory)
            if again == manifest:
                if isinstance(problem, ArtifactError):
                    raise
                raise ArtifactError(f"{directory} cannot be read: {one_line(problem)}") from problem
            manifest = again
        except PlanMismatch as problem:
            raise ArtifactError(f"{directory} is damaged: {problem}; transform the model again") from problem


def _written(directory: Path, manifest: Manifest, name: str) -> Path:
    """Where a file lies, which is the one that was written.

    Raises:
        ArtifactError: the file is gone, or another.
    """
    known = manifest.files.get(name)
    if known is None:
        raise ArtifactError(f"{directory} is damaged: {MANIFEST} names no {name}; transform the model again")
    file = directory / known.at
    if not file.is_file():
        raise ArtifactError(f"{directory} is damaged: {name} is gone; copy the directory again, or transform it again")
    # Every value is a valid weight, and many a word a valid plan: nothing else would notice a flipped bit.
    if hash_file(file) != known.sha256:
        raise ArtifactError(
            f"{directory} is damaged: {name} is not the file that was written with {MANIFEST}; "
            "copy the directory again, or transform the model again"
        )
    return file


def _manifest(result: TransformResult, source: Source | None, aliases: dict[str, str]) -> Manifest:
    model = None
    if source is not None:
        model = Model(
            spec=source.absolute,
            options=Options(**source.options),
            kind=type(source.model).__name__,
            files={str(file): digest for file, digest in source.files.items()},
        )
    return Manifest(
        versions=_versions(),
        code=result.code,
        model=model,
        parts=tuple(_captured(part) for part in result.captured_parts.parts if part.path in result.plan.parts),
        eager=result.captured_parts.eager,
        inputs=Inputs.of(result.args, dict(result.kwargs)),
        aliases=aliases,
        parameters=sum(p.numel() for p in result.module.parameters()),
    )


def _captured(part: Part) -> Captured:
    info = part.graph_module.meta["capture"]
    return Captured(
        path=part.path,
        kind=info.model,
        rung=info.rung,
        dynamic=info.dynamic,
        inputs=Inputs.of(part.args, part.kwargs),
        refused_sizes=tuple(refused_sizes(part.graph_module)),
    )


def _applied(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plan: Plan,
    manifest: Manifest,
    *,
    copy: bool,
) -> TransformResult:
    if plan.parts == ("",):
        return transform(model, args, kwargs, plan=plan, copy=copy, check=False)
    device = device_of(model)
    calls = {part.path: to_device(part.inputs.make(), device) for part in manifest.parts}
    source = copy_model(model) if copy else model
    try:
        captured = capture_as_called(source, calls, {part.path: part.rung for part in manifest.parts})
    except (CaptureError, BadInput) as problem:
        raise PlanMismatch(str(problem)) from problem
    return rewrite(replace(captured, eager=manifest.eager), plan, args, kwargs, check=False)


def _source(
    directory: Path, manifest: Manifest, model: nn.Module | str | None, trusted: bool
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    if isinstance(model, nn.Module):
        return model, *manifest.inputs.make()
    known = manifest.model
    if known is None and model is None:
        raise ArtifactError(
            f"{directory} was saved from Python without a model spec; pass the model: load(directory, model=…)"
        )
    options = Options(input_shape=None, seed=0, options={}) if known is None else known.options
    if model is None and known is not None:
        _require_same_files(directory, known)
        trusted = _runs_code(directory, known, trusted)
        model = known.spec
    built = load_source(
        str(model),
        input_shape=options.input_shape,
        seed=options.seed,
        options=options.options,
        # The artifact has its own.
        weights=False,
        trust_remote_code=trusted,
    )
    return built.model, built.args, built.kwargs


def _require_same_files(directory: Path, model: Model) -> None:
    """Refuse to run a model file that an artifact names, unless it is the one that the artifact was made from.

    Raises:
        ArtifactError: a file is gone, another, or one that came with the artifact.
    """
    otherwise = f"to take another, name it: --model {model.spec} (load(directory, model=…))"
    name, is_file = model.spec, ":" not in model.spec or model.spec.partition(":")[0] not in ZOOS
    if is_file and not any(name == file or name.startswith(f"{file}:") for file in model.files):
        raise ArtifactError(f"{directory} names the model {name}, and no hash of that file; {otherwise}")
    for text, digest in model.files.items():
        file = Path(text)
        if not file.is_absolute():
            raise ArtifactError(f"{directory} names the model file {file}, which is no absolute path; {otherwise}")
        if file.resolve().is_relative_to(directory.resolve()):
            raise ArtifactError(f"{directory} names the model file {file}, which came with it; {otherwise}")
        if not file.is_file():
            raise ArtifactError(f"{directory} was made from {file}, which is gone; {otherwise}")
        if hash_file(file) != digest:
            raise ArtifactError(f"{file} changed since {directory} was made from it; {otherwise}")


def _runs_code(directory: Path, model: Model, trusted: bool) -> bool:
    """Whether a model of transformers is made of code beside its config: the code that the artifact has hashes of.

    Raises:
        ArtifactError: it is, without permission, or of other code too.
    """
    zoo, _, name = model.spec.partition(":")
    code = [file for file in model.files if file.endswith(".py")]
    if zoo != "hf" or not code:
        return False
    if not trusted:
        raise ArtifactError(
            f"{directory} was made from a model with code of its own ({code[0]}); to run it, add {TRUST}"
        )
    if other := [file for file in own_code(name) if str(file) not in model.files]:
        raise ArtifactError(f"{directory} names the model {model.spec}, and no hash of {other[0]}, which is part of it")
    return True


def _versions() -> dict[str, str]:
    found = {"torch": str(torch.__version__)}
    for package in ("repl-fx", "timm", "torchvision", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def parts_text(parts: Sequence[Part]) -> str:
    """The graphs of all parts as text, each under its path; a graph that is the whole model needs no heading."""
    texts = (f"# {part.path}\n" * bool(part.path) + graph_text(part.graph_module) for part in parts)
    return "\n".join(texts)


def graph_text(gm: fx.GraphModule) -> str:
    """A graph as text: a node a line with its shape, nothing that differs from run to run."""
    lines = []
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        shape = f"  {str(value.dtype).removeprefix('torch.')}{list(value.shape)}" if isinstance(value, Tensor) else ""
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        inputs = ", ".join(f.name for f in node.all_input_nodes)
        lines.append(f"{node.name} = {node.op} {target}({inputs}){shape}")
    return "\n".join(lines) + "\n"
