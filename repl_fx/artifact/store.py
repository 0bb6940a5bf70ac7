"""`save` and `load`: a result of `transform` to a directory, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, fx, nn

from repl_fx.arguments import require_kind, require_module, require_path
from repl_fx.artifact.changing import DirectoryChange, changing
from repl_fx.artifact.manifest import MANIFEST, Manifest, read_manifest
from repl_fx.artifact.model_code import build_source
from repl_fx.artifact.places import SCORES
from repl_fx.artifact.provenance import (
    first_difference,
    model_of,
    require_as_made,
    versions,
    weights_of,
    with_origin,
)
from repl_fx.artifact.tensor_files import State, as_captured, load_state, read_state, write_state
from repl_fx.display.progress import shown, tell
from repl_fx.errors import ArtifactError, BadInput, CaptureError, NothingToReplace, OutputError, PlanMismatch, one_line
from repl_fx.graph.captured import copy_model
from repl_fx.graph.kinds import kind_of
from repl_fx.graph.state import named_tensors, parameter_count
from repl_fx.passes.driver import run_passes
from repl_fx.pipeline import rewrite_again
from repl_fx.plan import Plan
from repl_fx.planning.written_options import read_scores
from repl_fx.rewriting.in_place.assembling import InPlace, parted_in
from repl_fx.rewriting.in_place.pretrained import with_own_names
from repl_fx.rewriting.in_place.surrogate_block import surrogate_graphs
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.alone import alone
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.holders import ORIGIN
from repl_fx.running.opaque_outputs import equal_leaves
from repl_fx.running.source_mark import packages_of
from repl_fx.running.untouched import device_of
from repl_fx.sources import Source
from repl_fx.sources.source import hash_file
from repl_fx.tracing.fingerprint import code_of, fingerprint
from repl_fx.tracing.model_checks import describe_inputs, require_capturable, require_original
from repl_fx.tracing.parts.capture_parts import CapturedParts, capture_as_called, capture_parts
from repl_fx.tracing.parts.inputs import Inputs
from repl_fx.tracing.parts.origin import Origin
from repl_fx.tracing.parts.stored import constants_in, read_data
from repl_fx.tracing.size_questions import refuse_sizes_

PLAN, GRAPH, STRUCTURE, CAPTURED = "plan.json", "graph.txt", "source.txt", "captured.json"
WEIGHTS, CONSTANTS = "model.safetensors", "constants.safetensors"
# A `from_pretrained` would take a file of the name above, and make the weights of replaced blocks anew.
OWN_WEIGHTS = "repl-fx.safetensors"


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact.

    Attributes:
        manifest: the content of manifest.json.
        plan: the plan that was applied to the model.
        module: the rewritten model with its weights, in graphs.
        state: the weights, under the names that they were saved with.
        result: of applying the plan again: the graph before, its repeats and what became of each block.
    """

    directory: Path
    manifest: Manifest
    plan: Plan
    module: nn.Module
    state: State
    result: TransformResult

    own_files = (PLAN, WEIGHTS, OWN_WEIGHTS, CONSTANTS, GRAPH, STRUCTURE, CAPTURED, SCORES)

    def manifest_now(self) -> Manifest:
        """The manifest of the directory, to which other processes may have added files since, with the model as read.

        Raises:
            OutputError: its model is another one since.
        """
        now = read_manifest(self.directory)
        own = [
            {name: file.sha256 for name, file in one.files.items() if name in self.own_files}
            for one in (self.manifest, now)
        ]
        if own[0] != own[1]:
            raise OutputError(f"{self.directory} holds another model than was read from it; start again")
        # Its model may have been named at another place.
        return msgspec.structs.replace(now, model=self.manifest.model)

    @property
    def inputs(self) -> ExampleInputs:
        """The example inputs."""
        return self.result.inputs

    @cached_property
    def model(self) -> nn.Module:
        """The model in place, with the weights; `module` where a replaced block has no place in the source's tree."""
        in_place = self.result.in_place
        if in_place.model is None:
            return self.module
        model, state = in_place.model, self.state
        load_state(model, state if self.manifest.in_place else state.renamed(in_place.prefixes))
        of_graph, placed = vars(self.module)[ORIGIN], vars(model)[ORIGIN]
        vars(model)[ORIGIN] = msgspec.structs.replace(
            of_graph, in_place=True, made=placed.made, by_graph=placed.by_graph
        )
        return model.eval()

    @property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten model, where the whole model is one graph."""
        return self.result.graph_module


def save(
    model: TransformResult | nn.Module, directory: str | Path, *, source: Source | None = None, force: bool = False
) -> Path:
    """Write an artifact; all of it or nothing.

    Args:
        model: from `transform`, or its model, or a module from `load`, which keeps its model's specification, options
            and example inputs. Weights are saved as they are now, so training in between is kept.
        directory: where to; it must be absent or empty.
        source: how to build the model again; without it, an artifact from `transform` needs the model itself at `load`.
        force: replace the artifact that is there. Files of others in its directory stay.

    Returns:
        The directory.

    Raises:
        BadInput: a module that is from neither, or whose graph or settings were changed since.
        OutputError: the place is taken or cannot be written.
    """
    module, origin = with_origin(model)
    if source is not None:
        require_kind(source, Source, "save takes for source what repl_fx.sources.load_source returned")
        origin = msgspec.structs.replace(origin, model=model_of(source, weights_of(source)))
    require_as_made(module, origin)
    with changing(directory, force=force) as change:
        weights = OWN_WEIGHTS if origin.pretrained else WEIGHTS
        aliases = write_state(module, change.place / weights, change.place / CONSTANTS)
        if origin.model is not None and origin.model.is_beside:
            # The config stays where it is.
            origin = msgspec.structs.replace(origin, model=None)
        write_rest(change, module, origin, aliases)
    return Path(directory)


def write_rest(change: DirectoryChange, module: nn.Module, origin: Origin, aliases: Mapping[str, str]) -> None:
    """Write what an artifact is made of besides tensors, and make the files that lie in the change those of it.

    Args:
        aliases: see `Manifest`.
    """
    (change.place / PLAN).write_text(origin.plan.to_json() + "\n")
    (change.place / GRAPH).write_text(_graphs_text(module, origin))
    (change.place / STRUCTURE).write_text("".join(f"{line}\n" for line in origin.structure))
    if origin.captured:
        (change.place / CAPTURED).write_text(origin.captured)
    if origin.scores:
        (change.place / SCORES).write_text(json.dumps(dict(origin.scores), indent=2, allow_nan=False) + "\n")
    known = {"parameters": parameter_count(module), **origin.described()}
    change.commit(Manifest(versions=versions(), aliases=dict(aliases), **known))


@shown("load")
@alone()
def load(
    directory: str | Path,
    model: nn.Module | str | None = None,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    graph: bool = False,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Load the rewritten model of an artifact; `save` takes it again.

    Args:
        directory: the artifact.
        model: the source model, for artifacts that were saved without a source; its weights do not matter. Or a
            specification of it (`repl_fx.sources`), for artifacts whose model file is elsewhere now, or another.
        args, kwargs: example inputs, in place of inputs like those that the artifact describes.
        graph: give the model in its graphs, also where it could be in place.
        trust_remote_code: let code run that lies in the directory of an `hf:` model; see `load_source`.

    Returns:
        The model, in evaluation mode, whichever form was saved: of the source's class, in place, where each replaced
        block has a place in it; else a graph module, or a module with graphs in it.

    Raises:
        ArtifactError: no artifact, a damaged or foreign one, one whose model file is not the one it was made from, or
            one that no longer fits its model.
    """
    given: Any = {"args": args, "kwargs": kwargs, "graph": graph, "trust_remote_code": trust_remote_code}
    return load_artifact(directory, model, **given).model


