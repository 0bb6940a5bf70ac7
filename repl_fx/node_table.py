"""A graph as tables: an integer label and the tensor arguments of every node, for vectorised comparison.

Labels carry what must be equal for two nodes to do the same: operator or module class, settings, shapes of parameters,
dtype and shape of the result. They carry no names, and not what differs between the copies of a block by design:
symbolic sizes, probabilities of dropout and drop path, and the order of size arithmetic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from repl_fx._torch import fixed_size, module_stack
from repl_fx.graph import attribute, tensors_in
from repl_fx.runtime import ModeSwitch

# Settings of modules that grow with depth and do not change what a block is.
_PROBABILITY = re.compile(r"^(p|rate|.*drop.*|.*prob.*)$")
# The same for operators: position of the argument that is a probability.
_PROBABILITY_ARGUMENT: dict[Any, int] = {
    torch.ops.aten.dropout.default: 1,
    torch.ops.aten.dropout_.default: 1,
    torch.ops.aten.feature_dropout.default: 1,
    torch.ops.aten.alpha_dropout.default: 1,
    torch.ops.aten.bernoulli.p: 1,
    torch.ops.aten.bernoulli_.float: 1,
    torch.ops.aten.scaled_dot_product_attention.default: 4,
}
NONE = -1


@dataclass(frozen=True)
class NodeTable:
    """The computing nodes of a graph.

    Attributes:
        nodes: nodes with tensor values, without placeholders and state, in program order; N of them.
        labels: int array (N,).
        arguments: int array (N, A): index of each tensor argument in `nodes`; below `NONE` for values from elsewhere
            (one number for each), `NONE` where there are fewer than A.
        sizes: int array (N,): parameter elements that a node reads.
        parameters: for each node the paths of the parameters it reads.
        index: position of each node.
    """

    nodes: tuple[fx.Node, ...]
    labels: npt.NDArray[np.int64]
    arguments: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    parameters: tuple[tuple[str, ...], ...]
    index: dict[fx.Node, int]

    def path(self, position: int) -> tuple[str, ...]:
        """Module path of a node, split at the dots."""
        stack = module_stack(self.nodes[position])
        return tuple(stack[-1].split(".")) if stack else ()


def node_table(gm: fx.GraphModule) -> NodeTable:
    """Tabulate a graph in normal form."""
    nodes = [n for n in gm.graph.nodes if n.op in ("call_module", "call_function") and _has_tensor(n.meta.get("val"))]
    index = {node: position for position, node in enumerate(nodes)}
    labeller = _Labeller(gm, index)
    known: dict[Any, int] = {}
    labels = np.empty(len(nodes), np.int64)
    rows: list[list[int]] = []
    sizes = np.zeros(len(nodes), np.int64)
    parameters: list[tuple[str, ...]] = []
    for position, node in enumerate(nodes):
        label, row, names = labeller.label(node)
        labels[position] = known.setdefault(label, len(known))
        rows.append(row)
        parameters.append(names)
        sizes[position] = sum(labeller.elements[name] for name in names)
    width = max((len(row) for row in rows), default=0)
    arguments = np.full((len(nodes), width), NONE, np.int64)
    for position, row in enumerate(rows):
        arguments[position, : len(row)] = row
    return NodeTable(tuple(nodes), labels, arguments, sizes, tuple(parameters), index)


class _Labeller:
    def __init__(self, gm: fx.GraphModule, index: dict[fx.Node, int]) -> None:
        self.gm = gm
        self.index = index
        self.elsewhere: dict[fx.Node, int] = {}
        self.elements: dict[str, int] = {}
        self.modules: dict[str, tuple[Any, tuple[str, ...]]] = {}

    def label(self, node: fx.Node) -> tuple[Any, list[int], tuple[str, ...]]:
        """Label, argument row and parameters of one node."""
        row: list[int] = []
        names: list[str] = []
        target: Any = node.target
        if node.meta.get("passes_through"):
            # Dropout, drop path and Identity: the first block's rate of 0 often is an Identity.
            target = "passes through"
        elif node.op == "call_module":
            target, own = self.module(str(node.target))
            names.extend(own)
        skip = _PROBABILITY_ARGUMENT.get(node.target)
        args = tuple(self.argument(a, row, names) for i, a in enumerate(node.args) if i != skip)
        kwargs = tuple((k, self.argument(v, row, names)) for k, v in sorted(node.kwargs.items()) if k != "dropout_p")
        return (target, args, kwargs, _erased(node.meta.get("val"))), row, tuple(names)

    def argument(self, value: Any, row: list[int], names: list[str]) -> Any:
        """What a label says of one argument; tensors go to the row."""
        if isinstance(value, fx.Node):
            if value.op == "get_attr":
                return self.state(str(value.target), names)
            if value in self.index:
                row.append(self.index[value])
                return "tensor"
            if value.op == "placeholder" and isinstance(value.meta.get("val"), Tensor):
                row.append(self.outside(value))
                return "tensor"
            # Size arithmetic is shared and reordered freely by the exporter; its expression is what matters.
            return ("symbol", str(value.meta.get("val", value.name)))
        if isinstance(value, (tuple, list)):
            return tuple(self.argument(item, row, names) for item in value)
        if isinstance(value, dict):
            return tuple((key, self.argument(item, row, names)) for key, item in value.items())
        if isinstance(value, slice):
            return tuple(self.argument(item, row, names) for item in (value.start, value.stop, value.step))
        return (type(value).__name__, str(value) if isinstance(value, float) else value)

    def outside(self, node: fx.Node) -> int:
        return self.elsewhere.setdefault(node, NONE - 1 - len(self.elsewhere))

    def state(self, path: str, names: list[str]) -> Any:
        value = attribute(self.gm, path)
        if isinstance(value, nn.Module):
            label, own = self.module(path)
            names.extend(own)
            return label
        if not isinstance(value, Tensor):
            return ("flag",)
        if isinstance(value, nn.Parameter):
            names.append(path)
            self.elements[path] = value.numel()
        return ("state", tuple(value.shape), value.dtype, isinstance(value, nn.Parameter))

    def module(self, path: str) -> tuple[Any, tuple[str, ...]]:
        """What a label says of a module, and its parameters."""
        if path not in self.modules:
            module = self.gm.get_submodule(path)
            names = []
            for name, parameter in module.named_parameters():
                names.append(f"{path}.{name}")
                self.elements[f"{path}.{name}"] = parameter.numel()
            state = [(n, tuple(t.shape), t.dtype) for n, t in [*module.named_parameters(), *module.named_buffers()]]
            structure: Any = _settings(module)
            if isinstance(module, ModeSwitch):
                structure = tuple(_shape_of(g.graph) for g in (module.when_training, module.when_evaluating))
            self.modules[path] = ((type(module), structure, tuple(state)), tuple(names))
        return self.modules[path]


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """The plain attributes that say how a module computes, without modes, probabilities and bookkeeping."""
    return tuple(
        (name, value if not isinstance(value, (list, float)) else str(value))
        for name, value in sorted(vars(module).items())
        if not name.startswith("_")
        and name not in ("training", "layer_idx", "layer_id", "index")
        and not _PROBABILITY.match(name)
        and isinstance(value, (bool, int, float, str, tuple, list, type(None), torch.dtype))
        and _hashable(value if not isinstance(value, list) else str(value))
    )


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _shape_of(graph: fx.Graph) -> tuple[Any, ...]:
    """Structure of a mode switch's version: operators, their settings and where their arguments come from."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    return tuple((str(n.target), str(fx.node.map_arg((n.args, n.kwargs), lambda a: position[a]))) for n in graph.nodes)


def _erased(value: Any) -> Any:
    """What a label says of a value: dtype and shape, symbolic sizes erased."""
    if isinstance(value, Tensor):
        return (value.dtype, tuple(fixed_size(size) for size in value.shape))
    if isinstance(value, (tuple, list)):
        return tuple(_erased(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _erased(item)) for key, item in value.items())
    return type(value).__name__


def _has_tensor(value: Any) -> bool:
    return next(tensors_in(value), None) is not None
