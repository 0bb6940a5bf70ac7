"""The outside of a captured graph: argument names, constant arguments, nested inputs and outputs.

The captured graph takes the arguments its source takes, by the same names and in the same order, and returns the same
structure, built from plain nodes: no generated code besides fx's own.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from repl_fx._torch import children_of, fixed_size, pytree
from repl_fx.errors import Untraceable
from repl_fx.graph.pickling import structure_as_data
from repl_fx.graph.runtime import check_constant, check_items, check_keys, check_shape
from repl_fx.running.example_inputs import ExampleInputs

# The classes that fx makes of the lists and mappings in its graphs.
_PLAIN: dict[Any, type] = {immutable_list: list, immutable_dict: dict}
# The names of what nearly all code of graphs calls, which an argument of that name would hide.
_CODE_NAMES = ("torch", "inf", "nan")
# Values that fx can write into generated code.
_WRITABLE = (bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True, eq=False)
class BoundInputs:
    """Example inputs with the names that they have in the signature of a forward.

    Attributes:
        arguments: their values, or defaults where they were not passed, by name (`args_2` for the third of a `*args`),
            in the order of the signature.
        defaults: the values that the forward takes for those of them that a call leaves out.
    """

    inputs: ExampleInputs
    arguments: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)

    def located(self, keywords: Sequence[str]) -> list[tuple[str, tuple[Any, ...], Any]]:
        """Argument name, path inside it and value of each flattened leaf, the keyword arguments in this order."""
        positional = list(self.arguments)[: len(self.inputs.args)]
        given = [
            *zip(positional, self.inputs.args, strict=True),
            *((name, self.inputs.kwargs[name]) for name in keywords),
        ]
        return [
            (name, tuple(path), leaf) for name, value in given for path, leaf in pytree.tree_flatten_with_path(value)[0]
        ]


def bind_arguments(model: nn.Module, inputs: ExampleInputs) -> BoundInputs:
    """Name the example inputs in the order of the forward's signature.

    Arguments that were not passed but stand before one that was are bound to their defaults, so that positional calls
    mean the same for the graph as for the source.

    Raises:
        TypeError: the forward does not take these arguments.
    """
    # A trace would read one value wherever a tensor stands, also where a call gives others.
    inputs = inputs.apart(chain(model.parameters(), model.buffers()))
    signature = inspect.signature(model.forward)
    given = signature.bind(*inputs.args, **inputs.kwargs).arguments
    named = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    last = max((i for i, parameter in enumerate(named) if parameter.name in given), default=-1)
    bound: dict[str, Any] = {}
    for parameter in named[: last + 1]:
        name, value = parameter.name, given.get(parameter.name, parameter.default)
        if parameter.kind is parameter.VAR_POSITIONAL:
            bound.update({f"{name}_{i}": one for i, one in enumerate(given.get(name, ()))})
        elif value is not parameter.empty:
            bound[name] = value
    bound.update({name: value for name, value in inputs.kwargs.items() if name not in bound})
    # What came through `**kwargs` may be left out, too.
    defaults = dict.fromkeys(inputs.kwargs.keys() - signature.parameters.keys(), ...)
    defaults |= {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}
    return BoundInputs(inputs, bound, defaults)


def left_out(model: nn.Module, graph: fx.Graph) -> dict[str, tuple[int | None, Any]]:
    """The arguments of a forward that a graph of it has not: where each stands in a positional call, and its default.

    The default is `...` where it is none that a graph could hold.
    """
    taken = [str(node.target) for node in graph.find_nodes(op="placeholder")]
    found: dict[str, tuple[int | None, Any]] = {}
    for place, (name, parameter) in enumerate(inspect.signature(model.forward).parameters.items()):
        default = parameter.default
        if name not in taken and default is not parameter.empty:
            by_place = None if parameter.kind is parameter.KEYWORD_ONLY else place
            found[name] = (by_place, default if is_writable(default) else ...)
    return found


class InputNodes:
    """Placeholders for the arguments of a graph, with nodes that reach into nested ones.

    Args:
        graph: an empty graph; the placeholders become its first nodes.
        inputs: the arguments, from `bind_arguments`. One that a call of the graph leaves out takes the default of the
            source, as there, which the graph refuses where it was captured with another value.

    Raises:
        Untraceable: an argument is neither a tensor nor a constant that a graph can hold, or hides a name of its code.
    """

    def __init__(self, graph: fx.Graph, inputs: BoundInputs) -> None:
        self.graph = graph
        self.roots: dict[str, fx.Node] = {}
        self._reached: dict[tuple[Any, ...], fx.Node] = {}
        optional = False
        for name, given in inputs.arguments.items():
            if name in _CODE_NAMES:
                raise Untraceable(f"argument {name!r} has a name that the code of a graph needs")
            constant = not any(isinstance(leaf, (Tensor, torch.SymInt)) for leaf in pytree.tree_leaves(given))
            has_default = name in inputs.defaults and is_writable(inputs.defaults[name])
            # Python wants every argument after an optional one to be optional too.
            optional = optional or has_default or inputs.defaults.get(name) is ...
            default: tuple[Any, ...] = (inputs.defaults[name] if has_default else ...,) if optional else ()
            node = self.roots[name] = graph.create_node("placeholder", name, args=default)
            node.meta["val"] = given if constant else None
        for name, given in inputs.arguments.items():
            self._check_containers(name, (), given)
            for path, value in pytree.tree_flatten_with_path(given)[0]:
                if not isinstance(value, Tensor):
                    if not is_writable(value):
                        raise Untraceable(f"{words_for(name, path)} is a {type(value).__name__}")
                    node = self._reach(name, path)
                    node.meta["val"] = value
                    self._check(check_constant, node, value, words_for(name, path))

    def at(self, name: str, path: Sequence[Any], value: Any) -> fx.Node:
        """The node of the tensor at `path` inside argument `name`; `value` is its fake value.

        The graph refuses tensors whose sizes differ where the trace has fixed them.
        """
        node = self._reach(name, path)
        node.meta["val"] = value
        self._check(check_shape, node, tuple(fixed_size(size) for size in value.shape), words_for(name, path))
        return node

    def _check_containers(self, name: str, path: tuple[Any, ...], value: Any) -> None:
        """Check the lengths of the sequences and the keys of the mappings in an argument, from the outside."""
        if pytree.tree_structure(value).is_leaf():
            return
        if isinstance(value, Mapping):
            self._check(check_keys, self._reach(name, path), tuple(value), words_for(name, path))
        elif isinstance(value, Sequence):
            self._check(check_items, self._reach(name, path), len(value), words_for(name, path))
        for step, child in pytree.tree_flatten_with_path(value, is_leaf=lambda inner: inner is not value)[0]:
            self._check_containers(name, (*path, *step), child)

    def _check(self, function: Callable[..., None], *given: Any) -> None:
        self.graph.call_function(function, given).meta["val"] = None

    def _reach(self, name: str, path: Sequence[Any]) -> fx.Node:
        node = self.roots[name]
        for depth, step in enumerate(path, start=1):
            key = (name, *path[:depth])
            if key not in self._reached:
                self._reached[key] = step_into(self.graph, node, step)
                self._reached[key].meta["val"] = None
            node = self._reached[key]
        return node


def step_into(graph: fx.Graph, node: fx.Node, step: Any) -> fx.Node:
    """A new node for the part of a nested value that one step of a pytree path leads to."""
    if isinstance(step, pytree.SequenceKey):
        return graph.call_function(operator.getitem, (node, step.idx))
    if isinstance(step, pytree.MappingKey):
        return graph.call_function(operator.getitem, (node, step.key))
    if isinstance(step, pytree.GetAttrKey):
        return graph.call_function(getattr, (node, step.name))
    raise Untraceable(f"a value nested by {type(step).__name__}")


def words_for(name: str, path: Sequence[Any]) -> str:
    """An argument, or the place inside a nested one, in the words of messages."""
    return f"argument {name!r}" + (f" at {pytree.keystr(tuple(path))}" if path else "")


class PackOutput:
    """Builds an output that is no tuple, list or dict (a dataclass, a Hugging Face ModelOutput) from its leaves."""

    def __init__(self, structure: pytree.TreeSpec) -> None:
        self.structure = structure
        self.__name__ = f"pack_{getattr(structure.type, '__name__', 'output')}"

    def __call__(self, *leaves: Any) -> Any:
        """The structured output."""
        return pytree.tree_unflatten(leaves, self.structure)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackOutput) and self.structure == other.structure

    def __hash__(self) -> int:
        return hash((self.__name__, self.structure.num_leaves))

    def __reduce__(self) -> tuple[Any, ...]:
        return PackOutput, (structure_as_data(self.structure),)


def leaf_paths(structure: pytree.TreeSpec) -> list[tuple[Any, ...]]:
    """The place of each leaf of a structure, in order: names of attributes and keys, numbers of items."""
    if structure.is_leaf():
        return [()]
    children = children_of(structure)
    steps: Any = getattr(structure.context, "held", structure.context)
    if not isinstance(steps, (list, tuple)) or len(steps) != len(children):
        steps = range(len(children))
    return [(step, *path) for step, child in zip(steps, children, strict=True) for path in leaf_paths(child)]


def output_of(graph: fx.Graph, leaves: Sequence[Any], structure: pytree.TreeSpec) -> Any:
    """An fx argument that rebuilds a nested output from its flattened leaves, adding nodes where it must."""
    if structure.is_leaf():
        return leaves[0]
    children = children_of(structure)
    kind = _PLAIN.get(structure.type, structure.type)
    if kind in (tuple, list, dict):
        following = iter(leaves)
        built = [output_of(graph, list(islice(following, child.num_leaves)), child) for child in children]
        if kind is dict:
            return dict(zip(structure.context, built, strict=True))
        return kind(built)
    node = graph.call_function(PackOutput(structure), tuple(leaves))
    node.meta["val"] = None
    return node


def is_writable(value: Any) -> bool:
    """Tell whether a constant argument can be part of a graph's code."""
    if type(value) in (tuple, list, dict):
        return all(map(is_writable, value.values() if type(value) is dict else value))
    # Those of classes derived from these (an `IntEnum`, a number of numpy) are written as no code of a graph.
    return value is None or type(value) in _WRITABLE
