"""A graph as tables: an integer label and the tensor arguments of every node, for vectorised comparison.

Labels carry what must be equal for two nodes to do the same: operator or module class, settings, shapes of parameters,
dtype and shape of the result. They carry no names, and not what differs between the copies of a block by design:
symbolic sizes, probabilities of dropout and drop path, and the order of size arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import takewhile
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from repl_fx._torch import SYMBOLIC, fixed_size, module_stack
from repl_fx.finding.linear_operators import matrix_like
from repl_fx.graph.captured import attribute, memory_of, tensors_in
from repl_fx.graph.notes import PASSES_THROUGH
from repl_fx.graph.roles import PROBABILITY
from repl_fx.graph.runtime import ModeSwitch

# PyTorch's name of a size that no input has.
_READ_SIZE = re.compile(r"\bu\d+\b")
# Settings of modules that grow with depth and do not change what a block is.
_PROBABILITY = re.compile(r"^(p|rate|.*drop.*|.*prob.*)$")
NONE = -1
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_Step = TypeVar("_Step")


@dataclass(frozen=True)
class NodeTable:
    """The computing nodes of a graph.

    Attributes:
        graph_module: the graph.
        nodes: nodes with tensor values, without placeholders and state, in program order; N of them. Dropout, drop
            path and Identity are left out: where their rate is 0, many models leave them out themselves.
        labels: int array (N,).
        arguments: int array (N, A): index of each tensor argument in `nodes`, seen through what is left out; below
            `NONE` for values from elsewhere (one number for each), `NONE` where there are fewer than A.
        feeders: for each node its tensor arguments as they stand in the graph, in the order of its row of `arguments`.
        sizes: int array (N,): parameter elements that a node reads.
        mixing: bool array (N,): whether one of the parameters has two dimensions or more, as weights have and norms
            have not, or a view of a flat one has.
        parameters: for each node the paths of the parameters it reads.
        index: position of each node.
        value_numbers: int array (N,): equal numbers for nodes that compute the same from inputs and constants alone,
            such as a mask or an empty cache that is made anew for each layer; 0 for all others.
    """

    graph_module: fx.GraphModule
    nodes: tuple[fx.Node, ...]
    labels: Ints
    arguments: Ints
    feeders: tuple[tuple[fx.Node, ...], ...]
    sizes: Ints
    mixing: Bools
    parameters: tuple[tuple[str, ...], ...]
    index: dict[fx.Node, int]
    value_numbers: Ints

    def same(self, one: int, other: int) -> bool:
        """Tell whether two entries of `arguments` are one value, or equal by their value numbers."""
        return one == other or (min(one, other) >= 0 and 0 != self.value_numbers[one] == self.value_numbers[other])

    def uses(self, position: int) -> tuple[Ints, Ints]:
        """The places of a node in `arguments`: rows, ascending, and columns."""
        values, rows, columns = self._uses
        low, high = np.searchsorted(values, (position, position + 1))
        return rows[low:high], columns[low:high]

    @cached_property
    def _uses(self) -> tuple[Ints, Ints, Ints]:
        rows, columns = np.nonzero(self.arguments >= 0)
        values = self.arguments[rows, columns]
        order = np.argsort(values, kind="stable")
        return values[order], rows[order], columns[order]

    @cached_property
    def paths(self) -> list[tuple[str, ...]]:
        """Module path of each node, split at the dots."""
        stacks = (module_stack(node) for node in self.nodes)
        return [tuple(stack[-1].split(".")) if stack else () for stack in stacks]


def node_table(gm: fx.GraphModule) -> NodeTable:
    """Tabulate a graph in normal form."""
    nodes = [
        node
        for node in gm.graph.nodes
        if node.op in ("call_module", "call_function") and has_tensor(node) and not passes_through(node)
    ]
    index = {node: position for position, node in enumerate(nodes)}
    labeller = _Labeller(gm, index)
    labels, feeders, parameters = zip(*map(labeller.label, nodes), strict=True) if nodes else ((), (), ())
    numbers: dict[Any, int] = {}
    read = [[labeller.parameters[name] for name in names] for names in parameters]
    arguments = np.full((len(nodes), max(map(len, feeders), default=0)), NONE, np.int64)
    for position, given in enumerate(feeders):
        arguments[position, : len(given)] = [labeller.number(passed(feeder)) for feeder in given]
    return NodeTable(
        gm,
        tuple(nodes),
        np.array([numbers.setdefault(label, len(numbers)) for label in labels], np.int64),
        arguments,
        feeders,
        np.array([sum(parameter.numel() for parameter in own) for own in read], np.int64),
        np.array(
            [any(map(matrix_like, own)) or _is_matrix(gm, node) for node, own in zip(nodes, read, strict=True)], bool
        ),
        parameters,
        index,
        _value_numbers(gm, index),
    )


def _is_matrix(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node is the view of a flat parameter as a matrix, as of the weights of e3nn's `Linear`."""
    memory, value = memory_of(node), node.meta.get("val")
    flat = attribute(gm, str(memory.target)) if memory.op == "get_attr" else None
    return isinstance(flat, nn.Parameter) and flat.ndim == 1 and isinstance(value, Tensor) and matrix_like(value)


