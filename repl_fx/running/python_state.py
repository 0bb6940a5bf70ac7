"""Python state of a model: what its forward may read and change besides parameters and buffers.

    self.k += 1            self.log.append(x)        self.cache["mask"] = mask        type(self).calls += 1

A trace runs the forward once and bakes in what it met. That is right where the state has no part in the results (an
activation that is kept for the user) or does not move after the first forward (a table made when it is first needed);
else the graph would part from the model with the second step, so the model is refused.
"""

from __future__ import annotations

import copy
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, lru_cache, partial
from types import CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from repl_fx._torch import has_no_value
from repl_fx.running.code_names import (
    HANDED_ON,
    READ,
    WRITTEN,
    Names,
    is_foreign,
    is_installed,
    is_own_code,
    names_in,
    use_of,
)
from repl_fx.running.holders import (
    CONTAINERS,
    GENERATORS,
    GONE,
    attributes_of,
    bind,
    content_now,
    content_of_cell,
    equal_arrays,
    items_of,
    refill,
    slots_of,
    state_of,
)
from repl_fx.running.opaque_outputs import PLAIN, equal_leaves

# Values that are compared as they are.
_PLAIN = (*PLAIN, torch.Size, Enum)
# State reachable from a model is looked at up to this many values (a vocabulary has more) and this deep.
MOST = 200_000
DEEPEST = 6
# Containers of more items than this are copied and compared only where code may write to them.
_LARGE = 10_000
_ARRAYS = (np.ndarray, bytearray)
# Objects that hold attributes and do nothing.
_HOLDERS = (SimpleNamespace, Namespace)
_METHODS = (FunctionType, staticmethod, classmethod)
_CODE = (*_METHODS, property)
# What calls code, or wraps what does; the type is that of functions whose results are kept.
_CACHED = type(lru_cache(len))
_CALLED = (FunctionType, MethodType, staticmethod, classmethod, partial, cached_property, _CACHED, type)
# Special methods that no forward calls on what there is already.
_BORN = {
    "__init__", "__new__", "__init_subclass__", "__repr__", "__str__", "__del__", "__getstate__", "__setstate__",
    "__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__", "__dir__",
}  # fmt: skip


@dataclass(frozen=True)
class _TensorMoment:
    """A tensor as it was at one moment: in-place operators count its versions up."""

    tensor: Tensor
    number: int


@dataclass(frozen=True)
class PythonChange:
    """Python state that differs between two moments.

    Attributes:
        path: such as `blocks.0.count` or `log[3]`.
        is_tensor: the value is a tensor afterwards, such as an activation that the forward keeps.
    """

    path: str
    is_tensor: bool


class Spot(NamedTuple):
    """The place of a value.

    Attributes:
        path: such as `blocks.0.count` or `log[3]`.
        name: the one by which code gets hold of it, or of the container that it is in.
        depth: of the objects around it.
        inside: it is in a container of that name.
        ours: it is part of the model.
        of_library: it is named by code of an installed package alone.
    """

    path: str
    name: str
    depth: int = 0
    inside: bool = False
    ours: bool = False
    of_library: bool = False

    def item(self, path: str) -> Spot:
        return Spot(path, self.name, self.depth + 1, True, self.ours, self.of_library)

    def attribute(self, name: str) -> Spot:
        return Spot(_dotted(self.path, name), name, self.depth + 1, False, self.ours, self.of_library)


@dataclass
class _Space:
    """A file, a class or an object of which the code names some attributes.

    Attributes:
        content: what all its attributes were.
        by_attribute: the code names its attributes, and not only globals of its file.
        named: the globals that are named.
        seen: what was looked at.
        whole: all that there is was.
        all_stored: the code may bind any of them anew.
    """

    place: Spot
    owner: Any
    content: dict[str, Any]
    by_attribute: bool = False
    named: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    whole: bool = False
    all_stored: bool = False


