"""A capture as JSON, and back without a trace.

    CapturedParts -> for each part: the mark of its source, how it was captured, graph, switches, constants

What a graph shares with its source (layers, parameters, buffers) is not written: it is taken from the model, whose
source has to have the mark that the part's had (`repl_fx.running.source_mark`). Where it has another, or the graph is
asked about a setting of torch that is another one now, there is nothing for it but to trace.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import msgspec
import torch
from torch import Tensor, fx, nn

from repl_fx.graph.captured import AlikeGraphModule, CapturedModule, has_attribute, is_traced_constant, traced_constant
from repl_fx.graph.kinds import dtype_name, of_torch
from repl_fx.graph.plain import NotPlain, Reader, Writer
from repl_fx.graph.runtime import SETTINGS, ModeSwitch, check_setting
from repl_fx.passes.follow_device import ANCHOR
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.holders import bytes_of
from repl_fx.running.source_mark import SourceMark, packages_of, source_mark
from repl_fx.running.untouched import device_of
from repl_fx.tracing.capture import CaptureInfo, captured_module, module_tree
from repl_fx.tracing.parts.capture_parts import CapturedParts, Part, assemble, qualified_name
from repl_fx.tracing.parts.search import keep_attributes

# What reading raises where something else was written.
_FOREIGN = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, SyntaxError, msgspec.MsgspecError)


class _StrictData(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the data; a field that it does not know is an error."""


class _HeldTensor(_StrictData, frozen=True):
    """A tensor that the code of a model itself holds; `values` are its bytes."""

    dtype: str
    shape: tuple[int, ...]
    values: bytes


class _Switch(_StrictData, frozen=True):
    """A stretch of which both modes have their own version: the nodes of each."""

    path: str
    when_training: list[Any]
    when_evaluating: list[Any]


class _StoredPart(_StrictData, frozen=True):
    """A captured part; `pinned` is of `CapturedModule`, `info` of `CaptureInfo`."""

    path: str
    mark: str
    info: dict[str, Any]
    pinned: dict[str, bool]
    constants: tuple[_HeldTensor, ...]
    follows_device: bool
    switches: tuple[_Switch, ...]
    nodes: list[Any]


class _Capture(_StrictData, frozen=True):
    """The parts, and what their graphs have in common; see `Writer`."""

    parts: tuple[_StoredPart, ...]
    tables: dict[str, Any]


def as_data(captured: CapturedParts, paths: Collection[str]) -> str:
    """The parts at some paths as text; empty where one of them cannot be told in plain data."""
    writer = Writer(packages_of(captured.source))
    try:
        written = tuple(
            _written(part, captured.source.get_submodule(part.path), writer)
            for part in captured.parts
            if part.path in paths
        )
    except NotPlain:
        return ""
    return msgspec.json.encode(_Capture(written, writer.tables)).decode()


def _written(part: Part, source: nn.Module, writer: Writer) -> _StoredPart:
    gm = part.graph_module
    info: CaptureInfo = gm.meta["capture"]
    if not info.mark:
        raise NotPlain("a source without a mark")
    constants: list[_HeldTensor] = []
    for name, buffer in gm.named_buffers(remove_duplicate=False):
        if is_traced_constant(name):
            if name != traced_constant(len(constants)) or type(buffer) is not Tensor or buffer.is_meta:
                raise NotPlain(f"the constant {name}")
            constants.append(_HeldTensor(dtype_name(buffer.dtype), tuple(buffer.shape), bytes_of(buffer)))
    switches = []
    for at, module in gm.named_modules():
        if isinstance(module, ModeSwitch):
            versions = (writer.graph(one.graph) for one in (module.when_training, module.when_evaluating))
            switches.append(_Switch(at, *versions))
    follows = ANCHOR in gm._buffers
    made = {*map(traced_constant, range(len(constants))), *([ANCHOR] if follows else [])}
    if other := next(_others(gm, source, made, {switch.path for switch in switches}), None):
        raise NotPlain(f"{other}, which the source has not")
    named = asdict(info)
    mark = named.pop("mark")
    nodes = writer.graph(gm.graph)
    return _StoredPart(part.path, mark, named, gm.meta["pinned"], tuple(constants), follows, tuple(switches), nodes)


