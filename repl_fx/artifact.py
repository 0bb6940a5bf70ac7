"""The artifact: a directory that a transform writes and every other command reads.

    manifest.json       schema and versions, how to build the model, example inputs, captured parts and what they were
                        called with, aliases of tied tensors, hashes
    plan.json           which blocks went and what stands in for each
    model.safetensors   parameters and buffers of the rewritten model
    graph.txt           the rewritten graph, to read and to compare

Nothing is pickled. `load` builds the model from its source, applies the plan again, and loads the weights; a model
whose structure no longer fits is an error. Of a model that was captured in parts, `load` captures the parts that the
plan rewrites, each on inputs like those it was called with; the model itself is not run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from repl_fx.errors import ArtifactError, BadInput, CaptureError, NothingToReplace, OutputError, PlanMismatch
from repl_fx.graph import copy_model
from repl_fx.part_search import Eager
from repl_fx.partial import Part, capture_as_called
from repl_fx.plan import Plan
from repl_fx.sources import Source, load_source
from repl_fx.sources.source import to_device
from repl_fx.tracing.size_questions import refuse_sizes_, refused_sizes
from repl_fx.tracing.untouched import device_of
from repl_fx.transform import TransformResult, rewrite, transform

SCHEMA = 1
MANIFEST, PLAN, WEIGHTS, GRAPH = "manifest.json", "plan.json", "model.safetensors", "graph.txt"


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact.

    Attributes:
        directory: where it lies.
        manifest: contents of manifest.json.
        plan: what was done to the model.
        module: the rewritten model with its weights.
        args, kwargs: example inputs.
        result: what applying the plan again gave: the graph before, its repeats and what became of each block.
    """

    directory: Path
    manifest: Mapping[str, Any]
    plan: Plan
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: TransformResult

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
        force: replace an artifact that is there.

    Returns:
        The directory.

    Raises:
        OutputError: the place is taken or cannot be written.
    """
    module = result.module
    tensors, aliases = _tensors(module)
    manifest = {
        "schema": SCHEMA,
        "kind": "repl-fx artifact",
        "versions": _versions(),
        "model": None
        if source is None
        else {"spec": str(_absolute(source)), "options": source.options, "class": type(source.model).__name__},
        "parts": [_describe_part(part) for part in result.captured_parts.parts if part.path in result.plan.parts],
        "eager": [asdict(eager) for eager in result.captured_parts.eager],
        "fingerprint": result.plan.fingerprint,
        "source_weights": hash_weights(result.captured_parts.module),
        "inputs": {"args": _describe(result.args), "kwargs": _describe(dict(result.kwargs))},
        "aliases": aliases,
        "parameters": sum(p.numel() for p in module.parameters()),
    }
    with writing(directory, force=force) as place:
        (place / PLAN).write_text(result.plan.to_json() + "\n")
        (place / GRAPH).write_text(parts_text(result.parts))
        save_file(tensors, place / WEIGHTS, metadata={"format": "pt"})
        # safetensors makes files that only their owner can read.
        (place / WEIGHTS).chmod(0o666 & ~_umask())
        manifest["weights"] = _hash_file(place / WEIGHTS)
        (place / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return Path(directory)


def load(directory: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load the rewritten model of an artifact.

    Args:
        directory: the artifact.
        model: the source model, for artifacts that were saved without a source; its weights do not matter.

    Returns:
        The module, in evaluation mode: a graph module where the whole model is one graph.

    Raises:
        ArtifactError: no artifact, a damaged or foreign one, or one that no longer fits its model.
    """
    return load_artifact(directory, model).module


