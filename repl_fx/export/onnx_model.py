"""Write a graph as an ONNX model: folded, in eval mode, with a dynamic batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import onnx
import onnx_ir as ir
import torch
from onnxscript.version_converter import convert_version
from torch import Tensor, fx, nn

from repl_fx import __version__
from repl_fx._torch import (
    any_lengths,
    any_names,
    asks_for_values,
    decomposed_by,
    lean_tracing,
    quiet_tracing,
    results_known,
    translations_kept,
)
from repl_fx.arguments import require_module, require_path
from repl_fx.environment.files import replacing, writing
from repl_fx.errors import BadInput, CaptureError, ExportError, ForeignError, OutputError, first_line, foreign_code
from repl_fx.export.decomposing import decompose
from repl_fx.export.lowering import lower_
from repl_fx.export.optimizing import optimize_
from repl_fx.export.pairing import MARK
from repl_fx.export.stateless import drop_updates_, stateful
from repl_fx.export.tensors import Alike, FlatInputs, FlatModule, batched, file_names, flatten_inputs, name_outputs
from repl_fx.export.translations import TRANSLATIONS
from repl_fx.graph.axes import Axis, InputSizes, captured_axes, limits_by_axis, name_dims, with_names
from repl_fx.graph.grouping import grouped
from repl_fx.graph.known_shapes import FAKES
from repl_fx.passes.driver import run_passes
from repl_fx.passes.fold_surrogates import fold_surrogates
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.hushed import hushed
from repl_fx.running.opaque_outputs import equal_leaves
from repl_fx.running.untouched import device_of, in_mode, no_autocast, untouched
from repl_fx.tracing.capture import capture
from repl_fx.tracing.dynamic_shapes import auto_shapes, batch_dims, every_dim, outer_dims
from repl_fx.tracing.parts.capture_parts import CapturedParts, computes_as_source, graphs_in

# protobuf refuses messages of 2 GiB; what is left is for the graph itself.
INLINE_LIMIT = 1536 * 2**20

# Stack traces hold the paths of the machine that exported, and make the same model a different file elsewhere; the rest
# speaks of names that the file does not have.
_PRIVATE_METADATA = (
    "pkg.torch.onnx.stack_trace",
    "pkg.torch.onnx.fx_node",
    "pkg.torch.export.ExportedProgram.graph_signature",
    "pkg.torch.export.ExportedProgram.range_constraints",
)

# The exporter and what it calls warn of their own deprecations and log what they skip; nothing of it is the user's to
# act on, and what is really wrong comes as an exception.
_NOISY = ("torch", "onnxscript", "onnx_ir", "onnx")
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def onnx_name(part: str) -> str:
    """Name of the file for the ONNX model of a part of an artifact; the part "" is the whole model.

    Module names may hold all but a dot, slashes too; none of them leads to another directory.
    """
    name = quote(part, safe="[] ") or "model"
    # File systems take 255 bytes.
    return f"{name if len(name) <= 200 else name[:180] + hashlib.sha256(part.encode()).hexdigest()[:16]}.onnx"


def export_onnx(
    gm: nn.Module,
    path: str | os.PathLike[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    opset: int | None = None,
    external_data: bool | None = None,
) -> Path:
    """Export a graph to ONNX.

    Surrogates are folded first, and the module is exported as it computes in eval mode; the module itself keeps its
    modes, parameters, buffers and other state. Dimension 0 of every input is dynamic, and the sequence lengths of token
    ids and masks, where the model allows. Inputs have one batch in the file where the model computes a length from the
    batches of several. The file appears under its name only when it is complete and the ONNX checker has passed it.

    Args:
        gm: the graph, in any mode; any other `nn.Module` is captured where it can be, and else exported as it is.
        path: the file to write, replaced if it exists; its directory must exist.
        args: positional example inputs, batch 2 or more. Inputs that are no tensors (None, True) become constants.
        kwargs: keyword example inputs.
        opset: version of the ONNX operator set; None takes the exporter's own, the best supported.
        external_data: whether the weights go to `<name>.data` next to the file; None puts them there only when they are
            too large for one protobuf message.

    Returns:
        The path written.

    Raises:
        BadInput: the inputs do not fit the module, or have a batch of 1, which cannot become dynamic.
        ExportError: a step or an operator that the exporter refuses, a file that the checker refuses, outputs that
            depend on a buffer which each forward changes, or a module whose graph computes otherwise than the module.
        OutputError: a place that cannot be written.
        NotFoldable: a surrogate whose weights depend on the input.
    """
    require_module("export_onnx", gm)
    require_path(path, "the file to write")
    given = _beside(gm, ExampleInputs.of(args, kwargs))
    target = _check_target(Path(path))
    graph = as_graph(gm, given)
    if isinstance(graph, fx.GraphModule) and graph is not gm:
        captured = CapturedParts.of_graph(graph, given, gm)
        if not computes_as_source(captured):
            raise ExportError(f"the graph of {type(gm).__name__} does not compute what it computes itself")
    write_program(export_program(graph, given, opset), target, external_data)
    return target


def export_program(gm: nn.Module, given: ExampleInputs, opset: int | None = None) -> torch.onnx.ONNXProgram:
    """The model that `export_onnx` writes of a graph, or of a module as it is, in memory.

    Raises:
        BadInput, ExportError, NotFoldable: see `export_onnx`.
    """
    _check_opset(opset)
    projected = next((path for path, m in gm.named_modules() if isinstance(m, nn.LSTM) and m.proj_size), None)
    if projected is not None:
        raise ExportError(f"{projected or 'the model'} is an LSTM with proj_size, which ONNX has no operator for")
    # A forward that counts its calls or moves a buffer runs for the names of the outputs, and for the trace.
    kept = untouched(gm, buffers=True, parameters=True)
    device = device_of(gm, given)
    # The precision in a file is that of the weights.
    plain = no_autocast(device)
    with kept, in_mode(gm, False), torch.no_grad(), plain, quiet():
        passes = fold_surrogates, drop_updates_, lower_
        source = run_passes(gm, *passes).graph_module if isinstance(gm, fx.GraphModule) else gm
        inputs = flatten_inputs(source, _beside(source, given))
        batches = [tensor.shape[0] for tensor in inputs.tensors if tensor.ndim]
        if batches and max(batches) < 2:
            raise BadInput("the example inputs have a batch of 1, which the export would fix; give 2 or more")
        program = _convert(source, inputs, _output_names(source, inputs), opset)
        names = _tidy(program.model, gm, inputs, _specialised(program))
        limits = limits_by_axis(gm.graph, names) if isinstance(gm, fx.GraphModule) else {}
        program.model.metadata_props.update({f"{MARK}.{name}": "; ".join(lines) for name, lines in limits.items()})
    program.model.metadata_props[MARK] = f"{__version__}, torch {torch.__version__}"
    return program


def as_graph(module: nn.Module, given: ExampleInputs) -> nn.Module:
    """A module as a captured graph, in evaluation, where it can be: torch's exporter loses sizes (`int(n * 0.5)`)."""
    if not isinstance(module, fx.GraphModule):
        with suppress(CaptureError, BadInput):
            return capture(module, given.args, given.kwargs).eval()
    return module