@shown("load")
@alone()
def load_artifact(
    directory: str | Path,
    model: nn.Module | str | None = None,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    graph: bool = False,
    trust_remote_code: bool = False,
) -> Artifact:
    """Load an artifact with its plan and example inputs; see `load`."""
    require_path(directory, "the directory of an artifact")
    if model is not None and not isinstance(model, str):
        require_module("load", model, name="model")
        require_original(model)
    given = None if args is None and kwargs is None else ExampleInputs.of(() if args is None else args, kwargs)
    tell("read the files")
    files = _read(Path(directory))
    tell("build the model")
    source = build_source(files.directory, files.manifest, model, trust_remote_code)
    if isinstance(source, Source):
        # It was built without weights, which are the artifact's own.
        weights = None if files.manifest.model is None else files.manifest.model.weights
        files = replace(files, manifest=msgspec.structs.replace(files.manifest, model=model_of(source, weights)))
        built, known = source.model, source.inputs
    else:
        built, known = source, None
    inputs = given or known or files.manifest.inputs.make()
    applying = _Applying(**vars(files), inputs=inputs, as_called=given is None, copy=source is built)
    result, manifest = applying.again(built), files.manifest
    result = replace(result, checkpoint_blocks=manifest.checkpoint_blocks, scores=files.scores)
    refused = {part.path: part.refused_sizes for part in manifest.parts}
    for part in result.parts:
        # The example inputs are made anew, of the same shapes; the model itself may not run on their values.
        run_passes(part.graph_module, partial(refuse_sizes_, refused=refused.get(part.path, ())))
    state = files.state_for(result)
    as_applied = replace(files.plan, fingerprint=fingerprint(result.structure))
    # An attribute like any other, so that copies have it too.
    known_now = {**manifest.described(), "plan": as_applied, "in_place": False}
    vars(result.module)[ORIGIN] = msgspec.structs.replace(result.origin_of(result.module), **known_now)
    asked = replace(result, graph=True) if graph else result
    return Artifact(files.directory, manifest, as_applied, result.module.eval(), state, asked)


