"""The mark of a model's source: equal for two models whose forward a trace cannot tell apart.

A trace runs the code of the forward, and reads attributes, globals and closures that this code names; `PythonState`
follows both. The mark is the hash of

    modules        class, parameters and buffers without their values, hooks, and plain attributes, by path
    code           of the user's own functions that the forward may call, with their lines
    what it names  numbers, words, tables and tensors, with their values
    versions       of Python, and of the packages that all the rest is from

Where something is in it that these do not tell, a model has no mark.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache, partial
from importlib import metadata
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from repl_fx.running.code_names import is_foreign, is_installed, is_own_code, name_of_code
from repl_fx.running.holders import CONTAINERS, GENERATORS, bytes_of
from repl_fx.running.opaque_outputs import PLAIN
from repl_fx.running.python_state import DEEPEST, MOST, PythonState, Spot
from repl_fx.running.untouched import hooks_of

# Values that their names tell.
_NAMED = (
    type, FunctionType, BuiltinFunctionType, ModuleType, WrapperDescriptorType, MethodDescriptorType, MethodWrapperType,
    GetSetDescriptorType, MemberDescriptorType, ClassMethodDescriptorType, torch._ops.OpOverload,
    torch._ops.OpOverloadPacket,
)  # fmt: skip
# Those that are told by what they print, or are looked into.
_TOLD = (
    *PLAIN, torch.Size, torch.layout, torch.memory_format, Enum, re.Pattern, MethodType, partial, property,
    cached_property, tuple, frozenset, staticmethod, classmethod, type(lru_cache(len)), Tensor,
)  # fmt: skip
# Those of which a forward reads nothing.
_SILENT = (logging.Logger, TypeVar)


@dataclass(frozen=True)
class SourceMark:
    """The facts of the source of a model.

    Attributes:
        digest: the mark; empty where the model has none.
        files: the user's own files that its code is from.
    """

    digest: str
    files: frozenset[str] = frozenset()

    def fits(self, digest: str) -> bool:
        """Tell whether a model with this mark is the same as one with another."""
        return bool(self.digest) and self.digest == digest


def source_mark(model: nn.Module) -> SourceMark:
    """The mark of a model as it is now; the values of its parameters and buffers have no part in it."""
    looked = _Looked(model)
    if looked.hidden:
        return SourceMark("")
    digest = _hash((*_modules(model), *looked.lines(), f"default dtype {torch.get_default_dtype()}"))
    return SourceMark(digest, frozenset(looked.own_files))


def packages_of(model: nn.Module) -> set[str]:
    """The packages, and modules of the user's own, that the classes of a model are from, without torch."""
    return {type(m).__module__.partition(".")[0] for m in model.modules()} - {"torch", "repl_fx", "builtins"}


def _modules(model: nn.Module) -> Iterator[str]:
    seen: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        known = seen.setdefault(id(module), path)
        yield f"{path}: {[_name(kind) for kind in type(module).__mro__] if known == path else known}"
        if known != path:
            continue
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                yield f"{path}.{name}: None"
                continue
            first = seen.setdefault(id(tensor), f"{path}.{name}")
            about = (
                tensor.dtype,
                tuple(tensor.shape),
                tensor.stride(),
                tensor.device.type,
                tensor.requires_grad,
                _name(type(tensor)),
            )
            kept = name not in module._non_persistent_buffers_set
            yield f"{path}.{name}: {first} {about} {kept} {len(tensor._backward_hooks or ())}"
        hooks = {name: len(held) for name, held in vars(module).items() if name.endswith("_hooks") and held}
        if hooks:
            yield f"{path}: {hooks}"


