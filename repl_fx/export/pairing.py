"""Two ONNX graphs side by side, from their outputs back: which constants stand in each other's place.

y = Gemm(x, fc.weight, 3.weight)      <->  y = Gemm(x, onnx::MatMul_7, b)      the names do not count
y = Gelu(z, approximate="none")       <->  y = Erf(Div(z, 1.41))               an obstacle: no pair of graphs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

# Metadata of the files that repl-fx writes: which version did.
MARK = "repl_fx"


@dataclass
class Pairs:
    """The pairs that were found in two graphs.

    Attributes:
        values: name and value in the first, name and value in the second: tensors, and attributes of nodes.
        obstacle: why the graphs are no pair; empty where they are.
        same_inputs: whether their inputs are of the same sizes, dynamic ones included.
    """

    values: list[tuple[str, Any, str, Any]] = field(default_factory=list)
    obstacle: str = ""
    same_inputs: bool = True


def pair_graphs(first: ir.Model, second: ir.Model) -> Pairs:
    """Pair what the nodes of two graphs read and have for attributes; their names, and dead nodes, do not count."""
    pairs = Pairs()
    opsets = first.opset_imports, second.opset_imports
    met: dict[ir.Value, ir.Value] = {}
    nodes: set[ir.Node] = set()
    open_: list[tuple[ir.Value | None, ir.Value | None]] = []

    def begin(one: ir.Graph, other: ir.Graph) -> None:
        for ends in ((one.inputs, other.inputs), (one.outputs, other.outputs)):
            if len(ends[0]) != len(ends[1]):
                pairs.obstacle = pairs.obstacle or f"{len(ends[0])} inputs or outputs for {len(ends[1])}"
                return
        met.update(zip(one.inputs, other.inputs, strict=True))
        open_.extend(zip(one.outputs, other.outputs, strict=True))

    shapes = ([str(value.shape) for value in model.graph.inputs] for model in (first, second))
    pairs.same_inputs = next(shapes) == next(shapes)
    begin(first.graph, second.graph)
    while open_ and not pairs.obstacle:
        one, other = open_.pop()
        if one is None or other is None:
            if one is not other:
                pairs.obstacle = f"it differs at {_named(one or other)}"
            continue
        ours, theirs = tensor_of(one), tensor_of(other)
        if ours is not None and theirs is not None:
            pairs.values.append((str(one.name), ours.numpy(), str(other.name), theirs.numpy()))
            continue
        if one in met:
            pairs.obstacle = "" if met[one] is other else f"it differs at {_named(one)}"
            continue
        met[one] = other
        node, twin = one.producer(), other.producer()
        if node is None or twin is None or ours is not None or theirs is not None or one.index() != other.index():
            pairs.obstacle = f"it differs at {_named(one)}"
            continue
        if node in nodes:
            continue
        nodes.add(node)
        if (node.domain, node.op_type, len(node.outputs)) != (twin.domain, twin.op_type, len(twin.outputs)):
            pairs.obstacle = f"it differs at {_named(one)}: {node.op_type} for {twin.op_type}"
            continue
        for name in dict.fromkeys((*node.attributes, *twin.attributes)):
            values = [_attribute(n, name, o) for n, o in zip((node, twin), opsets, strict=True)]
            if all(isinstance(value, ir.Graph) for value in values):
                begin(*values)
            elif any(value is None for value in values):
                pairs.obstacle = f"it differs at {_named(one)}: {node.op_type} with other attributes"
            else:
                pairs.values.append((f"{node.op_type} {node.name}.{name}", values[0], f"{twin.name}.{name}", values[1]))
        inputs = list(node.inputs), list(twin.inputs)
        longest = max(map(len, inputs))
        padded = ([*side, *[None] * (longest - len(side))] for side in inputs)
        open_.extend(zip(*padded, strict=True))
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
