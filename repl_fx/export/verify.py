"""Prove that an ONNX file computes what a module computes: ONNX Runtime against PyTorch, on the CPU."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from repl_fx.arguments import require_module, require_path
from repl_fx.errors import BadInput, ReplFxError, first_line
from repl_fx.export.comparison import ModelComparison
from repl_fx.export.layers import LayerDifference, choose_nodes, compare_layers
from repl_fx.export.onnx_model import export_onnx, quiet
from repl_fx.export.session import OnnxSession
from repl_fx.export.tensors import FlatInputs, at_batch, batch_size, default_batches, flatten_inputs
from repl_fx.export.verification import Verification
from repl_fx.export.weights import Arrays, other_weights, weights_of, with_weights
from repl_fx.passes.driver import run_passes
from repl_fx.passes.fold_surrogates import fold_surrogates
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import in_mode


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
    layer_nodes: Iterable[str] | None = None,
) -> Verification:
    """Compare an ONNX file with the module it should be equivalent to.

    Both run on the CPU, in the precision of the model: the module in eval mode without gradients, the file in ONNX
    Runtime with its graph optimisations on. Inputs and outputs are paired by name, or, in a file that has names of its
    own for as many of the same shapes, by position. At the batch size of the example inputs they get the example
    inputs; at others, inputs of the same shape and distribution drawn with `seed`. Where a difference in float32 is
    above the tolerance, the module runs in float64 too: in a model in which rounding grows, the file must be about as
    near to that as PyTorch is.

    Args:
        gm: the module, in any mode, on any device (one that is elsewhere is copied to the CPU); it is not changed.
        path: the ONNX file.
        args: positional example inputs, as for `export_onnx`.
        kwargs: keyword example inputs.
        rtol: relative tolerance for all floating outputs, in place of `TOLERANCES`.
        atol: absolute tolerance for all floating outputs, as a fraction of the output's scale.
        batches: batch sizes to compare at; None takes 1, the example's, and the example's + 3, leaving out, with the
            reason in `skipped`, those that the file or the module does not take.
        seed: for the inputs that are drawn.
        per_layer: also compare the weights in the file with the module's, and inner values: those of the graph with
            those of a copy that is exported to return them, since an ONNX file has not the same inner values. The copy
            gets the weights of the file that differ, so that the first layer they change is found; not those that the
            exporter merged with a normalisation.
        layer_nodes: names of the nodes to compare; None takes the calls of modules and the operators of surrogates.
            Implies `per_layer`.

    Returns:
        The comparison, true when equivalent.

    Raises:
        BadInput: no such file, inputs that do not fit the module or the file, unknown layer, or `batches` it cannot
            take.
        ExportError: the file is no ONNX model that ONNX Runtime can load, or the layers cannot be exported.
    """
    require_module("verify_onnx", gm)
    require_path(path, "the ONNX file")
    given = ExampleInputs.of(args, kwargs)
    if batches is not None:
        _require_sizes(batches)
    session = OnnxSession(Path(path))
    elsewhere = any(tensor.device.type != "cpu" for tensor in (*gm.parameters(), *gm.buffers()))
    module = copy.deepcopy(gm).cpu() if elsewhere else gm
    with in_mode(module, False), torch.no_grad(), quiet():
        inputs = flatten_inputs(module, given.map(lambda tensor: tensor.detach().cpu()))
        paired = session.check_inputs(inputs)
        traced = batch_size(inputs.tensors)
        wanted = tuple(batches) if batches is not None else default_batches(traced)
        comparison = ModelComparison(session, module, rtol, atol)
        comparison.notes.update({paired: None} if paired else {})
        for batch in wanted:
            obstacle = comparison.run(batch, at_batch(inputs, batch, seed))
            if obstacle and (batches is not None or batch == traced):
                raise BadInput(f"batch {batch} cannot be compared: {obstacle}")
            if obstacle:
                comparison.skipped[f"batch {batch}"] = obstacle
        layers: tuple[LayerDifference, ...] = ()
        notes: tuple[str, ...] = ()
        if per_layer or layer_nodes is not None:
            layers, notes = _localise(comparison, inputs, layer_nodes)
    return Verification(
        rows=tuple(comparison.rows),
        layers=layers,
        settings={
            **session.settings(),
            "torch": str(torch.__version__),
            "torch_device": "cpu",
            "batches": list(wanted),
            "traced_batch": traced,
            "seed": seed,
            "rtol": rtol,
            "atol": atol,
        },
        skipped=comparison.skipped,
        failures=tuple(comparison.failures),
        notes=(*comparison.notes, *notes),
    )


def _require_sizes(batches: Sequence[int]) -> None:
    """Refuse what is no batch: at a batch of 0 everything is equal, because there is nothing."""
    wrong = [size for size in batches if isinstance(size, bool) or not isinstance(size, int) or size < 1]
    if wrong or not batches:
        raise BadInput(f"batches is {list(batches)!r}; give one positive number or more, such as [1, 2, 5]")


def _localise(
    outputs: ModelComparison, inputs: FlatInputs, wanted: Iterable[str] | None
) -> tuple[tuple[LayerDifference, ...], tuple[str, ...]]:
    """The layers, and what they and the weights say of a difference in the outputs."""
    gm = outputs.module
    if not isinstance(gm, fx.GraphModule):
        raise BadInput(f"layers can only be compared in a graph, and {type(gm).__name__} is none; capture it first")
    folded = run_passes(gm, fold_surrogates).graph_module
    nodes = choose_nodes(folded.graph, wanted)
    fresh: Arrays = {}
    notes: tuple[str, ...] = ()
    try:
        fresh = _exported_weights(gm, inputs)
    except ReplFxError as error:
        notes = (f"the weights cannot be compared: {first_line(error)}",)
    weights = other_weights(outputs.session.file, fresh)
    if weights:
        listed = ", ".join(list(weights)[:3]) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "")
        notes = (f"weights in the file that are not the module's: {listed}",)
    exported = with_weights(folded, weights, fresh)
    layers = compare_layers(gm, exported, nodes, inputs, outputs.rtol, outputs.atol)
    if not outputs.passed and not notes and all(layer.passed for layer in layers):
        notes = ("layers and weights agree in a fresh export, so the file holds another graph; export it again",)
    return layers, notes


def _exported_weights(gm: fx.GraphModule, inputs: FlatInputs) -> Arrays:
    args, kwargs = inputs.given.args, inputs.given.kwargs
    with tempfile.TemporaryDirectory() as scratch:
        return weights_of(export_onnx(gm, Path(scratch) / "fresh.onnx", args, kwargs))