class _Looked(PythonState):
    """The Python state of a model, and what each value is; versions tell what installed packages alone name.

    Attributes:
        hidden: paths of values that say too little of themselves.
        own_files: files of the user's code.
    """

    def __init__(self, model: nn.Module) -> None:
        self.kinds: dict[str, str] = {}
        self.packages: set[str] = {"torch", "repl_fx"}
        self.hidden: list[str] = []
        self.own_files: set[str] = set()
        self._tree = set(model.modules())
        for kind in {kind for module in self._tree for kind in type(module).__mro__}:
            self._note_package(kind)
        super().__init__(model, hooks_of(model))
        self.hidden += [path for path in self.unseen if path in self.kinds]

    def lines(self) -> Iterator[str]:
        """The things seen, in an order that is the same each time."""
        yield from sorted(f"{path}: {kind}" for path, kind in self.kinds.items())
        for path, value in sorted(self._values.items()):
            kind = self.kinds.get(path.removeprefix("len(").removesuffix(")") if path.startswith("len(") else path)
            if kind is not None and not kind.startswith("a generator") and not _is_hash(path, value):
                yield f"{path} = {_told(value)}"
        codes = set()
        for function in self._functions.values():
            self._note_package(function)
            if is_own_code(function):
                self.own_files.add(function.__code__.co_filename)
                codes.add(f"{function.__qualname__} {_code(function.__code__)}")
        yield from sorted(codes)
        yield f"Python {sys.version_info[:2]}"
        for package in sorted(self.packages):
            yield f"{package} {_version(package)}"

    def _look(self, place: Spot, value: Any) -> None:
        if not place.of_library:
            if place.depth > DEEPEST or len(self._values) >= MOST:
                self.hidden.append(place.path)
            self.kinds[place.path] = self._kind(place, value)
        super()._look(place, value)

    def _note_package(self, part: Any) -> None:
        if not isinstance(part, (type, FunctionType)) or not is_own_code(part):
            self.packages.add(str(getattr(part, "__module__", None) or "").partition(".")[0])

    def _enter_large(self, place: Spot, container: Any) -> None:
        super()._enter_large(place, container)
        if place.of_library:
            return
        # The data of a script, which may be gigabytes, are not read.
        self.hidden.append(place.path)

    def _kind(self, place: Spot, value: Any) -> str:
        if isinstance(value, nn.Module):
            if value not in self._tree:
                # Its tensors are not looked at.
                self.hidden.append(place.path)
            return f"module {_name(type(value))}"
        if isinstance(value, _NAMED):
            self._note_package(value)
            return _name(value)
        self._note_package(type(value))
        if isinstance(value, GENERATORS):
            return f"a generator {_name(type(value))}"
        if type(value) in CONTAINERS or isinstance(value, (*_TOLD, *_SILENT)) or type(value) is object:
            return f"{_name(type(value))} {value if isinstance(value, re.Pattern) else ''}"
        held = getattr(value, "__dict__", None)
        if held is not None and not is_foreign(type(value)):
            return _name(type(value))
        # Its attributes are not looked at.
        if held is None or not all(isinstance(item, PLAIN) for item in held.values()):
            self.hidden.append(place.path)
            return ""
        return f"{_name(type(value))} {sorted(held.items())}"


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()


def _name(value: Any) -> str:
    if isinstance(value, ModuleType):
        # A file of the user's has another name wherever it lies.
        return value.__name__ if is_installed(value) else ""
    return name_of_code(value)


def _is_hash(path: str, value: Any) -> bool:
    """Tell whether a value is a hash that an object keeps of itself, as a `GenerationConfig` does, for one process."""
    return isinstance(value, int) and abs(value) >= 1 << 32 and "hash" in path.rpartition(".")[2]


def _told(value: Any) -> str:
    tensor = getattr(value, "tensor", None)
    if isinstance(tensor, Tensor):
        if tensor.is_meta or tensor.layout is not torch.strided:
            return f"{tensor.dtype} {list(tensor.shape)} {tensor.layout} {tensor.device}"
        values = hashlib.sha256(bytes_of(tensor)).hexdigest()
        return f"{tensor.dtype} {list(tensor.shape)} {tensor.device.type} {values}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    return f"{type(value).__name__} {value!r}"


@lru_cache(maxsize=8192)
def _code(code: CodeType) -> str:
    """Hash of code and of where its lines are, but for the file."""
    held: list[Any] = [
        _code(one) if isinstance(one, CodeType) else sorted(map(repr, one)) if isinstance(one, frozenset) else repr(one)
        for one in code.co_consts
    ]
    about = (
        code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_firstlineno,
        code.co_linetable, code.co_flags, held,
    )  # fmt: skip
    return _hash([repr(about)])


@lru_cache(maxsize=256)
def _version(package: str) -> str:
    known = getattr(sys.modules.get(package), "__version__", None)
    if known is not None:
        return str(known)
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return ""
