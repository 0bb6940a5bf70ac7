"""Two ONNX graphs side by side, from their outputs back: which constants stand in each other's place.

y = Gemm(x, fc.weight, 3.weight)      <->  y = Gemm(x, onnx::MatMul_7, b)      the names do not count
y = Gelu(z, approximate="none")       <->  y = Erf(Div(z, 1.41))               an obstacle: no pair of graphs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

# Metadata of the files that repl-fx writes: which version did.
MARK = "repl_fx"


class _Unlike(Exception):
    """Two graphs that are no pair; the message is the obstacle."""


@dataclass
class Pairs:
    """The pairs that are found in two graphs, on the way from their outputs back.

    Attributes:
        opsets: the versions of operators in each graph, by domain.
        values: name and value in the first, name and value in the second: tensors, and attributes of nodes.
        obstacle: why the graphs are no pair; empty where they are.
        same_inputs: whether their inputs are of the same sizes, dynamic ones included.
        met: the value of the second graph for each that was met in the first.
        nodes: those of the first that were met.
        open: values that have to be met yet.
    """

    opsets: tuple[Mapping[str, int], Mapping[str, int]]
    values: list[tuple[str, Any, str, Any]] = field(default_factory=list)
    obstacle: str = ""
    same_inputs: bool = True
    met: dict[ir.Value, ir.Value] = field(default_factory=dict)
    nodes: set[ir.Node] = field(default_factory=set)
    open: list[tuple[ir.Value | None, ir.Value | None]] = field(default_factory=list)

    def begin(self, one: ir.Graph, other: ir.Graph) -> None:
        """Set out from the outputs of two graphs."""
        for ours, theirs in ((one.inputs, other.inputs), (one.outputs, other.outputs)):
            if len(ours) != len(theirs):
                raise _Unlike(f"{len(ours)} inputs or outputs for {len(theirs)}")
        self.met.update(zip(one.inputs, other.inputs, strict=True))
        self.open.extend(zip(one.outputs, other.outputs, strict=True))

    def pair(self, one: ir.Value | None, other: ir.Value | None) -> None:
        """Pair two values: tensors, or what two nodes of a kind compute."""
        if one is None or other is None:
            if one is not other:
                raise _Unlike(f"it differs at {_named(one or other)}")
            return
        ours, theirs = tensor_of(one), tensor_of(other)
        if ours is not None and theirs is not None:
            self.values.append((str(one.name), ours.numpy(), str(other.name), theirs.numpy()))
            return
        if one in self.met:
            if self.met[one] is not other:
                raise _Unlike(f"it differs at {_named(one)}")
            return
        self.met[one] = other
        node, twin = one.producer(), other.producer()
        if node is None or twin is None or ours is not None or theirs is not None or one.index() != other.index():
            raise _Unlike(f"it differs at {_named(one)}")
        if node not in self.nodes:
            self.nodes.add(node)
            self.pair_nodes(node, twin, f"it differs at {_named(one)}: {node.op_type}")

    def pair_nodes(self, node: ir.Node, twin: ir.Node, unlike: str) -> None:
        """Pair the attributes and the inputs of two nodes.

        Args:
            unlike: the beginning of the words for a difference.
        """
        if (node.domain, node.op_type, len(node.outputs)) != (twin.domain, twin.op_type, len(twin.outputs)):
            raise _Unlike(f"{unlike} for {twin.op_type}")
        for name in dict.fromkeys((*node.attributes, *twin.attributes)):
            values = [_attribute(n, name, o) for n, o in zip((node, twin), self.opsets, strict=True)]
            if all(isinstance(value, ir.Graph) for value in values):
                self.begin(*values)
            elif any(value is None for value in values):
                raise _Unlike(f"{unlike} with other attributes")
            else:
                ours, theirs = f"{node.op_type} {node.name}.{name}", f"{twin.name}.{name}"
                self.values.append((ours, values[0], theirs, values[1]))
        self.open.extend(zip_longest(node.inputs, twin.inputs))


def pair_graphs(first: ir.Model, second: ir.Model) -> Pairs:
    """Pair what the nodes of two graphs read and have for attributes; their names, and dead nodes, do not count."""
    shapes = ([str(value.shape) for value in model.graph.inputs] for model in (first, second))
    pairs = Pairs((first.opset_imports, second.opset_imports), same_inputs=next(shapes) == next(shapes))
    try:
        pairs.begin(first.graph, second.graph)
        while pairs.open:
            pairs.pair(*pairs.open.pop())
    except _Unlike as obstacle:
        pairs.obstacle = str(obstacle)
    return pairs


def tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor that a value is: an initializer, or what a constant node holds; None where it is computed."""
    if value.is_initializer() or (value.producer() is None and not value.is_graph_input()):
        return value.const_value
    node = value.producer()
    constant = node is not None and node.op_type == "Constant" and node.domain == ""
    return ir.convenience.get_const_tensor(value) if constant else None


def constants_of(model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a model by name, in the order of the file: initializers, and what nodes hold."""
    found = {}
    for graph in model.graphs():
        values = [*graph.initializers.values(), *(v for n in graph if n.op_type == "Constant" for v in n.outputs)]
        for value in values:
            tensor = tensor_of(value)
            if tensor is not None and tensor.dtype is not ir.DataType.STRING:
                found[str(value.name)] = tensor.numpy()
    return found


def _attribute(node: ir.Node, name: str, opsets: Mapping[str, int]) -> Any:
    """The value of an attribute, or that of the operator where the node has none."""
    if name in node.attributes:
        return _plain(node.attributes[name].value)
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return None
    if name not in schema.attributes:
        return None
    default = schema.attributes[name].default_value
    return _plain(onnx.helper.get_attribute_value(default)) if default.type else None


def _plain(value: Any) -> Any:
    """An attribute in the precision that a file keeps."""
    if isinstance(value, ir.TensorProtocol):
        return value.numpy()
    if isinstance(value, bytes):
        return value.decode()
    floats = isinstance(value, float) or (isinstance(value, list | tuple) and any(isinstance(v, float) for v in value))
    return np.asarray(value, np.float32) if floats else value


def _named(value: ir.Value | None) -> str:
    return "an input" if value is None else str(value.name)
