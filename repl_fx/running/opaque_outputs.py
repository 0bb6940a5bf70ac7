"""Values that models return: the tensors inside objects of unknown structure, such as a cache, and equality.

pytree opens tuples, lists, dicts and what a library registered. A result of any other class that holds tensors would
be one opaque leaf, which no graph can return. Here such an object is opened by its attributes, at any depth, and
rebuilt around other tensors: an object of the same class with the same attributes, made without calling its
constructor.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import pytree

# Values that are what they print, in a model and in its graph.
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_RETURNED = (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, type(None), bool, int, float, str)


class Opened:
    """Stands for an object while it is flattened; unflattening gives the object itself, rebuilt."""

    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass(frozen=True)
class _Kept:
    """Stands for a constant inside an opened object, such as a dtype."""

    value: Any


@dataclass(frozen=True)
class Shell:
    """An object without the attributes that hold tensors.

    Attributes:
        names: all attributes, in order.
        held: those that hold tensors.
        rest: the values of the others, by name; `HERE` for a device that is the tensors' own.
    """

    kind: type
    names: tuple[str, ...]
    held: tuple[str, ...]
    rest: dict[str, Any]

    def __hash__(self) -> int:
        return hash((self.kind, self.names, self.held))


class _Here(Enum):
    """One object in every process: a word would be another one where a pickle is loaded."""

    HERE = "device of the tensors"

    def __repr__(self) -> str:
        return repr(self.value)


HERE = _Here.HERE


def open_objects(value: Any, other: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    """A nested value in which every object with attributes is `Opened`, so that pytree flattens it.

    One without tensors, such as a cache that no layer has used, has no leaves then. `other` maps the other leaves.
    """
    return pytree.tree_map(lambda leaf: Opened(leaf) if is_object(leaf) else other(leaf), value)


def floating_outputs(made: Any) -> list[Tensor]:
    """The tensors among nested outputs that have gradients, real and in at least single precision."""
    found = []
    for value in pytree.tree_leaves(open_objects(made)):
        if isinstance(value, Tensor) and value.requires_grad:
            dense = _dense(value).resolve_conj()
            real = torch.view_as_real(dense) if dense.is_complex() else dense
            found.append(real if real.dtype == torch.float64 else real.float())
    return found


def _dense(tensor: Tensor) -> Tensor:
    """A tensor of ordinary layout, which all operators take; nested ones of uneven lengths have none."""
    return tensor if tensor.layout in (torch.strided, torch.jagged) else tensor.to_dense()


def is_object(value: Any) -> bool:
    """Tell whether pytree takes a value for a leaf although it may have tensors among its attributes, at any depth."""
    # A symbolic number is a leaf that a graph can return. A container of a class that pytree does not know cannot be
    # rebuilt from its attributes.
    plain = isinstance(value, (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, Opened, nn.Module, type, *PLAIN))
    return not plain and not isinstance(value, _CONTAINERS) and not callable(value) and hasattr(value, "__dict__")


def _inside(value: Any, seen: set[int]) -> Iterator[Any]:
    """Tensors and symbolic sizes that a value holds; an object that holds itself is entered once."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, (Tensor, torch.SymInt)):
            yield leaf
        elif (is_object(leaf) or isinstance(leaf, _CONTAINERS)) and id(leaf) not in seen:
            seen.add(id(leaf))
            items = leaf.values() if isinstance(leaf, dict) else leaf if isinstance(leaf, _CONTAINERS) else ()
            yield from _inside([*items, *getattr(leaf, "__dict__", {}).values()], seen)


def _kept(leaf: Any) -> Any:
    """A leaf inside an object, as a constant where no graph can return it."""
    # As it is, a container of a class that pytree does not know is refused by a trace, for the tensors in it.
    refused = isinstance(leaf, _CONTAINERS) and any(True for _ in _inside(leaf, set()))
    return leaf if isinstance(leaf, _RETURNED) or refused else _Kept(leaf)


