"""Python state of a model: what its forward may read and change besides parameters and buffers.

    self.k += 1            self.log.append(x)        self.cache["mask"] = mask        type(self).calls += 1

A trace runs the forward once and bakes in what it met. That is right where the state has no part in the results (an
activation that is kept for the user) or does not move after the first forward (a table made when it is first needed);
else the graph would part from the model with the second step, so the model is refused.
"""

from __future__ import annotations

import ast
import copy
import inspect
import random
import re
import sys
import sysconfig
import textwrap
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial, wraps
from types import CellType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repl_fx._torch import has_no_value
from repl_fx.running.opaque_outputs import PLAIN, equal_leaves

# The attributes that every module has.
OWN_ATTRIBUTES = frozenset(vars(nn.Module()))

# Values that are compared as they are.
_PLAIN = (*PLAIN, torch.Size, Enum)
# These very types: a subclass may do more than hold when it is read or filled.
_CONTAINERS = frozenset({dict, OrderedDict, defaultdict, Counter, list, set, deque, bytearray, np.ndarray})
# The attribute of a loaded module that says which artifact it is from.
ORIGIN = "_repl_fx_artifact"
# Attributes by which a library, PyTorch too, notes what it has done with a module.
NOTES = frozenset({"_output_capturing_hooks_installed", "_is_hf_initialized", "_compiled_call_impl", ORIGIN})
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
# Libraries whose objects, classes and modules are no part of a model's own state.
_FOREIGN = (
    "torch",
    "numpy",
    "logging",
    "contextlib",
    "threading",
    "typing",
    "abc",
    "enum",
    "inspect",
    "repl_fx",
    "builtins",
)
# Where installed packages and Python's own files are.
_INSTALLED = tuple(dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")))
# State reachable from a model is looked at up to this many values (a vocabulary has more) and this deep.
_MOST = 200_000
_DEEPEST = 6


@dataclass(frozen=True)
class _Version:
    """A tensor as it was at one moment: in-place operators count its versions up."""

    tensor: Tensor
    number: int


@dataclass(frozen=True)
class Change:
    """Python state that differs between two moments.

    Attributes:
        path: such as `blocks.0.count` or `log[3]`.
        is_tensor: the value is a tensor afterwards, such as an activation that the forward keeps.
    """

    path: str
    is_tensor: bool


class PythonState:
    """The Python state of a model at one moment: attributes, and what can be reached through them.

    Args:
        values: further values, by name, such as the cells of a function.

    Attributes:
        iterators: paths of the iterators among it, whose state cannot be seen.
    """

    def __init__(
        self,
        model: nn.Module,
        values: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.iterators: list[str] = []
        # Objects, classes and containers that hold values, each with a shallow copy of what it held.
        self._holders: list[tuple[Any, Any]] = []
        # Names of the files that functions and objects on the way were from; a walk meets hundreds of one file.
        self._homes: set[str] = set()
        self._values: dict[str, Any] = {}
        modules = {module: path for path, module in model.named_modules()}
        self._seen = {id(module): path for module, path in modules.items()}
        # Other names of a container or an object, each with the one under which its values are.
        self._aliases: dict[str, str] = {}
        for module, path in modules.items():
            self._enter(path, module, _attributes(module), 0)
            # A buffer without a tensor is filled when it is first needed.
            empty = [name for name, buffer in module._buffers.items() if buffer is None]
            self._values.update((_dotted(path, name), None) for name in empty)
        kinds = dict.fromkeys(kind for module in modules for kind in type(module).__mro__ if not _is_foreign(kind))
        for kind in kinds:
            self._enter_class(kind)
        for file in dict.fromkeys(sys.modules.get(kind.__module__) for kind in kinds):
            self._enter_files(file)
        for name, value in values.items():
            self._look(name, value, 0)

    def changes(self, later: PythonState) -> list[Change]:
        """The differences of a later state of the same model; an object in the place of an equal one is none."""
        paths = dict.fromkeys([*self._values, *later._values])
        return [
            Change(path, isinstance(later._values.get(path), _Version))
            for path in paths
            # Tensors that fx meets on its way it keeps in the model.
            if not path.startswith("_tensor_constant") and not _same(self._at(path), later._at(path))
        ]

    def _at(self, path: str) -> Any:
        """The value at a path; of two names of one object, which may be two objects later, either will do."""
        inner, is_length = path.removeprefix("len(").removesuffix(")"), path.startswith("len(")
        for _ in range(_DEEPEST):
            known = self._values.get(f"len({inner})" if is_length else inner, _Version)
            if known is not _Version:
                return known
            ends = (len(inner), *(found.start() for found in re.finditer(r"[.\[]", inner)))
            longest = max((end for end in ends if inner[:end] in self._aliases), default=None)
            if longest is None:
                return known
            inner = self._aliases[inner[:longest]] + inner[longest:]
        return _Version

    def restore(self) -> None:
        """Give every holder back what it held."""
        for owner, content in self._holders:
            _refill(owner, content)

    def _enter(self, path: str, owner: Any, content: Any, depth: int) -> None:
        self._holders.append((owner, content))
        if isinstance(content, (np.ndarray, bytearray)):
            self._values[path] = content
            return
        inside = type(owner) in _CONTAINERS
        if inside:
            self._values[f"len({path})"] = len(content)
        for key, value in _items(content):
            self._look(f"{path}[{_shown(key)}]" if inside else _dotted(path, key), value, depth + 1)

    def _enter_class(self, kind: type) -> None:
        if id(kind) in self._seen:
            return
        self._seen[id(kind)] = kind.__qualname__
        self._enter(kind.__qualname__, kind, _plain_attributes(kind), 0)
        for value in vars(kind).values():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if isinstance(function, FunctionType):
                self._enter_function(function)

    def _enter_file(self, file: ModuleType) -> None:
        """Enter what a forward may count in besides its module: variables, functions, classes and objects of a file."""
        if id(file) in self._seen:
            return
        name = self._seen[id(file)] = file.__name__
        self._enter(name, file, _plain_attributes(file), 0)
        for key, value in list(vars(file).items()):
            if isinstance(value, FunctionType) and value.__module__ == name:
                self._enter_function(value)
            elif isinstance(value, type) and value.__module__ == name:
                self._enter_class(value)
            elif not isinstance(value, type) and type(value).__module__ in (name, "types"):
                self._look(_dotted(name, key), value, 0)

    def _enter_home(self, part: type | FunctionType) -> None:
        """Enter the file that a class or function of the user's is from; the model's own files may not import it."""
        name = part.__module__ or ""
        if name in self._homes:
            return
        self._homes.add(name)
        if is_own_code(part):
            self._enter_files(sys.modules.get(name))

    def _enter_files(self, file: ModuleType | None) -> None:
        for one in () if file is None else (file, *_imported(file)):
            self._enter_file(one)

    def _enter_function(self, function: FunctionType) -> None:
        """Enter the values that a function counts in: a closure, a mutable default, its attributes, its file's."""
        if id(function) in self._seen or _is_foreign(function):
            return
        # An attribute of the model may have the name of a function.
        path = self._seen[id(function)] = f"{function.__qualname__}()"
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        defaults = (*enumerate(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items())
        for name, value in (*cells, *defaults):
            self._look(f"{path}: {name}", value, 0)
        self._look(path, vars(function), 0)
        self._enter_home(function)

    def _look(self, path: str, value: Any, depth: int) -> None:
        if len(self._values) >= _MOST or depth > _DEEPEST:
            return
        if isinstance(value, CellType):
            # An empty cell has no contents.
            with suppress(ValueError):
                self._holders.append((value, value.cell_contents))
                self._look(path, value.cell_contents, depth)
        elif isinstance(value, _PLAIN):
            self._values[path] = value
        elif isinstance(value, Tensor):
            self._values[path] = _Version(value, 0 if value.is_inference() else value._version)
        elif isinstance(value, _GENERATORS):
            state = _state_of(value)[0]()
            self._holders.append((value, state))
            self._values[path] = repr(state.tolist() if isinstance(state, Tensor) else state)
        elif isinstance(value, Iterator):
            self.iterators.append(path)
        elif isinstance(value, FunctionType):
            self._enter_function(value)
        elif isinstance(value, MethodType):
            self._look(f"{path}.__func__", value.__func__, depth + 1)
            self._look(f"{path}.__self__", value.__self__, depth + 1)
        elif isinstance(value, partial):
            self._look(f"{path}.func", value.func, depth + 1)
            self._look(path, (*value.args, *value.keywords.values()), depth + 1)
        elif isinstance(value, (tuple, frozenset)):
            for index, item in enumerate(value):
                self._look(f"{path}[{index}]", item, depth + 1)
        elif type(value) in _CONTAINERS or _is_own_object(value):
            if id(value) in self._seen:
                self._aliases[path] = self._seen[id(value)]
                return
            self._seen[id(value)] = path
            if type(value) in _CONTAINERS:
                self._enter(path, value, copy.copy(value), depth)
            else:
                self._enter(path, value, _attributes(value), depth)
                self._enter_home(type(value))


@dataclass
class StateChanges:
    """The changes that a trace made to a model's Python state.

    Attributes:
        changes: differences after the trace, or after the model's forward in it.
        iterators: paths of the iterators among the state, of which nothing can be said.
        replaced: paths of the parameters and modules in whose place there were others.
    """

    changes: list[Change] = field(default_factory=list)
    iterators: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changes or self.iterators)


@contextmanager
def changes_noted(model: nn.Module) -> Iterator[StateChanges]:
    """Note what a trace of a model changes of its Python state, leaf calls apart.

    torch.export puts attributes back when it is done, so the state is looked at in the forward as well.
    """
    noted = StateChanges()
    own = model.forward

    @contextmanager
    def compared() -> Iterator[None]:
        before, tree = PythonState(model), _tree(model)
        yield
        noted.changes += before.changes(PythonState(model))
        noted.iterators = before.iterators
        after = _tree(model)
        noted.replaced += [path for path in {**tree, **after} if tree.get(path) != after.get(path)]

    # Not the module: it is no function of the user's, and its closure no state.
    @wraps(own, assigned=("__name__", "__qualname__", "__doc__"))
    def forward(*args: Any, **kwargs: Any) -> Any:
        with compared():
            return own(*args, **kwargs)

    with compared(), forward_replaced(model, forward):
        yield noted


@contextmanager
def forward_replaced(model: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a model run another forward meanwhile, past a `__setattr__` of its own."""
    kept = {name: own for name, own in vars(model).items() if name == "forward"}
    vars(model)["forward"] = forward
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        vars(model).update(kept)


def _tree(model: nn.Module) -> dict[str, int]:
    """The identities of all modules and parameters, by path."""
    modules = {path: id(module) for path, module in model.named_modules(remove_duplicate=False)}
    return modules | {path: id(parameter) for path, parameter in model.named_parameters(remove_duplicate=False)}


def place_of(model: nn.Module, path: str) -> str:
    """File and line where a model's code names the attribute at a `Change.path`, behind a comma; empty if nowhere."""
    found = ""
    for module_path, module in model.named_modules():
        if not path.removeprefix("len(").startswith(module_path):
            continue
        name = re.split(r"[.\[(){}]", path.removeprefix("len(").removeprefix(module_path).lstrip("."))[0]
        for kind in type(module).__mro__:
            if not _is_foreign(kind):
                found = _line_of(kind, name) or found
    return found


def _line_of(kind: type, name: str) -> str | None:
    try:
        lines, first = inspect.getsourcelines(kind)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return None
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name != "__init__"]
    named = [n for f in functions for n in ast.walk(f) if isinstance(n, ast.Attribute) and n.attr == name]
    written = [node for node in named if isinstance(node.ctx, ast.Store)] or named
    return f", {inspect.getsourcefile(kind)}, line {first + written[0].lineno - 1}" if written else None


def _state_of(generator: Any) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """How the state of a random generator is read and set."""
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return partial(getattr, bits, "state"), partial(setattr, bits, "state")
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    return generator.get_state, generator.set_state


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, by name, as their order may change; of a module, those that not every module has."""
    skipped = OWN_ATTRIBUTES | NOTES if isinstance(value, nn.Module) else frozenset()
    slots = (name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name))
    own = {name: item for name, item in getattr(value, "__dict__", {}).items() if name not in skipped}
    # An object with two names is found under the same one each time.
    return dict(sorted((own | {name: getattr(value, name) for name in slots}).items()))


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    named = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in named if not name.startswith("__"))


def _plain_attributes(holder: Any) -> dict[str, Any]:
    """The attributes of a class or a Python file that a forward may count in."""
    return {
        name: value
        for name, value in list(vars(holder).items())
        if (isinstance(value, (*_PLAIN, Tensor)) or type(value) in _CONTAINERS)
        and not (name.startswith("__") and name.endswith("__"))
    }


def _imported(file: ModuleType) -> Iterator[ModuleType]:
    """The user's own files, not installed ones, that a file of the user's imports from."""
    if _is_installed(file):
        return
    for value in list(vars(file).values()):
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        imported = sys.modules.get(name) if isinstance(name, str) else None
        if imported is not None and imported is not file and not _is_installed(imported):
            yield imported


def _is_installed(file: ModuleType) -> bool:
    path = getattr(file, "__file__", None)
    return path is None or file.__name__.split(".")[0] in _FOREIGN or str(path).startswith(_INSTALLED)


def is_own_code(part: type | FunctionType) -> bool:
    """Whether a class or a function is from a file of the user's, not from an installed package."""
    file = sys.modules.get(part.__module__ or "")
    return not _is_foreign(part) and (file is None or file.__name__ == "__main__" or not _is_installed(file))


def _is_foreign(kind: type | FunctionType) -> bool:
    return (kind.__module__ or "").split(".")[0] in _FOREIGN


def _is_own_object(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    holds = hasattr(value, "__dict__") or any(_slots(kind) for kind in type(value).__mro__)
    return holds and not isinstance(value, type) and not _is_foreign(type(value))


def _items(content: Any) -> list[tuple[Any, Any]]:
    if isinstance(content, Mapping):
        return list(content.items())
    return [(item, True) for item in content] if isinstance(content, set) else list(enumerate(content))


def _shown(key: Any) -> str:
    return repr(key)[:40] if isinstance(key, _PLAIN) else f"<{type(key).__name__}>"


def _dotted(path: str, name: Any) -> str:
    return f"{path}.{name}".lstrip(".")


def _same(before: Any, after: Any) -> bool:
    if type(before) is not type(after):
        return False
    if isinstance(before, _Version):
        if before.tensor is after.tensor:
            return bool(before.number == after.number)
        known = not has_no_value(before.tensor) and not has_no_value(after.tensor)
        return known and equal_leaves(before.tensor, after.tensor)
    if isinstance(before, np.ndarray):
        return bool(np.array_equal(before, after, equal_nan=before.dtype.kind in "fc"))
    return bool(before == after) or bool(before != before and after != after)


def _refill(owner: Any, content: Any) -> None:
    if isinstance(owner, CellType):
        owner.cell_contents = content
    elif isinstance(owner, _GENERATORS):
        _state_of(owner)[1](content)
    elif isinstance(owner, (bytearray, np.ndarray)):
        owner[:] = content
    # Another class of container, such as a frozen dict, is an object: its attributes are what was noted of it.
    elif type(owner) in _CONTAINERS:
        pairs = zip(_items(owner), _items(content), strict=False)
        if len(owner) != len(content) or any(a is not c or b is not d for (a, b), (c, d) in pairs):
            owner.clear()
            owner.extend(content) if isinstance(owner, (list, deque)) else owner.update(content)
    else:
        shared = isinstance(owner, (type, ModuleType))
        now = _plain_attributes(owner) if shared else _attributes(owner)
        for name in now.keys() - content.keys():
            delattr(owner, name) if shared else _own(owner, name, None, delete=True)
        for name, value in content.items():
            if name not in now or now[name] is not value:
                setattr(owner, name, value) if shared else _own(owner, name, value)


def _own(owner: Any, name: str, value: Any, *, delete: bool = False) -> None:
    """Set or delete an attribute of an object, past a `__setattr__` of its own."""
    if name in {slot for kind in type(owner).__mro__ for slot in _slots(kind)}:
        object.__delattr__(owner, name) if delete else object.__setattr__(owner, name, value)
    elif delete:
        vars(owner).pop(name)
    else:
        vars(owner)[name] = value