def _others(gm: fx.GraphModule, source: nn.Module, made: Collection[str], switches: Collection[str]) -> Iterator[str]:
    """The tensors and modules of a graph that neither the source has nor the capture made."""
    tensors = {name for name, _ in (*source.named_parameters(remove_duplicate=False), *source.named_buffers())}
    for name, _ in (*gm.named_parameters(), *gm.named_buffers()):
        if name not in tensors and name not in made:
            yield name
    for path, _ in gm.named_modules():
        switched = any(path == switch or path.startswith(f"{switch}.") for switch in switches)
        if path and not switched and not has_attribute(source, path):
            yield path


def read_data(
    text: str, model: nn.Module, inputs: ExampleInputs, calls: Mapping[str, ExampleInputs], fixed: tuple[str, ...] = ()
) -> CapturedParts | None:
    """The capture of a model that was written as text; None where the model has to be traced.

    Args:
        model: a model of the same source; the graphs share its tensors.
        inputs: its example inputs.
        calls: the inputs that each part was captured with, by path.
        fixed: as it was captured.

    Raises:
        ValueError: the text is none that was written; says what is wrong with it.
    """
    try:
        capture = msgspec.json.decode(text, type=_Capture)
        if {part.path for part in capture.parts} != calls.keys():
            raise ValueError("it has other parts")
        marks: dict[str, SourceMark] = {}
        for part in capture.parts:
            marks[part.path] = source_mark(model.get_submodule(part.path))
            if not marks[part.path].fits(part.mark):
                return None
        files = {file for mark in marks.values() for file in mark.files}
        reader = Reader(capture.tables, files, packages_of(model))
        graphs = {part.path: _read(part, model, reader, calls[part.path]) for part in capture.parts}
    except _FOREIGN as problem:
        raise ValueError(f"{type(problem).__name__}: {problem}") from problem
    if any(_asks_otherwise(gm.graph) for gm in graphs.values()):
        return None
    parts = tuple(Part(path, gm, calls[path]) for path, gm in graphs.items())
    module = graphs[""] if list(graphs) == [""] else assemble(model, graphs)
    return CapturedParts(model, module, parts, inputs, fixed=fixed, stored=text)


def constants_in(text: str) -> dict[str, Tensor]:
    """The tensors that the code of a model held when its parts were written as text, by their paths in the graphs."""
    parts = msgspec.json.decode(text, type=_Capture).parts if text else ()
    held = ((part.path, i, one) for part in parts for i, one in enumerate(part.constants))
    return {qualified_name(path, traced_constant(i)): _tensor(one) for path, i, one in held}


def _read(part: _StoredPart, model: nn.Module, reader: Reader, inputs: ExampleInputs) -> CapturedModule:
    source = model.get_submodule(part.path)
    device = device_of(source, inputs)
    targets = [(kind, str(target)) for _, kind, target, *_ in part.nodes]
    # What one version of a mode switch alone calls is handed to it.
    modules = {name for name, _ in source.named_modules(remove_duplicate=False)}
    made = {switch.path for switch in part.switches}
    called = [at for kind, at in targets if kind == "call_module" or (kind == "get_attr" and at in modules)]
    constants = (_tensor(constant).to(device) for constant in part.constants)
    root = module_tree(source, set(called) - made, constants)
    for switch in part.switches:
        versions = (
            AlikeGraphModule(nn.Module(), reader.graph(nodes))
            for nodes in (switch.when_training, switch.when_evaluating)
        )
        owner, _, name = switch.path.rpartition(".")
        root.get_submodule(owner).add_module(name, ModeSwitch(*versions))
    if part.follows_device:
        root.register_buffer(ANCHOR, torch.empty(0, device=device), persistent=False)
    gm = captured_module(root, reader.graph(part.nodes, root), source, part.pinned)
    gm.meta["device"] = device
    gm.meta["capture"] = msgspec.convert({**part.info, "mark": part.mark}, CaptureInfo)
    if part.path:
        keep_attributes(source, gm)
    return gm


def _tensor(constant: _HeldTensor) -> Tensor:
    dtype = of_torch("dtype", constant.dtype)
    values = (
        torch.frombuffer(bytearray(constant.values), dtype=dtype) if constant.values else torch.empty(0, dtype=dtype)
    )
    return values.reshape(constant.shape)


def _asks_otherwise(graph: fx.Graph) -> bool:
    """Tell whether a graph would refuse the settings of torch as they are now, where a trace goes by them."""
    asked = [node.args for node in graph.nodes if node.target is check_setting]
    return any(SETTINGS[setting](*given) != expected for setting, given, expected, _ in asked)