class PythonState:
    """The Python state of a model at one moment: its attributes, and what its code names besides.

    Of the user's script, which may hold any amount of data, that is looked at alone which the code of the model names:
    globals, closures, attributes of objects and files, and what functions name that it calls. A large container is
    looked into only where that code may write to it.

    Args:
        values: further values, by name, such as hooks, whose code counts like the model's.

    Attributes:
        unseen: paths of what a trace may change unseen: iterators, and arrays, to which tensors may write.
    """

    def __init__(self, model: nn.Module, values: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.unseen: list[str] = []
        # Objects and containers that hold values, each with a shallow copy of what it held.
        self._holders: list[tuple[Spot, Any, Any]] = []
        self._cells: list[tuple[CellType, Any]] = []
        # Functions whose results are kept, each with how many it has computed.
        self._caches: list[tuple[Any, int]] = []
        self._spaces: dict[int, _Space] = {}
        self._values: dict[str, Any] = {}
        self._seen: dict[tuple[int, str], str] = {}
        # Other names of a container or an object, each with the one under which its values are.
        self._aliases: dict[str, str] = {}
        # The functions that the model may call, those that are still to be looked at, and large containers likewise.
        self._functions: dict[int, FunctionType] = {}
        self._codes: list[tuple[CodeType, Names]] = []
        self._unread: list[FunctionType] = []
        self._large: list[tuple[Spot, Any]] = []
        self._attributes: set[str] = {"forward", "backward", "setup_context", "jvp"}
        self._stored: set[str] = set()
        self._any_attribute = False
        modules = {module: path for path, module in model.named_modules()}
        kinds = dict.fromkeys(kind for module in modules for kind in type(module).__mro__ if not is_foreign(kind))
        # Files of the model's code, installed ones too.
        self._files = {str(getattr(part, "__module__", "")) for part in (*kinds, *values.values())}
        self._seen.update(((id(module), ""), path) for module, path in modules.items())
        for module, path in modules.items():
            self._enter(Spot(path, "", ours=True), module, attributes_of(module))
            # A buffer without a tensor is filled when it is first needed.
            empty = [name for name, buffer in module._buffers.items() if buffer is None]
            self._values.update((_dotted(path, name), None) for name in empty)
        for kind in kinds:
            self._open(Spot(kind.__qualname__, "", of_library=not is_own_code(kind)), kind, vars(kind))
        for name, value in values.items():
            self._look(Spot(name, name, ours=True), value)
        self._follow()
        arrays = [(place, owner) for place, owner, _ in self._holders if isinstance(owner, np.ndarray)]
        self.unseen += [place.path for place, owner in arrays if self._is_written(place, owner)]

    def _follow(self) -> None:
        """Look at what the code names that is found on the way, until there is no more."""
        looked_for: tuple[int, bool] | None = None
        while True:
            named = len(self._attributes), self._any_attribute
            if self._unread:
                self._read(self._unread.pop())
            elif named != looked_for:
                # Once for all functions read: a library in the user's folder has thousands, and as many classes.
                looked_for = named
                for space in [space for space in self._spaces.values() if space.by_attribute]:
                    self._look_in(space, self._attributes)
            elif self._large:
                self._enter_large(*self._large.pop())
            else:
                return

    def changes(self, later: PythonState) -> list[PythonChange]:
        """The differences of a later state of the same model; an object in the place of an equal one is none."""
        paths = dict.fromkeys([*self._values, *later._values])
        return [
            PythonChange(path, isinstance(later._values.get(path), _TensorMoment))
            for path in paths
            # Tensors that fx meets on its way it keeps in the model.
            if not path.startswith("_tensor_constant") and not _same(self._at(path), later._at(path))
        ]

    def _at(self, path: str) -> Any:
        """The value at a path; of two names of one object, which may be two objects later, either will do."""
        inner, is_length = path.removeprefix("len(").removesuffix(")"), path.startswith("len(")
        for _ in range(DEEPEST):
            known = self._values.get(f"len({inner})" if is_length else inner, _TensorMoment)
            if known is not _TensorMoment:
                return known
            ends = (len(inner), *(found.start() for found in re.finditer(r"[.\[]", inner)))
            longest = max((end for end in ends if inner[:end] in self._aliases), default=None)
            if longest is None:
                return known
            inner = self._aliases[inner[:longest]] + inner[longest:]
        return _TensorMoment

    def names_one_of(self, names: Set[str]) -> bool:
        """Tell whether the code names one of some globals or attributes."""
        return any(names & known.every for _, known in self._codes)

    def restore(self) -> None:
        """Give back to every holder what it held: the model's own, and those of which the code writes to the content.

        Others may have changed the rest meanwhile: a thread that logs, a loader that reads ahead.
        """
        for place, owner, content in self._holders:
            if place.ours or self._is_written(place, owner):
                refill(owner, content)
        for function, misses in self._caches:
            # A result of a trace, such as a table without values, is none for a run.
            if function.cache_info().misses != misses:
                function.cache_clear()
        for cell, value in self._cells:
            if content_of_cell(cell) is not value:
                cell.cell_contents = value
        attributes = self._attributes & self._stored
        for space in self._spaces.values():
            every = space.all_stored or (space.by_attribute and self._any_attribute)
            now = content_now(space.owner)
            stored = (space.named & self._stored) | (attributes if space.by_attribute else set())
            for name in (now.keys() | space.content.keys()) if every else stored:
                before = space.content.get(name, GONE)
                if before is not now.get(name, GONE):
                    bind(space.owner, name, before)

    def _is_written(self, place: Spot, container: Any) -> bool:
        """Tell whether some function may write to a container at a place."""
        # A part of an array is the array.
        is_array = isinstance(container, np.ndarray)
        least = HANDED_ON if place.inside or is_array else WRITTEN
        return self._use_at(place) >= least and not (is_array and not container.flags.writeable)

    def _use_at(self, place: Spot) -> int:
        """The use that the code makes of a container at a place."""
        named = [use_of(code, place.name) for code, names in self._codes if place.name in names.every]
        return max(named, default=WRITTEN if self._any_attribute else READ)

    def _enter(self, place: Spot, owner: Any, content: Any) -> None:
        """Enter all that an object or a container holds."""
        self._holders.append((place, owner, content))
        if isinstance(content, (np.ndarray, bytearray)):
            self._values[place.path] = content
            return
        inside = type(owner) in CONTAINERS
        if inside:
            self._values[f"len({place.path})"] = len(content)
        for key, value in items_of(content):
            if len(self._values) >= MOST:
                return
            if isinstance(owner, nn.Module):
                self._look(place.attribute(key), value)
            else:
                path = f"{place.path}[{_shown(key)}]" if inside else _dotted(place.path, key)
                self._look(place.item(path), value)

    def _enter_large(self, place: Spot, container: Any) -> None:
        """Enter a container of many items, if it may be written to."""
        size = container.shape if isinstance(container, np.ndarray) else len(container)
        self._values[f"len({place.path})"] = size
        holds = not isinstance(container, _ARRAYS) and self._use_at(place) >= HANDED_ON and _holds_containers(container)
        if not holds and not self._is_written(place, container):
            return
        content = copy.copy(container)
        if holds:
            self._enter(place, container, content)
        else:
            self._holders.append((place, container, content))
            self._values[place.path] = content

    def _open(self, place: Spot, owner: Any, content: Mapping[str, Any], named: Set[str] | None = None) -> None:
        """Look at those attributes of a file, a class or an object that the code names, now or later.

        Args:
            named: look at these alone.
        """
        space = self._spaces.get(id(owner))
        if space is None:
            # Many functions name a file, which is copied once.
            space = self._spaces[id(owner)] = _Space(place, owner, dict(content))
        if named is not None:
            space.named |= named
            self._look_in(space, named)
        elif not space.by_attribute:
            space.by_attribute = True
            special = {name for name in content if _is_special(name)} - _BORN if isinstance(owner, type) else set()
            self._look_in(space, special | self._attributes)

    def _look_in(self, space: _Space, names: Set[str]) -> None:
        if space.by_attribute and self._any_attribute and not space.whole:
            space.whole = True
            # A library's own computed names are those of values.
            library = isinstance(space.owner, type) and not is_own_code(space.owner)
            names = names | {n for n, v in space.content.items() if not (library and isinstance(v, _CODE))}
        new = (names & space.content.keys()) - space.seen
        space.seen |= new
        for name in sorted(new):
            value = space.content[name]
            if isinstance(value, property):
                value = (value.fget, value.fset, value.fdel)
            elif isinstance(space.owner, type) and isinstance(value, FunctionType):
                # A forward that somebody put into the class.
                self._files.add(value.__module__)
            # Of the special attributes, such as the names of a class, only functions count.
            if not _is_special(name) or isinstance(value, _METHODS):
                self._look(space.place.attribute(name), value)

    def _enter_class(self, kind: type) -> None:
        for part in kind.__mro__:
            if self._is_followed(part):
                self._open(Spot(part.__qualname__, "", of_library=not is_own_code(part)), part, vars(part))

    def _read(self, function: FunctionType) -> None:
        """Enter what a function names: its closure, defaults, attributes, globals, files and functions it calls."""
        names = names_in(function.__code__)
        self._codes.append((function.__code__, names))
        # An attribute of the model may have the name of a function.
        path, library = f"{function.__qualname__}()", not is_own_code(function)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            value = content_of_cell(cell)
            if value is GONE or name == "__class__":
                continue
            if name in names.stored:
                self._cells.append((cell, value))
            self._look(Spot(f"{path}: {name}", name, of_library=library), value)
        for key, value in (*enumerate(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()):
            self._look(Spot(f"{path}: {key}", "", ours=True, of_library=library), value)
        self._look(Spot(path, "", ours=True, of_library=library), vars(function))
        self._stored |= names.stored
        file = function.__globals__
        place = Spot(str(file.get("__name__", "")), "", of_library=library)
        self._open(place, file, file, file.keys() if names.any_global else names.globals)
        self._spaces[id(file)].all_stored |= names.any_global
        package = file.get("__package__") or ""
        for name in sorted(names.imports):
            for imported in filter(None, (sys.modules.get(name), sys.modules.get(f"{package}.{name}".rstrip(".")))):
                self._look(Spot(name, name, of_library=library), imported)
        self._attributes |= names.attributes
        self._any_attribute = self._any_attribute or names.any_attribute

    def _is_followed(self, part: type | FunctionType) -> bool:
        """Tell whether the code of a class or a function counts: it is the user's, or in one of the model's files."""
        return (part.__module__ in self._files and not is_foreign(part)) or is_own_code(part)

    def _look(self, place: Spot, value: Any) -> None:
        if len(self._values) >= MOST or place.depth > DEEPEST:
            return
        path = place.path
        if isinstance(value, _PLAIN):
            self._values[path] = value
        elif isinstance(value, Tensor):
            self._values[path] = _TensorMoment(value, 0 if value.is_inference() else value._version)
        elif isinstance(value, (tuple, frozenset)):
            self._look_at_items(place, value)
        elif type(value) in CONTAINERS:
            self._look_at_object(place, value)
        elif isinstance(value, GENERATORS):
            state = state_of(value)[0]()
            self._holders.append((place._replace(ours=True), value, state))
            self._values[path] = repr(state.tolist() if isinstance(state, Tensor) else state)
        elif isinstance(value, Iterator):
            self.unseen.append(path)
        elif isinstance(value, _CALLED):
            self._look_at_code(place, value)
        elif isinstance(value, ModuleType):
            if value.__name__ == "__main__" or not is_installed(value):
                self._open(Spot(value.__name__, ""), vars(value), vars(value))
        elif _is_own_object(value):
            self._look_at_object(place, value)

    def _look_at_items(self, place: Spot, value: tuple[Any, ...] | frozenset[Any]) -> None:
        # A class of its own may count and hand out something else, or nothing (`Irrep` of e3nn).
        items = list(tuple.__iter__(value)) if isinstance(value, tuple) else sorted(frozenset.__iter__(value), key=repr)
        if len(items) > _LARGE and not _holds_containers(items):
            self._values[place.path] = value
            return
        for index, item in enumerate(items):
            self._look(place.item(f"{place.path}[{index}]"), item)

    def _look_at_code(self, place: Spot, value: Any) -> None:
        """Look at what calls code: functions, classes, and what wraps one."""
        if isinstance(value, FunctionType):
            if id(value) not in self._functions and self._is_followed(value):
                self._functions[id(value)] = value
                self._unread.append(value)
        elif isinstance(value, cached_property):
            self._look(place, value.func)
        elif isinstance(value, MethodType):
            self._look(place.attribute("__func__"), value.__func__)
            self._look(place.attribute("__self__")._replace(name=place.name), value.__self__)
        elif isinstance(value, partial):
            self._look(place.attribute("func"), value.func)
            self._look(place.item(place.path), (*value.args, *value.keywords.values()))
        elif not isinstance(value, type):
            if isinstance(value, _CACHED):
                self._caches.append((value, value.cache_info().misses))
            self._look(place, value.__wrapped__)
        elif self._is_followed(value):
            self._enter_class(value)
            self._look(place, tuple(getattr(value, name, None) for name in ("__init__", "__post_init__")))

    def _look_at_object(self, place: Spot, value: Any) -> None:
        """Look at a container or an object of a class of the user's, once for each name that code reads it by."""
        key = (id(value), "" if place.ours else place.name)
        known = self._seen.get((id(value), "") if isinstance(value, nn.Module) else key, self._seen.get(key))
        if known is not None:
            self._aliases[place.path] = known
            return
        self._seen[key] = place.path
        if type(value) in CONTAINERS:
            if (value.size if isinstance(value, np.ndarray) else len(value)) > _LARGE:
                self._large.append((place, value))
            else:
                self._enter(place, value, copy.copy(value))
            return
        self._enter_class(type(value))
        if type(value) in _HOLDERS or all(self._is_followed(k) or is_foreign(k) for k in type(value).__mro__):
            self._open(place, value, attributes_of(value))
        else:
            # Code that is not looked at may write to any attribute.
            self._enter(place, value, attributes_of(value))


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _holds_containers(content: Any) -> bool:
    """Tell whether any item of a container may hold others."""
    items: Iterable[Any] = content.values() if isinstance(content, Mapping) else content
    return not all(issubclass(kind, (*_PLAIN, np.generic)) for kind in set(map(type, items)))


def _is_own_object(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    holds = hasattr(value, "__dict__") or bool(slots_of(value))
    return holds and not isinstance(value, type) and not is_foreign(type(value))


def _shown(key: Any) -> str:
    return repr(key)[:40] if isinstance(key, _PLAIN) else f"<{type(key).__name__}>"


def _dotted(path: str, name: Any) -> str:
    return f"{path}.{name}".lstrip(".")


def _same(before: Any, after: Any) -> bool:
    if type(before) is not type(after):
        return False
    if isinstance(before, _TensorMoment):
        if before.tensor is after.tensor:
            return bool(before.number == after.number)
        known = not has_no_value(before.tensor) and not has_no_value(after.tensor)
        return known and equal_leaves(before.tensor, after.tensor)
    if isinstance(before, np.ndarray):
        return equal_arrays(before, after)
    return before is after or bool(before == after) or bool(before != before and after != after)