def _beside(module: nn.Module, given: ExampleInputs) -> ExampleInputs:
    """Inputs on the device of a module."""
    device = device_of(module, given)
    return given.map(lambda tensor: tensor.to(device))


def quiet() -> AbstractContextManager[None]:
    """Drop the warnings and log lines of the exporter's own packages, and nobody else's."""
    # Those that warn in the name of the standard library: copies of a pytree specification, and traces of a recurrent
    # layer, which put others into the list of its weights.
    messages = ".*treespec, LeafSpec", r"The tensor attributes? \S*_flat_weights", "_check_is_size will be removed"
    return hushed(_NOISY, _NOISY_LOGGERS, messages)


def _output_names(source: nn.Module, inputs: FlatInputs) -> list[str]:
    refused = foreign_code(lambda problem: BadInput(f"the module fails on the example inputs: {first_line(problem)}"))
    before = {} if isinstance(source, fx.GraphModule) else {n: b.detach().clone() for n, b in source.named_buffers()}
    with untouched(source, buffers=True, parameters=True), refused:
        tensors, _ = name_outputs(inputs.given.map(torch.clone).passed_to(source))
        now = dict(source.named_buffers())
        changed = [name for name, was in before.items() if not equal_leaves(now.get(name), was)]
        again = name_outputs(inputs.given.map(torch.clone).passed_to(source))[0] if changed else tensors
    if changed and not all(equal_leaves(tensor, again.get(name)) for name, tensor in tensors.items()):
        raise stateful(changed[0])
    if not tensors:
        raise ExportError(f"{type(source).__name__} returns no tensor, so there is nothing to export")
    odd = next((name for name in tensors if name.encode(errors="ignore").decode() != name), None)
    if odd is not None:
        raise ExportError(f"the output {odd!a} has half a letter in its name, which no file can hold; rename it")
    return file_names(tensors, inputs.names)