@dataclass(frozen=True)
class _Files:
    """The files of an artifact, each of which is as it was written.

    Attributes:
        structure: a description of the captured graphs, as lines.
        captured: the graphs themselves, as text; empty where they are not kept.
    """

    directory: Path
    manifest: Manifest
    plan: Plan
    state: State
    structure: list[str]
    scores: dict[str, float]
    captured: str

    def state_for(self, result: TransformResult) -> State:
        """The weights under the names that they were saved with; the graphs of the result get them here."""
        state = of_graphs = self.state
        # A model in place that is not made yet is made of the source.
        in_place = InPlace(result.captured_parts.source)
        if self.manifest.in_place:
            in_place = result.in_place
            if in_place.model is not None:
                state = replace(state, weights=with_own_names(in_place.model, state.weights))
            of_graphs = state.renamed({now: was for was, now in in_place.prefixes.items()})
            read = named_tensors(result.module)
            while parted := parted_in(result.module, of_graphs.weights):
                ours, theirs = (of_graphs.weights[name] for name in parted)
                # `.to()` gave each module that shares a buffer its own.
                if not isinstance(read[parted[0]], nn.Parameter) and equal_leaves(ours, theirs):
                    state, of_graphs = (one.tied(theirs, ours) for one in (state, of_graphs))
                    continue
                raise ArtifactError(
                    f"{self.directory} does not fit its model, whose graph reads {' and '.join(parted)} as one tensor, "
                    "and they are two in the file; transform a model that does not tie them"
                )
            # A model in place has in its own code what is a constant of the graph.
            own = {name: tensor for name, tensor in constants_in(self.captured).items() if name in read}
            of_graphs = replace(of_graphs, constants={**of_graphs.constants, **own})
        load_state(result.module, of_graphs)
        in_place.take_(result.rewritten)
        return state


def _read(directory: Path) -> _Files:
    """Read the files of an artifact."""
    manifest = read_manifest(directory)
    while True:
        try:
            plan = Plan.from_json(written_file(directory, manifest, PLAN).read_text())
            state = read_state(*written_weights(directory, manifest), manifest.aliases)
            structure = written_file(directory, manifest, STRUCTURE).read_text().splitlines()
            written_file(directory, manifest, GRAPH)
            scores = read_scores(written_file(directory, manifest, SCORES)) if SCORES in manifest.files else {}
            captured = written_file(directory, manifest, CAPTURED).read_text() if CAPTURED in manifest.files else ""
            return _Files(directory, manifest, plan, state, structure, scores, captured)
        except (ArtifactError, OSError) as problem:
            # Another process may have replaced the artifact between the first file and the last.
            again = read_manifest(directory)
            if again == manifest:
                if isinstance(problem, ArtifactError):
                    raise
                raise ArtifactError(f"{directory} cannot be read: {one_line(problem)}") from problem
            manifest = again
        except (PlanMismatch, BadInput) as problem:
            raise ArtifactError(f"{directory} is damaged: {problem}; transform the model again") from problem


