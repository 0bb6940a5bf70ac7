"""The facts of the nodes of a graph: words for what each does and makes, where it stands in the code, what it costs."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from repl_fx._torch import SYMBOLIC, example_of
from repl_fx.costs.counted import flops_by_node, kept_by_node
from repl_fx.graph.captured import attribute, tensors_in
from repl_fx.graph.grouping import grouped
from repl_fx.graph.kinds import dtype_name
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.passes.replace_blocks import block_of
from repl_fx.reporting.model_graph.document import NodeKind, Value
from repl_fx.running.example_inputs import ExampleInputs

_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
# Of a value that holds several.
_SHOWN = 4


# FLOPs of a forward pass and bytes kept for backward; None where the graph does not run on shapes alone.
NodeCost: TypeAlias = tuple[int | None, int | None]


def costs_by_node(gm: fx.GraphModule, inputs: ExampleInputs) -> dict[str, NodeCost]:
    """The costs of each node of a graph on some inputs, by its name."""
    flops = flops_by_node(gm, inputs)
    kept = kept_by_node(gm, inputs)
    return {
        node.name: (None if flops is None else flops.get(node, 0), None if kept is None else kept.get(node.name, 0))
        for node in gm.graph.nodes
    }


def kind_of_node(gm: fx.GraphModule, node: fx.Node) -> NodeKind:
    """The kind of a node."""
    if node.op == "call_module":
        return "synthesis" if is_synthesis(gm, node) else "layer"
    kinds: Mapping[str, NodeKind] = {"placeholder": "input", "output": "output", "get_attr": "parameter"}
    return kinds.get(node.op, "operator")


def label_of(gm: fx.GraphModule, node: fx.Node) -> str:
    """The word to show for a node: the same for nodes that play one part in the copies of a block."""
    if node.op in ("placeholder", "output"):
        return str(node.target)
    if isinstance(node.target, str):
        name = node.target.rpartition(".")[2]
        # The number of a layer in a sequence says less than its class.
        return type(gm.get_submodule(node.target)).__name__ if node.op == "call_module" and name.isdecimal() else name
    name = target_of(node)
    return name.split(".")[1] if name.startswith("aten.") else name


def target_of(node: fx.Node) -> str:
    """The operator of a node, or the path of its layer or tensor."""
    if isinstance(node.target, str):
        return node.target
    target = str(node.target)
    return target if "." in target and " " not in target else getattr(node.target, "__name__", target)


def value_of(node: fx.Node) -> Value:
    """The kind of value that a node makes."""
    found = node.meta.get("val")
    if isinstance(found, Tensor):
        shape = tuple(example_of(size) for size in found.shape)
        return Value(_words(found), shape, dtype_name(found.dtype))
    return Value(_words(found))


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return " ".join(
            filter(None, ("×".join(str(example_of(size)) for size in value.shape), dtype_name(value.dtype)))
        )
    if isinstance(value, (tuple, list)):
        inner = [_words(item) for item in value[:_SHOWN]] + ["…"] * (len(value) > _SHOWN)
        return f"({', '.join(inner)})"
    if value is None:
        return ""
    kind = SYMBOLIC.get(type(value), type(value))
    held = "".join(f" of {_words(tensor)}" for tensor in list(tensors_in(value))[:1])
    return f"{kind.__name__}{held}"


def parameters_by_node(gm: fx.GraphModule) -> dict[fx.Node, list[nn.Parameter]]:
    """The parameters of each node that reads some, each once.

    Those of other blocks, that a surrogate makes its weights from, are not among them.
    """
    found = {node: parameters for node in gm.graph.nodes if (parameters := _read_by(gm, node))}
    readers = grouped((id(parameter), _replaced(node)) for node, own in found.items() for parameter in own)
    for node, parameters in found.items():
        if (block := _replaced(node)) is not None:
            found[node] = [parameter for parameter in parameters if {*readers[id(parameter)]} == {block}]
    return found


def _read_by(gm: fx.GraphModule, node: fx.Node) -> list[nn.Parameter]:
    if node.op == "call_module":
        return list(gm.get_submodule(str(node.target)).parameters())
    found = attribute(gm, str(node.target)) if node.op == "get_attr" else None
    return [found] if isinstance(found, nn.Parameter) else []


def _replaced(node: fx.Node) -> str | None:
    """The block that a node stands in for; None for a node of the model itself."""
    return block_of(node) if "replaces" in node.meta else None


def source_of(node: fx.Node) -> str | None:
    """File and line of the code that a node was traced from."""
    trace = node.meta.get("stack_trace") or ""
    lines = list(_LINE.finditer(trace))
    # Containers of layers tell nothing.
    own = [line for line in lines if not line["file"].endswith("torch/nn/modules/container.py")] or lines
    return f"{_below_import_path(str(own[-1]['file']))}:{own[-1]['line']}" if own else None


@cache
def _below_import_path(file: str) -> str:
    """A file's path as it is imported, without where that lies on this machine."""
    path = Path(file)
    roots = [*map(Path, filter(None, sys.path)), Path.cwd()]
    below = [path.relative_to(root) for root in roots if path.is_absolute() and path.is_relative_to(root)]
    return str(min(below, key=lambda one: len(one.parts), default=path))
