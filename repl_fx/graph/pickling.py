"""A graph as plain data: what a pickle holds in place of nodes, operators and fake values.

    node           -> NodeData: name, operator, arguments, meta
    aten.relu      -> its name behind `torch.ops.`
    a fake tensor  -> sizes, strides, dtype, device and the mode it is of
    a size `2*s0`  -> the expression and the sizes it is of: their values in the example, ranges and guards

An operator or a fake value is pickled as an object that unpickles as the thing itself, so that values of one fake
mode are of one mode again, in all graphs of a pickle. All else is pickled as it is.

Operators and sizes are those of one version of torch; where another version has not what a pickle names, unpickling
says so. What is for other versions is an artifact (`repl_fx.save`).
"""

from __future__ import annotations

import copy
import pickle
import pkgutil
import random
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from repl_fx._torch import (
    SYMBOLIC,
    FakeTensor,
    FakeTensorMode,
    ShapeEnv,
    children_of,
    expression_of,
    fake_of,
    known_of_sizes,
    leaf_structure,
    memory_of,
    operator_name,
    pytree,
    settings_of_mode,
    sizes_knowing,
    symbolic_number,
)
from repl_fx.graph.boundaries import BOUNDARIES

# Modules whose functions are methods of one generator: a pickle of such a method would hold a generator of its own.
_GENERATORS = (random, np.random)


@dataclass(frozen=True, eq=False)
class NodeData:
    """A node; arguments hold the data of nodes where they were nodes."""

    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any
    type: Any
    meta: dict[str, Any]


@dataclass(frozen=True)
class GraphData:
    """A graph: its nodes in program order, and the writer of its code, where that is not fx's usual one."""

    nodes: tuple[NodeData, ...]
    codegen: fx.graph.CodeGen | None

    @classmethod
    def of(cls, graph: fx.Graph) -> GraphData:
        """The data of a graph."""
        nodes: dict[fx.Node, NodeData] = {}

        def argument(value: Any) -> Any:
            return nodes[value] if isinstance(value, fx.Node) else as_data(value)

        for node in graph.nodes:
            args, kwargs = (fx.node.map_aggregate(given, argument) for given in (node.args, node.kwargs))
            target = node.target if isinstance(node.target, str) else function_as_data(node.target)
            meta = {key: _meta_as_data(key, value) for key, value in node.meta.items() if key != BOUNDARIES}
            nodes[node] = NodeData(node.name, node.op, target, args, kwargs, node.type, meta)
        codegen: Any = copy.copy(graph._codegen)
        # The function that rewrites the code's lines is set when the code is written.
        codegen._body_transformer = None
        if hasattr(codegen, "pytree_info"):
            specs = {name: getattr(codegen.pytree_info, name) for name in ("in_spec", "out_spec")}
            held = {name: structure_as_data(spec) for name, spec in specs.items() if spec is not None}
            codegen.pytree_info = codegen.pytree_info._replace(**held)
        return cls(tuple(nodes.values()), None if type(codegen) is fx.graph.CodeGen else codegen)

    def make(self) -> fx.Graph:
        """A graph of these nodes."""
        graph = fx.Graph()
        made: dict[NodeData, fx.Node] = {}

        def argument(value: Any) -> Any:
            return made[value] if isinstance(value, NodeData) else value

        for node in self.nodes:
            args, kwargs = (fx.node.map_aggregate(given, argument) for given in (node.args, node.kwargs))
            made[node] = graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
            made[node].meta = dict(node.meta)
        if self.codegen is not None:
            graph.set_codegen(self.codegen)
        return graph


# A parameter or buffer that shows memory of another one, which `pickle` keeps where the two are one object alone: the
# name of the other one; offset, size and stride in its memory.
View = tuple[str, int, tuple[int, ...], tuple[int, ...]]


def views_in(module: nn.Module) -> dict[str, View]:
    """The parameters and buffers of a module, by name, that share memory with another one and are not one tensor."""
    first: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, View] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_meta
        if not plain or not tensor.untyped_storage().nbytes():
            continue
        base, shown = first.setdefault(memory_of(tensor), (name, tensor))
        if shown is not tensor:
            found[name] = base, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())
    return found


def share_views_(module: nn.Module, views: Mapping[str, View]) -> None:
    """Let parameters and buffers of a module show the memory of others again."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, (base, *place) in views.items():
        tensor, memory = tensors[name], tensors[base].untyped_storage()
        if not tensor.is_meta and memory.nbytes():
            empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            tensor.data = empty.set_(memory, *place)


def as_data(value: Any) -> Any:
    """A value without fake tensors, fake modes and symbolic numbers in it, at any depth that pytree opens.

    Unpickled, it is again what it was.
    """
    if isinstance(value, FakeTensor):
        return _fake_as_data(value)
    if isinstance(value, FakeTensorMode):
        return _mode(value)
    if type(value) in SYMBOLIC:
        return _number_as_data(value)
    if isinstance(value, torch.memory_format):
        # torch.save writes the module torch for it, which nothing can.
        return _Rebuilt(pkgutil.resolve_name, f"torch:{str(value).removeprefix('torch.')}")
    if type(value) in (tuple, list):
        return type(value)(map(as_data, value))
    if isinstance(value, (Tensor, str, int, float)) or value is None:
        return value
    leaves, structure = pytree.tree_flatten(value)
    if structure.is_leaf():
        return value
    held = list(map(as_data, leaves))
    if all(a is b for a, b in zip(held, leaves, strict=True)):
        return value
    return _Rebuilt(pytree.tree_unflatten, held, structure_as_data(structure))


def function_as_data(function: Any) -> Any:
    """The form of a node's target in a pickle: an operator by its name, other functions as they are."""
    name = operator_name(function)
    if name is not None:
        return _Rebuilt(_operator, name)
    name = getattr(function, "__name__", "")
    places: list[ModuleType] = [*_GENERATORS]
    if "<locals>" in getattr(function, "__qualname__", "") and function.__module__ in sys.modules:
        # Python would look for `boolean_dispatch.<locals>.fn`, which `torch.nn.functional.max_pool2d` is called.
        places.append(sys.modules[function.__module__])
    found = next((place for place in places if getattr(place, name, None) is function), None)
    return function if found is None else _Rebuilt(pkgutil.resolve_name, f"{found.__name__}:{name}")