def _convert(
    source: nn.Module, inputs: FlatInputs, outputs: Sequence[str], opset: int | None
) -> torch.onnx.ONNXProgram:
    # Each tensor must be an object of its own: torch.export takes two arguments that are one object for one input.
    tensors = tuple(tensor.detach().clone() for tensor in inputs.tensors)
    failure: Exception | None = None
    left = list(_ladder(tensors, *_known_dims(source, inputs.names)))
    fewest = left[-1][0]
    while left:
        dims, alike = left.pop(0)
        shapes: Any = auto_shapes(ExampleInputs(tensors), dims=_dims_by_tensor(tensors, dims))
        try:
            # The next attempt may well succeed.
            quietly = quiet_tracing()
            with (
                foreign_code(), quietly, any_names(), any_lengths(), translations_kept(), decomposed_by(decompose),
                results_known(), lean_tracing(FAKES, solved=True),
            ):  # fmt: skip
                program = torch.onnx.export(
                    FlatModule(source, inputs, alike),
                    tensors,
                    dynamo=True,
                    verbose=False,
                    dynamic_shapes=shapes,
                    input_names=list(inputs.names),
                    output_names=list(outputs),
                    opset_version=opset,
                    custom_translation_table=dict(TRANSLATIONS),
                    optimize=False,
                )
                assert program is not None  # dynamo=True always returns one
                # Pieces of a size that is not known stop it.
                optimize_(program.model)
        except ForeignError as failed:
            failure = failure or failed.problem
            if asks_for_values(failed.problem):
                # No size tells a value; the fewest dynamic ones may bound it.
                left = [attempt for attempt in left if attempt[0] == fewest != dims]
            continue
        if any(dim == 0 and _is_fixed(program, number) for group in alike for number, dim in group):
            continue
        written = program.model.opset_imports.get("")
        if opset is not None and written != opset:
            nearest = _nearest(program.model, opset)
            raise ExportError(f"the model cannot be written in opset {opset}; the nearest it can be is {nearest}")
        return program
    assert failure is not None
    raise ExportError(_explain(source, failure)) from failure


def _nearest(model: ir.Model, opset: int) -> int:
    """The version of the operator set nearest to another one in which a model can be written."""
    written = int(model.opset_imports[""])
    for version in range(opset, written, 1 if opset < written else -1):
        converted = model.clone()
        with suppress(ForeignError), foreign_code():
            convert_version(converted, version, fallback=True)
            if converted.opset_imports[""] == version:
                return version
    return written


def _axes_by_input(gm: nn.Module, names: Sequence[str]) -> dict[str, list[Axis]] | None:
    """The dimensions of each input of a captured graph; None for a module that is no such graph."""
    axes = grouped((axis.input, axis) for axis in captured_axes(gm)) if isinstance(gm, fx.GraphModule) else {}
    return axes if axes.keys() == set(names) else None