@contextmanager
def adding(artifact: Artifact | None, *names: str) -> Iterator[Path | None]:
    """A place to write files to that an artifact gets beside its own; None without an artifact.

    Raises:
        OutputError: see `changing`; before anything is done.
    """
    if artifact is None:
        yield None
        return
    with changing(artifact.directory) as change:
        manifest = artifact.manifest_now()
        change.require_own(names)
        yield change.place
        change.commit(manifest, keep=manifest.files.keys())


def written_weights(directory: Path, manifest: Manifest) -> tuple[Path, Path]:
    """The files of the weights and of the constants; see `written_file`."""
    weights = OWN_WEIGHTS if OWN_WEIGHTS in manifest.files else WEIGHTS
    return written_file(directory, manifest, weights), written_file(directory, manifest, CONSTANTS)


def written_file(directory: Path, manifest: Manifest, name: str) -> Path:
    """The file that the manifest means by a name.

    Raises:
        ArtifactError: there is none, or it is not the one that was written.
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


@dataclass(frozen=True)
class _Applying(_Files):
    """The files of an artifact, whose plan is to be applied to its model again.

    Attributes:
        inputs: the example inputs of the model.
        as_called: whether these are those of the artifact, so that its parts are called with theirs.
        copy: whether the model is the user's, and keeps its own tensors.
    """

    inputs: ExampleInputs
    as_called: bool
    copy: bool

    @property
    def whole(self) -> bool:
        """Tell whether the model is one graph."""
        return self.plan.parts == ("",)

    def source(self, model: nn.Module) -> nn.Module:
        """The model whose tensors the result shares."""
        return copy_model(model) if self.copy else model

    def calls(self, model: nn.Module) -> dict[str, ExampleInputs]:
        """Inputs like those that each part was called with."""
        device, parts = device_of(model), self.manifest.parts
        return {part.path: part.inputs.make().map(lambda tensor: tensor.to(device)) for part in parts}

    def again(self, model: nn.Module) -> TransformResult:
        """The plan applied to a model: to the graphs that the artifact holds, or to those of a new trace.

        Raises:
            ArtifactError: the model is another one now, or the graphs are none that were written.
        """
        try:
            return self.fitting(model)
        except (PlanMismatch, NothingToReplace) as problem:
            found = problem.structure if isinstance(problem, PlanMismatch) else ()
            differs = first_difference(self.structure, found) if found else ""
            changed, advice = self.changed(type(model).__name__)
            raise ArtifactError(
                f"{self.directory} no longer fits its model: {changed}; "
                f"{f'what differs first: {differs}; ' * bool(differs)}{advice}transform it again"
            ) from problem

    def changed(self, model: str) -> tuple[str, str]:
        """Say whether the model or its example inputs changed since the artifact was made, with advice on these."""
        now = describe_inputs(self.inputs)
        try:
            was = describe_inputs(self.manifest.inputs.make())
        except ArtifactError:
            # Nothing is known of them.
            was = now
        # Of another batch is no other kind.
        if re.sub(r"\[\d+", "[", was) == re.sub(r"\[\d+", "[", now):
            return f"{model} has changed since it was transformed (what a run leaves in it counts)", ""
        return f"its example inputs were ({was}) and are ({now})", "give inputs as they were, or "

    def may_trace_otherwise(self, model: nn.Module) -> bool:
        """Tell whether a model may have another graph and be the same: where other versions trace the same code."""
        was, now = self.manifest.versions, versions()
        changed = {name for name in (*was, *now) if was.get(name) != now.get(name)}
        return bool(changed) and not changed & packages_of(model) and self.manifest.code == code_of(model)

    def to(self, captured: CapturedParts) -> TransformResult:
        """The plan applied to graphs; one that replaces nothing is of blocks that were made whole again in training."""
        return rewrite_again(captured, self.plan, check=False, required=bool(self.plan.replacements))

    def fitting(self, model: nn.Module) -> TransformResult:
        """The plan applied to a model as it is, as it was, or as other versions of libraries trace it."""
        try:
            return self.stored(model) or self.traced(model)
        except (PlanMismatch, CaptureError) as problem:
            if (remade := as_captured(model, self.structure, self.state)) is not None:
                return self.traced(remade)
            if isinstance(problem, PlanMismatch) and problem.structure and self.may_trace_otherwise(model):
                return replace(self, plan=replace(self.plan, fingerprint="")).traced(model)
            raise

    def traced(self, model: nn.Module) -> TransformResult:
        """The plan applied to a model, which is captured anew."""
        manifest = self.manifest
        if self.whole or not self.as_called or not self.plan.replacements:
            require_capturable(model, self.inputs)
            of_model: Any = {"copy": self.copy, "paths": self.plan.parts, "fixed": manifest.fixed}
            return self.to(capture_parts(model, self.inputs.args, self.inputs.kwargs, **of_model))
        calls, tracers = self.calls(model), {part.path: part.tracer for part in manifest.parts}
        try:
            captured = capture_as_called(self.source(model), self.inputs, calls, tracers, manifest.fixed)
        except (CaptureError, BadInput) as problem:
            raise PlanMismatch(str(problem)) from problem
        return self.to(replace(captured, eager=manifest.eager))

    def stored(self, model: nn.Module) -> TransformResult | None:
        """The plan applied to the graphs that the artifact holds; None where the model has to be traced.

        Raises:
            ArtifactError: the graphs are none that were written.
        """
        manifest, inputs = self.manifest, self.inputs
        if not self.captured or not (self.whole or self.as_called):
            return None
        if self.whole:
            given = _as_they_were(inputs, manifest.inputs)
            if given is None:
                return None
            require_capturable(model, given)
            calls, inputs = {"": given}, given
        else:
            calls = self.calls(model)
        try:
            captured = read_data(self.captured, self.source(model), inputs, calls, manifest.fixed)
        except ValueError as problem:
            raise ArtifactError(
                f"{self.directory} is damaged: {CAPTURED}: {one_line(problem)}; transform the model again"
            ) from problem
        # A trace has the last word, and says what differs.
        with suppress(PlanMismatch):
            if captured is not None:
                made = self.to(replace(captured, eager=manifest.eager))
                # Under other versions the source's own code may compute otherwise.
                same = manifest.in_place or manifest.versions == versions()
                return replace(made, by_graph=manifest.by_graph if same else None)
        return None


def _as_they_were(inputs: ExampleInputs, described: Inputs) -> ExampleInputs | None:
    """Example inputs of the shapes and constants that were described, of twice the batch where need be; else None."""

    def words(known: Inputs) -> str:
        # Values of tensors leave no trace.
        return re.sub(r'"range":(null|\[[^]]*\])', "", msgspec.json.encode(known).decode())

    wanted = words(described)
    if '"kind":"opaque"' in wanted:
        return None
    wider = inputs.map(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor)
    return next((one for one in (inputs, wider) if words(Inputs.of(one)) == wanted), None)


def _graphs_text(module: nn.Module, origin: Origin) -> str:
    """The graphs of a rewritten module as text: those of its parts, or those of its surrogates in place."""
    if origin.in_place:
        graphs = surrogate_graphs(module)
    else:
        parts = ((path, module.get_submodule(path)) for path in origin.plan.parts)
        graphs = {path: gm.graph for path, gm in parts if isinstance(gm, fx.GraphModule)}
    # A graph that is the whole model needs no heading.
    return "\n".join(f"# {path}\n" * bool(path) + text_of(graph) for path, graph in graphs.items())


def text_of(graph: fx.Graph) -> str:
    """A graph as text: a node a line with its shape, nothing that differs from run to run."""
    lines = []
    for node in graph.nodes:
        value = node.meta.get("val")
        shape = f"  {kind_of(value)}" if isinstance(value, Tensor) else ""
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        inputs = ", ".join(f.name for f in node.all_input_nodes)
        lines.append(f"{node.name} = {node.op} {target}({inputs}){shape}")
    return "\n".join(lines) + "\n"
