"""What makes two calls of modules alike: a trace of the one is then a trace of the other, with other parameters.

Alike are

- the modules: class for class, with the same names, hooks and modes, and with parameters and buffers of the same kinds
  that are shared in the same way (`structure_of`);
- their attributes, but for those that the traced call did not read: the number of a layer, where no cache asks for it;
  and but for probabilities of dropout, which a call of the layer reads each time it runs (`differences`, `tolerated`);
- what the code of the modules names besides: globals, closures, objects (`PythonState`);
- the arguments: the same structure, plain values and sizes, symbols for symbols; dtypes, strides; which of them are one
  object, and which share memory (`kind_of_call`);
- the settings of torch that a region makes: gradients, autocast, kernels of attention.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import FakeTensor, is_unbacked, memory_of, pytree
from repl_fx.graph.known_shapes import metadata
from repl_fx.running.holders import CONTAINERS, OWN_ATTRIBUTES, attributes_of
from repl_fx.running.opaque_outputs import PLAIN
from repl_fx.tracing.attributes_aside import AttributesAside
from repl_fx.tracing.leaf_calls import attention_kernels, held_by
from repl_fx.tracing.leaves import is_leaf

# An attribute of a module inside another: the path of the former in the latter, and the name.
Spot = tuple[str, str]
# The attributes of a module and of those inside, by path and name.
Attributes = Mapping[str, Mapping[str, Any]]
_HOOKS = tuple(name for name in OWN_ATTRIBUTES if name.endswith("_hooks"))
# A trace puts these aside or in itself.
_OF_THE_TRACE = frozenset({"training", "_call_impl"})
_VALUES = (*PLAIN, torch.Size, torch.device, torch.dtype, torch.layout, torch.memory_format, type, range, slice)
_DEEPEST = 6
# Each is marked in the trace, at the cost of an operator. A layer of a DenseNet takes the results of all before it.
_MOST_TENSORS = 8


def structure_of(module: nn.Module, owners: Mapping[int, int]) -> Any:
    """The classes, names, tensors and hooks of a module and of those inside, as something to compare and to hash.

    Args:
        owners: how many names each tensor and each module has in the whole model, by `id`.
    """
    structure: list[Any] = []
    seen: dict[int, str] = {}
    inside: dict[int, int] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        inside[id(part)] = inside.get(id(part), 0) + 1
        structure.append((path, seen.setdefault(id(part), path), type(part)))
        hooks = [hook for name in _HOOKS for hook in (getattr(part, name, None) or {}).values()]
        if hooks and not _only_capturing(hooks, wanted=False):
            structure.append(tuple(map(id, hooks)))
        for name, tensor in held_by(part).items():
            where = f"{path}.{name}"
            if tensor is None:
                structure.append((where, name in part._parameters))
                continue
            inside[id(tensor)] = inside.get(id(tensor), 0) + 1
            structure.append((where, seen.setdefault(id(tensor), where), name in part._non_persistent_buffers_set))
            structure.append((type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad))
            structure.append(tensor.stride() if tensor.layout is torch.strided else tensor.layout)
    # What the model has elsewhere too is to be the very same.
    shared = [(seen[number], number) for number, count in inside.items() if owners.get(number, 0) > count]
    return tuple(structure), tuple(shared)


def names_of(model: nn.Module) -> dict[int, int]:
    """The number of names of each tensor and each module of a model, by `id`."""
    counts: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        for named in (module, *held_by(module).values()):
            counts[id(named)] = counts.get(id(named), 0) + 1
    return counts


def hands_out(module: nn.Module) -> bool:
    """Tell whether transformers collects inner values of a module in the call that runs: each call has its own."""
    hooks = (hook for part in module.modules() for hook in part._forward_hooks.values())
    return any(_only_capturing([hook], wanted=True) for hook in hooks)


def _only_capturing(hooks: Iterable[Any], *, wanted: bool) -> bool:
    """Tell whether hooks are those by which transformers hands out inner values, and whether somebody wants some."""
    library: Any = sys.modules.get("transformers.utils.output_capturing")
    if library is None or any(getattr(hook, "__module__", None) != library.__name__ for hook in hooks):
        return False
    return bool(library._active_collector.get()) is wanted


def attributes_of_tree(module: nn.Module, aside: AttributesAside | None = None) -> Attributes:
    """The attributes of a module and of those inside, by path and name; those that are aside too."""
    attributes = {}
    for path, part in module.named_modules():
        every = attributes_of(part) | ({} if aside is None else aside.values(part))
        attributes[path] = {name: value for name, value in every.items() if name not in _OF_THE_TRACE}
    return attributes


def differences(one: Attributes, other: Attributes, pairs: dict[int, Any]) -> list[Spot]:
    """The attributes in which two modules of one structure differ.

    Args:
        one, other: `attributes_of_tree` of each, at some moment.
        pairs: the modules of the one, by `id`, each with its counterpart in the other; objects are added.
    """
    differing = []
    for path, theirs in other.items():
        mine = one[path]
        for name in mine.keys() | theirs.keys():
            if name not in mine or name not in theirs or not _same(mine[name], theirs[name], pairs, 0):
                differing.append((path, name))
    return differing


def _same(one: Any, other: Any, pairs: dict[int, Any], depth: int) -> bool:
    """Tell whether two values of attributes are the same for code that reads them."""
    if id(one) in pairs:
        return pairs[id(one)] is other
    if one is other:
        return True
    if type(one) is not type(other) or depth > _DEEPEST or isinstance(one, Tensor):
        return False

    def inner(a: Any, b: Any) -> bool:
        return _same(a, b, pairs, depth + 1)

    if isinstance(one, _VALUES):
        return bool(one == other)
    if isinstance(one, MethodType):
        return one.__func__ is other.__func__ and inner(one.__self__, other.__self__)
    if isinstance(one, partial):
        return inner((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
    if isinstance(one, (tuple, list)) and type(one) in (tuple, list):
        return len(one) == len(other) and all(map(inner, one, other))
    if isinstance(one, dict) and type(one) in CONTAINERS:
        return list(one) == list(other) and all(map(inner, one.values(), other.values()))
    if isinstance(one, (set, frozenset)):
        return all(isinstance(item, PLAIN) for item in one) and bool(one == other)
    plain_kind: Any = type(one)
    if callable(one) or not hasattr(one, "__dict__") or plain_kind.__setattr__ is not object.__setattr__:
        return False
    # An object that holds attributes and nothing else.
    pairs[id(one)] = other
    return all(not vars(kind).get("__slots__") for kind in type(one).__mro__) and inner(vars(one), vars(other))


def tolerated(part: nn.Module, name: str, one: Any, other: Any) -> bool:
    """Tell whether an attribute of a layer may differ: a probability, which the layer's call reads when the graph runs.

    A layer may leave its argument alone where the probability is zero.
    """
    if not is_leaf(part) or any(True for _ in part.parameters()):
        return False
    return is_probability(name) and type(one) is type(other) is float and bool(one) is bool(other)


def is_probability(name: str) -> bool:
    """Tell whether an attribute of a layer is one by its name."""
    return name == "p" or "drop" in name


def asks_for_gradients(module: nn.Module) -> bool:
    """Tell whether code in a module may go its way by which tensors take a gradient: torch's own does, in attention.

    The model's own code may not (`repl_fx.tracing.data_dependent`).
    """
    kinds = {type(part).__module__ for part in module.modules() if not is_leaf(part)}
    return any(kind.startswith("torch.nn.") and kind != nn.Sequential.__module__ for kind in kinds)


def kind_of_call(args: Any, kwargs: Any, *, gradients: bool) -> tuple[Any, list[Tensor]] | None:
    """The properties of calls that one trace may stand for.

    Args:
        gradients: which arguments take a gradient counts.

    Returns:
        Something to compare and to hash, and the distinct tensors among the arguments. None where an argument may hold
        more than is seen, or has a value that the trace knows, or where there are many tensors.
    """
    leaves, structure = pytree.tree_flatten((args, kwargs))
    tensors: list[Tensor] = []
    numbers: dict[int, int] = {}
    memory: dict[int, int] = {}
    kinds_of_leaves: list[Any] = [structure]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if not plain(leaf):
                return None
            if id(leaf) not in numbers:
                numbers[id(leaf)] = len(tensors)
                tensors.append(leaf)
            place = memory.setdefault(memory_of(leaf), len(memory))
            kinds_of_leaves.append((numbers[id(leaf)], place, *metadata(leaf), gradients and leaf.requires_grad))
        elif isinstance(leaf, torch.SymInt):
            kinds_of_leaves.append((torch.SymInt, leaf.node.expr))
        elif isinstance(leaf, _VALUES) and not isinstance(leaf, slice):
            kinds_of_leaves.append((type(leaf), leaf))
        else:
            return None
    if not 0 < len(tensors) <= _MOST_TENSORS:
        return None
    kinds = sorted({tensor.device.type for tensor in tensors} - {"meta"})
    regions = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
    settings = (torch.is_grad_enabled(), torch.get_default_dtype(), attention_kernels(), tuple(regions))
    try:
        key = (tuple(kinds_of_leaves), settings)
        hash(key)
    except TypeError:
        return None
    return key, tensors


def plain(tensor: Tensor) -> bool:
    """Tell whether a tensor of a trace is nothing but its sizes, strides and dtype to those that get it."""
    if not isinstance(tensor, FakeTensor) or tensor.constant is not None or tensor.layout is not torch.strided:
        return False
    # A trace may know the number in a tensor of one.
    if tensor.ndim == 0 or tensor.is_conj() or tensor.is_neg() or all(type(n) is int and n == 1 for n in tensor.shape):
        return False
    return not any(is_unbacked(size) for size in (*tensor.shape, *tensor.stride()))
