"""Objects and containers that hold values: what they hold, and how they are given it back."""

from __future__ import annotations

import operator
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import CellType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# The attributes that every module has.
OWN_ATTRIBUTES = frozenset(vars(nn.Module()))
# These very types: a subclass may do more than hold when it is read or filled.
CONTAINERS = frozenset({dict, OrderedDict, defaultdict, Counter, list, set, deque, bytearray, np.ndarray})
# The attribute of a loaded module that says which artifact it is from.
ORIGIN = "_repl_fx_artifact"
# Attributes by which a library, PyTorch too, notes what it has done with a module.
NOTES = frozenset({
    "_output_capturing_hooks_installed", "_is_hf_initialized", "_compiled_call_impl", "_is_torch_compile",
    "_compile_kwargs", ORIGIN,
})  # fmt: skip
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
# In the place of a value that is not there.
GONE: Any = object()


def state_of(generator: Any) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """The functions that read and set the state of a random generator."""
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return partial(getattr, bits, "state"), partial(setattr, bits, "state")
    if isinstance(generator, random.SystemRandom):
        return lambda: None, lambda state: None
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    return generator.get_state, generator.set_state


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes of an object, by name, as their order may change; of a module, those that not every module has."""
    skipped = OWN_ATTRIBUTES | NOTES if isinstance(value, nn.Module) else frozenset()
    own = {name: item for name, item in list(getattr(value, "__dict__", {}).items()) if name not in skipped}
    slots = {name: getattr(value, name) for name in slots_of(value) if hasattr(value, name)}
    # An object with two names is found under the same one each time.
    return dict(sorted((own | slots).items()))


def slots_of(value: Any) -> set[str]:
    """The names of the attributes of an object that are not in its `__dict__`."""
    slots = [vars(kind)["__slots__"] for kind in type(value).__mro__ if "__slots__" in vars(kind)]
    named = (name for some in slots for name in ((some,) if isinstance(some, str) else some))
    return {name for name in named if not name.startswith("__")}


def content_now(owner: Any) -> Mapping[str, Any]:
    """The values that a file (by its dictionary), a class or an object holds now."""
    return owner if type(owner) is dict else vars(owner) if isinstance(owner, type) else attributes_of(owner)


def content_of_cell(cell: CellType) -> Any:
    """The value of a cell of a closure, or `GONE`."""
    # An empty cell has no contents.
    with suppress(ValueError):
        return cell.cell_contents
    return GONE


def items_of(content: Any) -> Iterable[tuple[Any, Any]]:
    """The items of a container, each with its key, its index or, in a set, itself as the key."""
    if isinstance(content, Mapping):
        return content.items()
    return ((item, True) for item in content) if isinstance(content, set) else enumerate(content)


def bytes_of(tensor: Tensor) -> bytes:
    """The values of a tensor on any device, as they lie in memory without gaps."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    return plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def equal_arrays(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Tell whether two arrays hold the same; where they hold objects, the very same ones."""
    if one.dtype.hasobject:
        return one.shape == other.shape and all(map(operator.is_, one.flat, other.flat))
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))


def refill(owner: Any, content: Any) -> None:
    """Give a container, an object or a random generator what it held, where it holds something else."""
    if isinstance(owner, GENERATORS):
        state_of(owner)[1](content)
    elif isinstance(owner, np.ndarray):
        if not equal_arrays(owner, content):
            np.copyto(owner, content)
    # Another class of container, such as a frozen dict, is an object: its attributes are what was noted of it.
    elif type(owner) in CONTAINERS:
        pairs = zip(list(items_of(owner)), items_of(content), strict=False)
        if len(owner) != len(content) or any(a is not c or b is not d for (a, b), (c, d) in pairs):
            owner.clear()
            owner.extend(content) if isinstance(owner, (list, deque, bytearray)) else owner.update(content)
    else:
        now = attributes_of(owner)
        for name in now.keys() | content.keys():
            if now.get(name, GONE) is not content.get(name, GONE):
                bind(owner, name, content.get(name, GONE))


def bind(owner: Any, name: str, value: Any) -> None:
    """Give a file (by its dictionary), a class or an object an attribute, or take it away."""
    if isinstance(owner, type):
        delattr(owner, name) if value is GONE else setattr(owner, name, value)
    # Past a `__setattr__` of the object's own.
    elif type(owner) is not dict and name in slots_of(owner):
        object.__delattr__(owner, name) if value is GONE else object.__setattr__(owner, name, value)
    else:
        attributes = owner if type(owner) is dict else vars(owner)
        if value is GONE:
            del attributes[name]
        else:
            attributes[name] = value