def _value_numbers(gm: fx.GraphModule, index: dict[fx.Node, int]) -> Ints:
    """Number the values that are computed from inputs and constants alone, equal ones alike."""
    numbers: dict[Any, int] = {}
    number: dict[fx.Node, int] = {}
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            number[node] = numbers.setdefault((node.op, node.target), len(numbers) + 1)
        elif node.op == "call_function" and all(feeder in number for feeder in node.all_input_nodes):
            given = fx.node.map_arg((node.args, node.kwargs), lambda feeder: f"%{number[feeder]}")
            number[node] = numbers.setdefault((node.target, str(given)), len(numbers) + 1)
    found = np.zeros(len(index), np.int64)
    for node, position in index.items():
        found[position] = number.get(node, 0)
    # Most have none, and are compared with nothing.
    values, counts = np.unique(found, return_counts=True)
    return np.where(np.isin(found, values[counts > 1]), found, 0)


def common_path(paths: Iterable[Sequence[_Step]]) -> tuple[_Step, ...]:
    """The first steps that all of some paths share."""
    steps = (set(step) for step in zip(*paths, strict=False))
    return tuple(step.pop() for step in takewhile(lambda step: len(step) == 1, steps))


def has_tensor(node: fx.Node) -> bool:
    """Tell whether the value of a node is a tensor, or holds one."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) or next(tensors_in(value), None) is not None


def passes_through(node: fx.Node) -> bool:
    """Tell whether a node returns its one argument untouched in evaluation mode: Dropout, drop path, Identity."""
    return bool(PASSES_THROUGH.of(node)) and len(node.all_input_nodes) == 1


def passed(node: fx.Node) -> fx.Node:
    """The value that a node passes through; the node itself where it computes one."""
    while passes_through(node):
        node = node.all_input_nodes[0]
    return node


class _Labeller:
    def __init__(self, gm: fx.GraphModule, index: dict[fx.Node, int]) -> None:
        self.gm = gm
        self.index = index
        self.elsewhere: dict[fx.Node, int] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self.modules: dict[str, tuple[Any, tuple[str, ...]]] = {}

    @cached_property
    def read_sizes(self) -> dict[str, fx.Node]:
        """The sizes that are read from data, by name, each with the tensor that has it or that it is an item of."""
        found: dict[str, fx.Node] = {}
        for node in self.gm.graph.nodes:
            value = node.meta.get("val")
            for name in _READ_SIZE.findall(str(value.shape if isinstance(value, Tensor) else value)):
                found.setdefault(name, node if has_tensor(node) else next(iter(node.all_input_nodes), node))
        return found

    def label(self, node: fx.Node) -> tuple[Any, tuple[fx.Node, ...], tuple[str, ...]]:
        """Label, tensor arguments and parameters of one node."""
        row: list[fx.Node] = []
        names: list[str] = []
        target: Any = node.target
        if node.op == "call_module":
            target, own = self.module(str(node.target))
            names.extend(own)
        skip = PROBABILITY.get(node.target)
        args = tuple(self.argument(a, row, names) for i, a in enumerate(node.args) if i != skip)
        kwargs = tuple((k, self.argument(v, row, names)) for k, v in sorted(node.kwargs.items()) if k != "dropout_p")
        return (target, args, kwargs, _erased(node.meta.get("val"))), tuple(row), tuple(names)

    def argument(self, value: Any, row: list[fx.Node], names: list[str]) -> Any:
        """The part of a label for one argument; tensors go to the row."""
        if isinstance(value, fx.Node):
            source = passed(value)
            if source.op == "get_attr":
                return self.state(str(source.target), names)
            if source in self.index or (source.op == "placeholder" and isinstance(source.meta.get("val"), Tensor)):
                row.append(value)
                return "tensor"
            # Size arithmetic is shared and reordered freely by the exporter; its expression is what matters. A size
            # that is read from data has a number of its own in each block, and is told by the data.
            size = value.meta.get("val", value.name)
            if type(size) not in SYMBOLIC:
                return ("symbol", str(size))
            row += (self.read_sizes[name] for name in _READ_SIZE.findall(str(size)))
            return ("symbol", _READ_SIZE.sub("u", str(size)))
        if isinstance(value, (tuple, list)):
            return tuple(self.argument(item, row, names) for item in value)
        if isinstance(value, dict):
            return tuple((key, self.argument(item, row, names)) for key, item in value.items())
        if isinstance(value, slice):
            return tuple(self.argument(item, row, names) for item in (value.start, value.stop, value.step))
        return (type(value).__name__, str(value) if isinstance(value, float) else value)

    def number(self, node: fx.Node) -> int:
        """The entry of a value in `NodeTable.arguments`."""
        if node in self.index:
            return self.index[node]
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
            self.parameters[path] = value
        return ("state", tuple(value.shape), value.dtype, isinstance(value, nn.Parameter))

    def module(self, path: str) -> tuple[Any, tuple[str, ...]]:
        """The part of a label for a module, and its parameters."""
        if path not in self.modules:
            module = self.gm.get_submodule(path)
            own = {f"{path}.{name}": parameter for name, parameter in module.named_parameters()}
            self.parameters |= own
            named = [*module.named_parameters(), *module.named_buffers()]
            state = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named]
            structure: Any = _settings(module)
            if isinstance(module, ModeSwitch):
                structure = tuple(_shape_of(g.graph) for g in module.versions)
            self.modules[path] = ((type(module), structure, tuple(state)), tuple(own))
        return self.modules[path]


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """The plain attributes that say how a module computes, without modes, probabilities and bookkeeping."""
    return tuple(
        (name, str(value) if isinstance(value, (tuple, list, float)) else value)
        for name, value in sorted(item for item in vars(module).items() if _is_setting(item[0]))
        if isinstance(value, (bool, int, float, str, tuple, list, type(None), torch.dtype))
    )


@cache
def _is_setting(name: str) -> bool:
    """Tell whether an attribute of this name says how a module computes; few names are asked for, and often."""
    bookkeeping = name.startswith("_") or name in ("training", "layer_idx", "layer_id", "index")
    return not bookkeeping and not _PROBABILITY.match(name)


def _shape_of(graph: fx.Graph) -> tuple[Any, ...]:
    """Structure of a mode switch's version: operators, their settings and where their arguments come from."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    return tuple((str(n.target), str(fx.node.map_arg((n.args, n.kwargs), lambda a: position[a]))) for n in graph.nodes)


def _erased(value: Any) -> Any:
    """The part of a label for a value: dtype and shape, symbolic sizes erased."""
    if isinstance(value, Tensor):
        return (value.dtype, tuple(fixed_size(size) for size in value.shape))
    if isinstance(value, (tuple, list)):
        return tuple(_erased(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _erased(item)) for key, item in value.items())
    return type(value).__name__