def _flatten(opened: Opened) -> tuple[list[Any], Shell]:
    attributes = vars(opened.value)
    owner = {id(opened.value)}
    held = tuple(name for name, item in attributes.items() if any(True for _ in _inside(item, set(owner))))
    tensors = (leaf for name in held for leaf in _inside(attributes[name], set(owner)) if isinstance(leaf, Tensor))
    device = next((tensor.device for tensor in tensors), None)
    rest = {
        name: HERE if isinstance(item, torch.device) and item == device else item
        for name, item in attributes.items()
        if name not in held
    }
    shell = Shell(type(opened.value), tuple(attributes), held, rest)
    return [open_objects(attributes[name], _kept) for name in held], shell


def _flatten_with_keys(opened: Opened) -> tuple[list[tuple[Any, Any]], Shell]:
    children, shell = _flatten(opened)
    return [(pytree.GetAttrKey(name), child) for name, child in zip(shell.held, children, strict=True)], shell


def _unflatten(children: Any, shell: Shell) -> Any:
    held = dict(zip(shell.held, children, strict=True))
    device = next((leaf.device for leaf in _inside(list(held.values()), set()) if isinstance(leaf, Tensor)), None)
    made: Any = object.__new__(shell.kind)
    for name in shell.names:
        item = held[name] if name in held else shell.rest[name]
        # The next call must not find what the caller has done with the object of this one.
        vars(made)[name] = device if item is HERE else copy.copy(item) if name not in held else item
    return made


pytree.register_pytree_node(
    Opened,
    _flatten,
    _unflatten,
    serialized_type_name="repl_fx.running.opaque_outputs.Opened",
    flatten_with_keys_fn=_flatten_with_keys,
)
pytree.register_pytree_node(
    _Kept,
    lambda kept: ([], kept.value),
    lambda children, value: value,
    serialized_type_name="repl_fx.running.opaque_outputs.Kept",
    flatten_with_keys_fn=lambda kept: ([], kept.value),
)


def all_finite(tensor: Tensor) -> bool:
    """Tell whether no value of a tensor is NaN or infinite: by its extremes, thirty times as fast as `isfinite`."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and tensor.is_floating_point()
    if not plain or not tensor.numel() or tensor.element_size() == 1:
        return bool(tensor.isfinite().all())
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())


def equal_leaves(ours: Any, theirs: Any) -> bool:
    """Tell whether two values without structure are equal, bit for bit; NaN equals NaN."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        kinds = [(tensor.dtype, tensor.shape, tensor.device, tensor.layout) for tensor in (ours, theirs)]
        if kinds[0] != kinds[1]:
            return False
        ours, theirs = _dense(ours), _dense(theirs)
        if torch.equal(ours, theirs):
            return True
        # Attention with a row that is masked all over gives NaN on purpose.
        return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, (Mapping, list, tuple)):
        return same_value(ours, theirs)
    return equal_inside(ours, theirs) if is_object(ours) else bool(ours == theirs)


def equal_inside(ours: Any, theirs: Any) -> bool:
    """Tell whether two nested values have the same leaves, bit for bit, also inside objects of any class."""
    inside = [pytree.tree_leaves(open_objects(value)) for value in (ours, theirs)]
    return len(inside[0]) == len(inside[1]) and all(map(equal_leaves, *inside))


def same_value(ours: Any, theirs: Any) -> bool:
    """Tell whether two nested values are equal, bit for bit, also inside objects of the model's own classes."""
    # Such as None, which knows no equality but this one.
    if ours is theirs:
        return True
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, Mapping):
        return list(ours) == list(theirs) and all(same_value(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (tuple, list)):
        return len(ours) == len(theirs) and all(same_value(a, b) for a, b in zip(ours, theirs, strict=True))
    own_equality: Any = type(ours).__eq__
    if is_dataclass(ours) or own_equality is object.__eq__:
        inside = getattr(ours, "__dict__", {})
        return bool(inside) and same_value(dict(inside), dict(theirs.__dict__))
    return equal_leaves(ours, theirs)