def load_artifact(directory: str | Path, model: nn.Module | None = None) -> Artifact:
    """Load an artifact with its plan and example inputs; see `load`."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    try:
        plan = Plan.from_json(_read(directory / PLAN))
        state = load_file(directory / WEIGHTS)
        # Every value is a valid weight, so nothing else would notice a flipped bit.
        if manifest["weights"] != _hash_file(directory / WEIGHTS):
            raise ArtifactError(
                f"{directory} is damaged: {WEIGHTS} is not the file that was written with {MANIFEST}; "
                "copy the directory again, or transform the model again"
            )
    except (SafetensorError, PlanMismatch, OSError) as problem:
        raise ArtifactError(f"{directory} is damaged: {_first_line(problem)}; transform the model again") from problem
    source, args, kwargs = _source(directory, manifest, model)
    # Another version of torch may trace the same model to another graph; then names and shapes must do.
    applied = plan if manifest["versions"] == _versions() else replace(plan, fingerprint="")
    try:
        result = _applied(source, args, kwargs, applied, manifest, copy=model is not None)
    except (PlanMismatch, NothingToReplace) as problem:
        raise ArtifactError(
            f"{directory} no longer fits its model: the structure of {type(source).__name__} has changed since it was "
            "transformed; transform it again"
        ) from problem
    refused = {part["path"]: part.get("refused_sizes") for part in manifest["parts"]}
    for part in result.parts:
        if refused.get(part.path) is not None:
            # The example inputs are made anew, of the same shapes; the model itself may not run on their values.
            refuse_sizes_(part.graph_module, {(name, dim) for name, dim in refused[part.path]})
    for alias, name in manifest["aliases"].items():
        if name in state:
            state[alias] = state[name]
    _load_state(directory, result.module, state)
    return Artifact(directory, manifest, plan, result.module.eval(), result.args, result.kwargs, result)


def _applied(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plan: Plan,
    manifest: Mapping[str, Any],
    *,
    copy: bool,
) -> TransformResult:
    if plan.parts == ("",):
        return transform(model, args, kwargs, plan=plan, copy=copy, check=False)
    described = {part["path"]: part for part in manifest["parts"]}
    device = device_of(model)
    calls = {
        path: tuple(to_device(_make(part[side]), device) for side in ("args", "kwargs"))
        for path, part in described.items()
    }
    source = copy_model(model) if copy else model
    try:
        captured = capture_as_called(source, calls, {path: part["rung"] for path, part in described.items()})
    except (CaptureError, BadInput) as problem:
        raise PlanMismatch(str(problem)) from problem
    eager = tuple(Eager(**eager) for eager in manifest["eager"])
    return rewrite(replace(captured, eager=eager), plan, args, kwargs, check=False)


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """Read and check manifest.json.

    Raises:
        ArtifactError: no such directory, not an artifact, damaged, or from a newer version.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is no directory; give the directory a transform wrote")
    if not (directory / MANIFEST).is_file():
        raise ArtifactError(f"{directory} is no artifact: it has no {MANIFEST}; give the directory a transform wrote")
    try:
        manifest = json.loads(_read(directory / MANIFEST))
        schema, kind = manifest["schema"], manifest["kind"]
    except (ValueError, KeyError, TypeError) as problem:
        raise ArtifactError(
            f"{directory / MANIFEST} is damaged or of another program: {_first_line(problem)}"
        ) from problem
    if kind != "repl-fx artifact":
        raise ArtifactError(f"{directory} was written by another program ({kind})")
    if schema != SCHEMA:
        raise ArtifactError(f"{directory} has schema {schema}, this version reads {SCHEMA}; install a matching repl-fx")
    missing = {"versions", "model", "inputs", "aliases", "fingerprint", "parts", "eager", "weights"} - manifest.keys()
    if missing:
        raise ArtifactError(f"{directory / MANIFEST} is damaged: it lacks {', '.join(sorted(missing))}")
    return dict(manifest)