def _known_dims(source: nn.Module, names: Sequence[str]) -> tuple[list[tuple[int, ...]] | None, list[Alike]]:
    """The dimensions of each input that a captured graph has free, and those that are of one size.

    Of a module that is no captured graph nothing is known.
    """
    axes = _axes_by_input(source, names)
    if axes is None:
        return None, []
    every = chain.from_iterable(axes.values())
    alike = grouped((one.symbol, (names.index(one.input), one.number)) for one in every if one.symbol is not None)
    free = [tuple(axis.number for axis in axes[name] if axis.symbol is not None) for name in names]
    return free, [tuple(group) for group in alike.values() if len(group) > 1]


def _dims_by_tensor(tensors: Sequence[Tensor], dims: Sequence[tuple[int, ...]]) -> Callable[[Tensor], tuple[int, ...]]:
    known = dict(zip(map(id, tensors), dims, strict=True))
    return lambda tensor: known[id(tensor)]


def _ladder(
    tensors: Sequence[Tensor], free: Sequence[tuple[int, ...]] | None, alike: Sequence[Alike]
) -> Iterator[tuple[Sequence[tuple[int, ...]], Sequence[Alike]]]:
    """Dynamic dimensions of each input to ask for, and which of them are to be of one size, best first.

    AUTO gives way, but not where a model insists on one length late. Nor where it divides one input's batch by that of
    another: the exporter does not guess that sizes are alike, and takes the quotient for a length of its own.
    """
    batches = tuple((number, 0) for number in batched(tensors))
    told = [alike]
    if len(batches) > 1 and not any(set(batches) <= set(group) for group in alike):
        told.append([*alike, batches])
    tried = [list(map(every_dim, tensors)) if free is None else list(free)]
    for fewer in (outer_dims, batch_dims):
        kept = [tuple(d for d in dims if d in fewer(t)) for dims, t in zip(tried[0], tensors, strict=True)]
        if kept not in tried:
            tried.append(kept)
    yield from ((dims, groups) for dims in tried for groups in told)


def _tidy(model: ir.Model, gm: nn.Module, inputs: FlatInputs, fixed: Mapping[str, int]) -> dict[str, list[str]]:
    """Drop what is of no use in a file, and name the dimensions; returns those of the inputs."""
    graph = model.graph
    for metadata in (graph.metadata_props, *(node.metadata_props for node in graph.all_nodes())):
        for key in _PRIVATE_METADATA:
            metadata.pop(key, None)

    names = _name_dimensions(model, gm, inputs, fixed)
    if any(node.op_type == "DFT" and node.attributes.get_int("inverse", 0) for node in graph.all_nodes()):
        # Shape inference takes the result of an inverse real transform for half its size, and ONNX Runtime then reuses
        # memory that is too small. Without the shapes of inner values it finds them itself.
        for value in (value for node in graph.all_nodes() for value in node.outputs):
            if not value.is_graph_output():
                value.shape = None
    return names


def _specialised(program: torch.onnx.ONNXProgram) -> dict[str, int]:
    """Symbols that have but one value: the exporter keeps the symbol, which promises what the model cannot do."""
    ranges = program.exported_program.range_constraints if program.exported_program else {}
    return {str(symbol): int(span.lower) for symbol, span in ranges.items() if span.lower == span.upper}


def _is_fixed(program: torch.onnx.ONNXProgram, number: int) -> bool:
    """Tell whether dimension 0 of an input has but one value."""
    shape = program.model.graph.inputs[number].shape
    return shape is not None and (isinstance(shape[0], int) or str(shape[0].value) in _specialised(program))