def structure_as_data(structure: pytree.TreeSpec) -> Any:
    """The form of a nested value's structure in a pickle."""
    if structure.is_leaf():
        return _Rebuilt(leaf_structure)
    children = list(map(structure_as_data, children_of(structure)))
    return _Rebuilt(pytree.TreeSpec, structure.type, structure.context, children)


class _Rebuilt:
    """Stands in a pickle for what `make(*given)` makes."""

    def __init__(self, make: Callable[..., Any], *given: Any) -> None:
        self.make = make
        self.given = given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.make, self.given


def _fake_as_data(tensor: FakeTensor) -> _Rebuilt:
    if tensor.layout is not torch.strided:
        raise pickle.PicklingError(f"a value of layout {tensor.layout} cannot be pickled")
    mode, size, stride, *rest = makings_of(tensor)
    return _Rebuilt(fake_tensor, _mode(mode), as_data(size), as_data(stride), *rest)


def _number_as_data(number: Any) -> _Rebuilt:
    try:
        sizes, *words = expression_of(number)
    except TypeError as problem:
        raise pickle.PicklingError(f"a graph cannot be pickled: {problem}") from problem
    return _Rebuilt(symbolic_number, type(number), _sizes(sizes), *words)


class _Shared(_Rebuilt):
    """Stands for something that many values refer to, and that is to be one thing again."""

    def __init__(self, original: Any, make: Callable[..., Any], *given: Any) -> None:
        super().__init__(make, *given)
        # For as long as it is in use here, no other thing gets its identity.
        self.original = original
        _shared[id(original)] = self


# A pickle writes an object once: one that stands for the same thing must be the same for all graphs of a pickle.
_shared: weakref.WeakValueDictionary[int, _Shared] = weakref.WeakValueDictionary()


def _mode(mode: Any) -> _Shared:
    sizes: Any = None if mode.shape_env is None else _sizes(mode.shape_env)
    make = partial(FakeTensorMode, **settings_of_mode(mode), shape_env=sizes)
    return _shared.get(id(mode)) or _Shared(mode, make)


def _sizes(sizes: ShapeEnv) -> _Shared:
    known = _shared.get(id(sizes))
    return known or _Shared(sizes, _known_sizes, str(torch.__version__), known_of_sizes(sizes))


def _operator(name: str) -> Any:
    found: Any = torch.ops
    for step in name.split("."):
        try:
            found = getattr(found, step)
        except (AttributeError, RuntimeError):
            raise pickle.UnpicklingError(
                f"the graph calls the operator {name}, which torch {torch.__version__} has not; "
                "import the library that defines it first"
            ) from None
    return found


def _known_sizes(version: str, known: Mapping[str, Any]) -> ShapeEnv:
    try:
        return sizes_knowing(known)
    except (TypeError, AttributeError, KeyError) as problem:
        raise pickle.UnpicklingError(
            f"a graph with dynamic sizes was pickled with torch {version}, and torch {torch.__version__} keeps them "
            f"otherwise ({problem}); use repl_fx.save and repl_fx.load between versions"
        ) from problem


def makings_of(tensor: Any) -> tuple[Any, ...]:
    """The makings of a fake tensor, as `fake_tensor` takes them."""
    # Numbers of a size that is known would be symbolic no more.
    sizes = tuple(tensor.shape), tuple(tensor.stride())
    return tensor.fake_mode, *sizes, tensor.dtype, tensor.device, tensor.requires_grad and tensor.is_leaf


def fake_tensor(
    mode: Any, size: Any, stride: Any, dtype: torch.dtype, device: torch.device, requires_grad: bool
) -> Tensor:
    """A fake tensor of its makings."""
    meta = torch.empty_strided(size, stride, dtype=dtype, device="meta", requires_grad=requires_grad)
    return fake_of(mode, meta, device)


def _meta_as_data(key: str, value: Any) -> Any:
    if type(value) is str:
        # Many nodes are of one line of the source.
        return sys.intern(value)
    if key != "nn_module_stack" or not value:
        return as_data(value)
    # Paths and classes of the source's modules, which are called by name: the classes need not be there any more.
    return {
        name: tuple(f"{e.__module__}.{e.__qualname__}" if isinstance(e, type) else e for e in entry)
        for name, entry in value.items()
    }
