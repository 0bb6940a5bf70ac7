"""Prove that an ONNX file computes what a module computes: ONNX Runtime against PyTorch, on the CPU."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import fx, nn

from repl_fx.arguments import require_items, require_module, require_number, require_path
from repl_fx.errors import BadInput, ReplFxError, first_line
from repl_fx.export.comparison import ModelComparison
from repl_fx.export.layers import LayerDifference, choose_nodes, compare_layers
from repl_fx.export.onnx_model import as_graph, export_program, quiet
from repl_fx.export.pairing import constants_of
from repl_fx.export.session import OnnxSession
from repl_fx.export.tensors import (
    FlatInputs,
    at_batch,
    at_shapes,
    batch_size,
    default_batches,
    flatten_inputs,
    half_changed,
)
from repl_fx.export.trial_shapes import trial_shapes
from repl_fx.export.verification import Verification
from repl_fx.export.weights import WeightComparison, compare_weights, read_model, with_weights
from repl_fx.graph.state import named_tensors
from repl_fx.passes.driver import run_passes
from repl_fx.passes.fold_surrogates import fold_surrogates
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import in_mode, no_autocast


def verify_onnx(
    gm: nn.Module,
    path: str | os.PathLike[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    batches: Sequence[int] | None = None,
    seed: int = 0,
    per_layer: bool = False,
    layer_nodes: Collection[str] | None = None,
) -> Verification:
    """Compare an ONNX file with the module it should be equivalent to: its outputs, and its weights.

    Both run on the CPU, in the precision of the model: the module in eval mode without gradients, the file in ONNX
    Runtime with its graph optimisations on. Inputs and outputs are paired by name, or, in a file that has names of its
    own for as many of the same shapes, by position. At the batch size of the example inputs they get the example
    inputs; at others, inputs of the same shape and distribution drawn with `seed`. Where a difference in float32 is
    above the tolerance, the module runs in float64 too: in a model in which rounding grows, the file must be about as
    near to that as PyTorch is.

    Outputs do not show each weight, so the weights and constants of the file are compared as well, in the precision of
    the file, with those of an export of the module as it is now: see `repl_fx.export.weights`. A file of another
    exporter may have some that cannot be matched; the result counts and names them.

    Args:
        gm: the module, in any mode, on any device (one that is elsewhere is copied to the CPU); it is not changed.
        path: the ONNX file.
        args: positional example inputs, as for `export_onnx`.
        kwargs: keyword example inputs.
        rtol: relative tolerance for all floating outputs, in place of `TOLERANCES`.
        atol: absolute tolerance for all floating outputs, as a fraction of the output's scale.
        batches: batch sizes to compare at; None takes 1, the example's, and the example's + 3, and other sizes of the
            other dimensions that are dynamic, once smaller and once larger ones within the limits of the graph. Those
            that the file or the module does not take are left out, with the reason in `skipped`. With
            None, inputs of ones or of zeros alone, such as a mask that hides nothing, are changed in one half, too.
        seed: for the inputs that are drawn.
        per_layer: also compare inner values: those of the graph with those of a copy that is exported to return them,
            since an ONNX file has not the same inner values. The copy gets the weights of the file that differ, so
            that the first layer they change is found; not those that the exporter merged with a normalisation.
        layer_nodes: names of the nodes to compare; None takes the calls of modules and the operators of surrogates.
            Implies `per_layer`.

    Returns:
        The comparison, true when equivalent.

    Raises:
        BadInput: no such file, a module without values, inputs that do not fit the module or the file, unknown layer,
            or `batches` it cannot take.
        ExportError: the file is no ONNX model that ONNX Runtime can load, or the layers cannot be exported.
    """
    require_module("verify_onnx", gm)
    require_path(path, "the ONNX file")
    given = ExampleInputs.of(args, kwargs)
    if batches is not None:
        _require_sizes(batches)
    if layer_nodes is not None:
        require_items("layer_nodes", layer_nodes, str, "a list of names of nodes")
    require_number("seed", seed)
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if tolerance is not None:
            require_number(name, tolerance, Real, 0)
    options: Any = {"rtol": rtol, "atol": atol, "batches": batches, "seed": seed}
    return verify_file(gm, Path(path), given, **options, per_layer=per_layer, layer_nodes=layer_nodes)


def verify_file(
    gm: nn.Module,
    path: Path,
    given: ExampleInputs,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    batches: Sequence[int] | None = None,
    seed: int = 0,
    per_layer: bool = False,
    layer_nodes: Collection[str] | None = None,
    fresh: ir.Model | None = None,
) -> Verification:
    """Verify as `verify_onnx` does, with arguments that are right.

    Args:
        fresh: what the module was exported to just now, where it was; else it is exported again.
        gm, path, given, rtol, atol, batches, seed, per_layer, layer_nodes: see `verify_onnx`.
    """
    session = OnnxSession(path)
    tensors = named_tensors(gm)
    empty = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if empty is not None:
        raise BadInput(f"{empty} is on the meta device and has no values to compare; materialise the model first")
    elsewhere = any(tensor.device.type != "cpu" for tensor in tensors.values())
    module = copy.deepcopy(gm).cpu() if elsewhere else gm
    notes: tuple[str, ...] = ()
    layers: tuple[LayerDifference, ...] = ()
    with in_mode(module, False), torch.no_grad(), no_autocast(torch.device("cpu")), quiet():
        inputs = flatten_inputs(module, given.map(lambda tensor: tensor.detach().cpu()))
        outputs = ModelComparison(session, module, rtol, atol)
        graph = as_graph(module, inputs.given)
        compared = _compare_outputs(outputs, graph, inputs, batches, seed)
        found = read_model(path)
        if fresh is None:
            fresh, notes = _exported(graph, inputs, found, seed)
        folded = run_passes(graph, fold_surrogates).graph_module if isinstance(graph, fx.GraphModule) else graph
        weights = compare_weights(found, fresh, module, folded)
        if per_layer or layer_nodes is not None:
            layers, more = _localise(outputs, graph, inputs, layer_nodes, folded, weights, found, fresh)
            notes += more
    return Verification(
        rows=tuple(outputs.rows),
        weights=weights,
        layers=layers,
        settings={
            **session.settings(),
            "torch": str(torch.__version__),
            "torch_device": "cpu",
            "batches": compared,
            "traced_batch": batch_size(inputs.tensors),
            "seed": seed,
            "rtol": rtol,
            "atol": atol,
        },
        skipped=outputs.skipped,
        failures=tuple(outputs.failures),
        notes=(*outputs.notes, *notes),
    )


def _require_sizes(batches: Sequence[int]) -> None:
    """Refuse what is no batch: at a batch of 0 everything is equal, because there is nothing."""
    listed = isinstance(batches, Collection) and bool(batches)
    if not listed or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in batches):
        raise BadInput(f"batches is {batches!r}; give one positive number or more, such as [1, 2, 5]")


def _compare_outputs(
    outputs: ModelComparison, graph: nn.Module, inputs: FlatInputs, batches: Sequence[int] | None, seed: int
) -> list[int]:
    """Compare the outputs at all sizes that the graph leaves free; returns the batch sizes.

    Raises:
        BadInput: a batch that was asked for, or the example's, cannot be compared.
    """
    paired, traced = outputs.session.check_inputs(inputs), batch_size(inputs.tensors)
    outputs.notes.update({paired: None} if paired else {})
    wanted = list(default_batches(traced) if batches is None else batches)
    for batch in wanted:
        if obstacle := outputs.run(batch, at_batch(inputs, batch, seed)):
            if batches is not None or batch == traced:
                raise BadInput(f"batch {batch} cannot be compared: {obstacle}")
            outputs.skipped[f"batch {batch}"] = obstacle
    trials = trial_shapes(graph, outputs.session.shapes, inputs) if batches is None else {}
    for sizes, shapes in trials.items():
        if obstacle := outputs.run(traced, at_shapes(inputs, shapes, seed), sizes):
            outputs.skipped[sizes] = obstacle
    for what, changed in half_changed(inputs).items() if batches is None else ():
        if obstacle := outputs.run(traced, changed, what, numbers=True):
            outputs.skipped[what] = obstacle
    return wanted


def _exported(
    module: nn.Module, inputs: FlatInputs, found: ir.Model, seed: int
) -> tuple[ir.Model | None, tuple[str, ...]]:
    """An export of the module in the operator set of a file, or in another, or why there is none."""
    given = at_batch(inputs, 2, seed) if batch_size(inputs.tensors) == 1 else inputs
    failed: ReplFxError | None = None
    for opset in dict.fromkeys((found.opset_imports.get(""), None)):
        try:
            return export_program(module, given.given, opset).model, ()
        except ReplFxError as error:
            failed = error
    assert failed is not None
    return None, (f"weights compared with the module's own, as it cannot be exported ({first_line(failed)})",)


def _localise(
    outputs: ModelComparison,
    graph: nn.Module,
    inputs: FlatInputs,
    wanted: Collection[str] | None,
    folded: nn.Module,
    weights: WeightComparison,
    found: ir.Model,
    fresh: ir.Model | None,
) -> tuple[tuple[LayerDifference, ...], tuple[str, ...]]:
    """The layers, and what they and the weights say of a difference in the outputs."""
    if not isinstance(graph, fx.GraphModule) or not isinstance(folded, fx.GraphModule):
        raise BadInput(f"layers can only be compared in a graph, and {type(graph).__name__} could not be captured")
    nodes = choose_nodes(folded.graph, wanted)
    stored, own = constants_of(found), {} if fresh is None else constants_of(fresh)
    others = {one.source: stored[one.name] for one in weights.altered if one.source in own and one.name in stored}
    layers = compare_layers(graph, with_weights(folded, others, own), nodes, inputs, outputs.rtol, outputs.atol)
    if not outputs.passed and weights and fresh is not None and all(layer.passed for layer in layers):
        return layers, ("layers and weights agree in a fresh export, so the file holds another graph; export it again",)
    return layers, ()