def _name_dimensions(
    model: ir.Model, gm: nn.Module, inputs: FlatInputs, fixed: Mapping[str, int]
) -> dict[str, list[str]]:
    """Call the symbols of torch.export (s77) what they are in the graph: batch, height."""
    known = [
        InputSizes.of(
            name,
            tensor.dtype,
            [fixed.get(str(d.value), d.value) if isinstance(d, ir.SymbolicDim) else d for d in value.shape or ()],
        )
        for value, name, tensor in zip(model.graph.inputs, inputs.names, inputs.tensors, strict=True)
    ]
    axes = _axes_by_input(gm, inputs.names)
    if axes is None:
        found = dict(zip(inputs.names, map(list, name_dims(known)), strict=True))
    else:
        found = {name: [axis.name for axis in own] for name, own in axes.items()}
    # Dimensions that the exporter found to be of one size have the name of the first.
    names = {
        size: name
        for given in reversed(known)
        for size, name in zip(given.sizes, found[given.name], strict=True)
        if isinstance(size, str)
    }
    every = (value for node in model.graph.all_nodes() for value in node.outputs)
    for value in (*model.graph.inputs, *every):
        if value.shape is not None and any(isinstance(dim, ir.SymbolicDim) for dim in value.shape):
            value.shape = ir.Shape([_renamed(dim, names, fixed) for dim in value.shape])
    return found


def _renamed(dim: int | ir.SymbolicDim, names: Mapping[str, str], fixed: Mapping[str, int]) -> int | str | None:
    size = dim if isinstance(dim, int) else dim.value
    return fixed.get(size, with_names(size, names)) if isinstance(size, str) else size


def write_program(program: torch.onnx.ONNXProgram, target: Path, external_data: bool | None = None) -> None:
    """Write an exported program as a file, which appears under its name only when it is complete.

    Raises:
        ExportError: the checker refuses it.
        OutputError: a place that cannot be written.
    """
    if external_data is None:
        weights = (value.const_value for value in program.model.graph.initializers.values())
        external_data = sum(weight.nbytes for weight in weights if weight is not None) > INLINE_LIMIT
    data = target.with_name(f"{target.name}.data")
    with writing(target):
        # Both files have their final names, and the model refers to its data by a name that stays right when they are
        # moved. Data first: a model whose weights are missing is worse than weights without a model.
        with replacing(target) as written, quiet():
            program.save(written, external_data=external_data)
            _check(written)
            replaced = data.exists() and target.exists() and not written.with_name(data.name).exists()
            outdated = replaced and data.name.encode() in target.read_bytes()
        # Nothing refers any more to the data of the model that was there before; a file that it did not name stays.
        if outdated:
            data.unlink(missing_ok=True)


def _check(path: Path) -> None:
    # By path: the checker takes no message above 2 GiB, and finds external data only next to the file.
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported model is no valid ONNX: {first_line(error)}") from error


def _check_target(target: Path) -> Path:
    if target.is_dir():
        raise OutputError(f"{target} is a directory; give the name of a file, such as {target / 'model.onnx'}")
    if not target.parent.is_dir():
        raise OutputError(f"{target} cannot be written: there is no directory {target.parent}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{target} cannot be written: no permission in {target.parent}")
    return target


def _check_opset(opset: int | None) -> None:
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and opset not in range(1, newest + 1):
        raise BadInput(f"opset {opset} does not exist: the installed onnx knows 1 to {newest}")


def _explain(source: nn.Module, failure: Exception) -> str:
    cause: BaseException = failure
    while cause.__cause__ is not None:
        cause = cause.__cause__
    step = {
        "TorchExportError": "torch.export refuses it",
        "ConversionError": "an operator has no translation",
    }.get(type(failure).__name__, type(failure).__name__)
    reason, *more = str(cause).strip().split("\n")[:2] or [""]
    said = f"{reason} {more[0].strip()}" if more and reason.endswith(":") else first_line(cause)
    graphs = [] if isinstance(source, fx.GraphModule) else list(graphs_in(source))
    hint = f"; it was captured in parts, export each of them: {', '.join(graphs)}" if graphs else ""
    return f"{type(source).__name__} cannot be exported to ONNX: {step}: {said}{hint}"