@contextmanager
def writing(directory: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary directory beside `directory` that takes its name when the block ends without an error.

    Raises:
        OutputError: the place is a file, is not empty (without `force`), or cannot be written.
    """
    target = Path(directory)
    require_free(target, force=force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as problem:
        raise OutputError(
            f"cannot write {target}: {problem.strerror or problem}; choose another place with -o"
        ) from problem
    try:
        yield place
        # mkdtemp makes a directory only its owner can read.
        place.chmod(0o777 & ~_umask())
        if target.exists():
            shutil.rmtree(target)
        place.rename(target)
    except (OSError, SafetensorError) as problem:
        raise OutputError(
            f"cannot write {target}: {_first_line(problem)}; free some space or choose another place"
        ) from problem
    finally:
        shutil.rmtree(place, ignore_errors=True)


def require_free(directory: str | Path, *, force: bool) -> None:
    """Refuse a place that is taken, before any work is done.

    Raises:
        OutputError: it is a file, or a directory that is not empty, or not an artifact where `force` would replace it.
    """
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file; give a directory with -o")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not force:
        raise OutputError(f"{target} is not empty; choose another place with -o, or replace it with --force")
    if not (target / MANIFEST).is_file():
        raise OutputError(f"{target} is not empty and no artifact; --force replaces artifacts only")


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


def parts_text(parts: Sequence[Part]) -> str:
    """The graphs of all parts as text, each under its path; a graph that is the whole model needs no heading."""
    texts = (f"# {part.path}\n" * bool(part.path) + graph_text(part.graph_module) for part in parts)
    return "\n".join(texts)


def hash_weights(module: nn.Module) -> str:
    """A hash of all parameters and buffers that are saved."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if not tensor.is_meta:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(gm: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state to save, each tensor once, and the other names of tied ones."""
    known: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in gm.state_dict(keep_vars=True).items():
        if tensor.is_meta:
            raise OutputError(f"{name} is on the meta device and has no values to save; materialise the model first")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if key in known:
            aliases[name] = known[key]
            continue
        known[key] = name
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors, aliases


def _load_state(directory: Path, gm: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = gm.state_dict(keep_vars=True)
    missing, foreign = own.keys() - state.keys(), state.keys() - own.keys()
    if missing or foreign:
        words = [
            f"{len(m)} tensors {w}, e.g. {min(m)}" for m, w in ((missing, "are missing"), (foreign, "are foreign")) if m
        ]
        raise ArtifactError(f"{directory / WEIGHTS} does not fit its model: {'; '.join(words)}; transform it again")
    for name, tensor in own.items():
        if tuple(tensor.shape) != tuple(state[name].shape) or tensor.dtype != state[name].dtype:
            found, wanted = (f"{t.dtype!s}{list(t.shape)}" for t in (state[name], tensor))
            raise ArtifactError(
                f"{directory / WEIGHTS} does not fit its model: {name} is {found}, the model has {wanted}"
            )
    gm.load_state_dict(dict(state))


def _source(
    directory: Path, manifest: Mapping[str, Any], model: nn.Module | None
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    if model is not None:
        args, kwargs = (_make(manifest["inputs"][side]) for side in ("args", "kwargs"))
        return model, tuple(args), dict(kwargs)
    if manifest["model"] is None:
        raise ArtifactError(
            f"{directory} was saved from Python without a model spec; pass the model: load(directory, model=…)"
        )
    built = load_source(manifest["model"]["spec"], **manifest["model"]["options"])
    return built.model, built.args, built.kwargs


def _describe_part(part: Part) -> dict[str, Any]:
    info = part.graph_module.meta["capture"]
    inputs = {"args": _describe(part.args), "kwargs": _describe(dict(part.kwargs))}
    made = {"path": part.path, "class": info.model, "rung": info.rung, "dynamic": info.dynamic, **inputs}
    return {**made, "refused_sizes": refused_sizes(part.graph_module)}


def _hash_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _absolute(source: Source) -> str:
    """The spec with the path of a model file made absolute: the artifact is read from other directories."""
    if not source.files:
        return source.spec
    factory = source.spec.rpartition(":")[2] if ":" in Path(source.spec).name else ""
    return f"{source.files[0].resolve()}{':' + factory if factory else ''}"


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"torch": str(torch.__version__)}
    for package in ("repl-fx", "timm", "torchvision", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _describe(value: Any) -> Any:
    """Example inputs as plain data: shapes, dtypes and, for integers, the range."""
    if isinstance(value, Tensor):
        whole = not value.is_floating_point() and not value.is_complex() and value.numel() > 0 and not value.is_meta
        return {
            "tensor": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "range": [int(value.min()), int(value.max())] if whole else None,
        }
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        kind = {"module": type(value).__module__, "name": type(value).__qualname__}
        return {"named": [[name, _describe(item)] for name, item in zip(value._fields, value, strict=True)], **kind}
    if isinstance(value, tuple):
        return [_describe(item) for item in value]
    if isinstance(value, list):
        return {"list": [_describe(item) for item in value]}
    if isinstance(value, OrderedDict):
        return {"ordered": [[name, _describe(item)] for name, item in value.items()]}
    if isinstance(value, dict):
        return {"dict": {name: _describe(item) for name, item in value.items()}}
    if isinstance(value, (torch.dtype, torch.device)):
        return {"torch": type(value).__name__, "name": str(value).removeprefix("torch.")}
    return {"constant": value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)}


def _make(description: Any) -> Any:
    """Inputs of a kind that `_describe` described."""
    if isinstance(description, list):
        return tuple(_make(item) for item in description)
    if "named" in description:
        fields = {name: _make(item) for name, item in description["named"]}
        return _named_tuple(description["module"], description["name"], tuple(fields))(**fields)
    if "list" in description:
        return [_make(item) for item in description["list"]]
    if "ordered" in description:
        return OrderedDict((name, _make(item)) for name, item in description["ordered"])
    if "dict" in description:
        return {name: _make(item) for name, item in description["dict"].items()}
    if "torch" in description:
        name = description["name"]
        return torch.device(name) if description["torch"] == "device" else getattr(torch, name)
    if "constant" in description:
        return description["constant"]
    dtype = getattr(torch, description["dtype"])
    generator = torch.Generator().manual_seed(0)
    if description["range"] is None:
        return torch.randn(description["tensor"], generator=generator).to(dtype)
    low, high = description["range"]
    return torch.randint(low, high + 1, description["tensor"], generator=generator).to(dtype)


def _named_tuple(module: str, name: str, fields: tuple[str, ...]) -> type[Any]:
    """The class of a named tuple where its module is loaded, else one like it: an artifact imports nothing."""
    found: Any = sys.modules.get(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    if isinstance(found, type) and getattr(found, "_fields", None) == fields:
        return found
    return namedtuple(name.rpartition(".")[2], fields)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise ArtifactError(f"{path} cannot be read: {_first_line(problem)}") from problem


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).splitlines()), type(problem).__name__)


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask
