"""Where a difference begins: the inner values of a graph, one by one."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx._torch import any_names, pytree
from repl_fx.errors import BadInput, ExportError, close_matches
from repl_fx.export.comparison import ModelComparison
from repl_fx.export.difference import Difference
from repl_fx.export.onnx_model import export_onnx
from repl_fx.export.session import OnnxSession
from repl_fx.export.tensors import FlatInputs, batch_size
from repl_fx.graph.decisions import compute_all_, is_decision
from repl_fx.graph.notes import REPLACES

# More rows than this say no more about where a difference begins, and every one is an output of the diagnostic export.
_MAX_LAYERS = 256


@dataclass(frozen=True)
class LayerDifference:
    """One inner value of the graph.

    Attributes:
        node: name of the node in the graph.
        module: path of the module it calls, or, for what is a surrogate's, of the block that was replaced; empty for
            other operators.
        difference: as for an output; `output` is the node's name, numbered where it returns several tensors.
    """

    node: str
    module: str
    difference: Difference

    @property
    def passed(self) -> bool:
        """Tell whether every number is within the tolerance."""
        return self.difference.passed


def compare_layers(
    gm: fx.GraphModule,
    exported: fx.GraphModule,
    nodes: Sequence[fx.Node],
    inputs: FlatInputs,
    rtol: float | None = None,
    atol: float | None = None,
) -> tuple[LayerDifference, ...]:
    """Compare inner values of a graph with those that ONNX Runtime computes, in an export that returns them.

    Args:
        gm: the graph that PyTorch runs, in eval mode, on the CPU.
        exported: the graph that is exported: `gm` folded, with the weights of the file in question.
        nodes: of `exported`; each gives a row for each tensor that it computes.
        inputs, rtol, atol: as for `ModelComparison`.

    Raises:
        ExportError: the copy cannot be exported, or its results are of another kind.
    """
    names = [node.name for node in nodes]
    args, kwargs = inputs.given.args, inputs.given.kwargs
    with tempfile.TemporaryDirectory() as scratch:
        file = export_onnx(_returning(exported, names), Path(scratch) / "layers.onnx", args, kwargs)
        comparison = ModelComparison(OnnxSession(file), _returning(gm, names), rtol, atol)
        problem = comparison.run(batch_size(inputs.tensors), inputs) or next(iter(comparison.failures), None)
    if problem:
        raise ExportError(f"the layers cannot be compared: {problem}")
    return tuple(_layer(nodes, row) for row in comparison.rows)


def choose_nodes(graph: fx.Graph, wanted: Collection[str] | None = None) -> list[fx.Node]:
    """Find the nodes whose values say where a difference begins; a decision is no value.

    Args:
        graph: a folded graph: what it has not, the file has not either.
        wanted: their names; None takes the calls of modules and the operators of surrogates, or all operators where
            there is neither.

    Raises:
        BadInput: no node of that name.
    """
    every = {node.name: node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")}
    if wanted is not None:
        chosen = list(wanted)
        unknown = [name for name in chosen if name not in every]
        if unknown:
            close = close_matches(unknown[0], every)
            raise BadInput(f"the graph has no inner value {unknown[0]!r}{close}; its values are {', '.join(every)}")
        return [every[name] for name in chosen if not is_decision(every[name])]
    operators = [node for node in every.values() if not is_decision(node)]
    calls = [node for node in operators if _module(node)] or operators
    # Evenly thinned: where a difference begins is then known to within a few layers.
    return calls[:: math.ceil(len(calls) / _MAX_LAYERS) or 1]


def _module(node: fx.Node) -> str:
    if replaced := REPLACES.of(node):
        return replaced[0]
    return str(node.target) if node.op == "call_module" else ""


def _returning(gm: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """A copy of the graph that returns the values of the nodes of these names, in their order.

    Each value is copied where it is made: a graph that writes in place has another in its memory at the end.
    """
    graph = copy.deepcopy(gm.graph)
    # How the original packs its results does not matter here.
    graph.set_codegen(fx.graph.CodeGen())
    compute_all_(graph)
    named = {node.name: node for node in graph.nodes}
    taken = []
    for name in names:
        with graph.inserting_after(named[name]):
            taken.append(graph.call_function(_copied, (named[name],)))
    graph.output_node().args = (tuple(taken),)
    with any_names():
        probe = fx.GraphModule(gm, graph)
    probe.train(gm.training)
    return probe


def _copied(value: Any) -> Any:
    """The value with tensors of its own."""
    return pytree.tree_map_only(Tensor, torch.clone, value)


def _layer(nodes: Sequence[fx.Node], row: Difference) -> LayerDifference:
    # "output_2" for the tensor of node 2, "output_2_0" for the first of several.
    number, _, part = row.output.removeprefix("output_").partition("_")
    node = nodes[int(number)]
    return LayerDifference(node.name, _module(node), replace(row, output=f"{node.name}_{part}" if part else node.name))
