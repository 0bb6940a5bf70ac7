"""The text of a captured graph: two graphs with the same text compute the same from the same weights.

    %3 = call_function aten.gelu.default(%2)    nodes, with all that is no tensor among their arguments
    blocks.0.drop: torch.nn.modules.dropout.Dropout p=0.1
                                                layers called as a whole, with their settings
    blocks.0.drop: hook scaled                  hooks of the user's own on them
    blocks.0.fc.weight: float32[32, 16]         parameters and buffers, without their values
    rope.inv_freq: float32[8]                   other buffers, of which an artifact holds the values
    traced_constant_0: float32[2] 0.5 2         tensors that the code itself holds, with them

Of code that stays Python (layers of the user's own that are called as a whole, and what is around captured parts), the
text is the code, without comments, and the numbers and words that it reads from its file.
"""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repl_fx.graph.captured import is_traced_constant
from repl_fx.graph.kinds import kind_of
from repl_fx.graph.runtime import SizeCheck
from repl_fx.running.code_names import codes_in, is_own_code, name_of_code, names_in
from repl_fx.running.holders import NOTES, OWN_ATTRIBUTES, bytes_of
from repl_fx.running.opaque_outputs import PLAIN

# As they are: what they print is what they are.
_PLAIN = (*PLAIN, type(...), torch.layout, torch.memory_format, torch.Size, pytree.TreeSpec)
_NO_NODES: Mapping[fx.Node, str] = MappingProxyType({})
# Numbers of a constant that are written out.
_FEW = 32
# Objects may hold objects; what lies deeper is told by its class.
_DEEPEST = 6


def fingerprint(lines: Iterable[str]) -> str:
    """Hash of the text of a graph, or of all parts of a model."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def lines_of_code(gm: fx.GraphModule) -> list[str]:
    """The text of what a graph computes, without that of the tensors it computes with."""
    called = dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    return [*_nodes(gm), *chain.from_iterable(lines_of_module(gm.get_submodule(path), path) for path in called)]


def lines_of_graph(gm: fx.GraphModule) -> list[str]:
    """The text of a captured graph, by lines."""
    lines = [*lines_of_code(gm), *_hooks(gm)]
    state = gm.state_dict(keep_vars=True)
    # Of `get_extra_state` a graph computes nothing.
    lines += [f"{name}: {kind_of(tensor)}" for name, tensor in state.items() if isinstance(tensor, Tensor)]
    read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    for name, buffer in gm.named_buffers(remove_duplicate=False):
        if name in read and name not in state:
            values = _values(buffer) if is_traced_constant(name) else ""
            lines.append(f"{name}: {kind_of(buffer)} {values}".rstrip())
    return lines


def _hooks(gm: fx.GraphModule) -> Iterator[str]:
    """The user's own hooks on the calls of layers, which may change what these compute."""
    for path in dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "call_module"):
        for inner, module in gm.get_submodule(path).named_modules(prefix=path):
            for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
                if isinstance(hook, FunctionType) and is_own_code(hook):
                    yield f"{inner}: hook {_describe(hook)}"


def lines_of_module(module: nn.Module, path: str) -> Iterator[str]:
    """The text of a module that a graph calls as a whole: its class, its settings and its code, and of those in it."""
    if isinstance(module, fx.GraphModule):
        yield from (f"{path}: {line}" for line in lines_of_graph(module))
        return
    yield f"{path}: {_describe(_written(type(module)))} {_attributes(_settings(module))}".rstrip()
    for name, child in module.named_children():
        yield from lines_of_module(child, f"{path}.{name}")


def lines_around(model: nn.Module, parts: Collection[str], *, as_set: bool = False) -> Iterator[str]:
    """The text of what stays Python around captured parts: classes, their code, and their settings.

    An attribute that a forward changes, such as a counter, is no setting, nor is one that no forward reads: of classes
    other than PyTorch's own, settings are the numbers and words that no method but `__init__` assigns.

    Args:
        parts: paths of modules that are left out, with all that is in them.
        as_set: count what methods assign that no forward calls, too, such as `reset_classifier`; but for checkpointing,
            which changes no value.
    """
    kinds: set[Any] = {type(module) for module in model.modules()}
    read = _named_by(kinds, {"forward"})
    # PyTorch's own methods, such as `train`, are called by whoever uses a model.
    called = _named_by(kinds, {"forward", *vars(nn.Module)} - {"__init__"}) if as_set else None
    stored = chain.from_iterable(map(_stored_by_methods, kinds))
    assigned = {name for method, names in stored if called is None or method in called for name in names}

    def is_setting(module: nn.Module, name: str, value: Any) -> bool:
        kind: Any = type(module)
        if kind.__module__.startswith("torch.nn."):
            known = read is None or name in read or name in _named_by_layer(kind) or name in _named_by_hooks(module)
            return not as_set or (name != "forward" and not name.startswith("_") and known)
        return (
            name not in assigned
            and not (as_set and "checkpoint" in name and isinstance(value, bool))
            and (read is None or name in read)
            # Libraries mark modules with private names; those of the class's own are declared in it.
            and (not name.startswith("_") or is_own_code(kind) or (as_set and hasattr(kind, name)))
            # Adapters that are merged are named in a list.
            and (_is_fixed(value) or (as_set and isinstance(value, list) and all(isinstance(v, str) for v in value)))
        )

    first: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if not any(f"{path}.".startswith(f"{part}.") for part in parts):
            kind, every, known = type(module), _settings(module), first.setdefault(id(module), path)
            settings = _own_forward(every) if as_set else {}
            settings |= {name: value for name, value in every.items() if is_setting(module, name, value)}
            text = f"{_describe(_written(kind))} {_attributes(settings)}" if known == path else f"the module at {known}"
            yield f"{path}: {text}".rstrip()


def _written(kind: type) -> type:
    """The class as a file has it; libraries make subclasses on the fly, to shard a layer or to compute its weight."""
    return next((part for part in inspect.getmro(kind) if _is_in_a_file(part)), kind)


def _is_in_a_file(kind: type) -> bool:
    found: Any = sys.modules.get(kind.__module__)
    # A file of the user's may have been read again since, and has other classes of the same names then.
    if found is None or "<locals>" in kind.__qualname__ or is_own_code(kind):
        return True
    for step in kind.__qualname__.split("."):
        found = getattr(found, step, None)
    return found is kind and issubclass(kind, nn.Module)


def _own_forward(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The forward of the user's for one module, among its attributes; libraries wrap that of its class."""
    forward = settings.get("forward")
    function = getattr(forward, "__func__", forward)
    # accelerate leaves that of the class on a module that it unwraps.
    of_class = getattr(type(getattr(forward, "__self__", None)), "forward", None)
    if not isinstance(function, FunctionType) or function is of_class:
        return {}
    # What `functools.wraps` made has the module of the function that it wraps.
    written = FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    return {"forward": forward} if is_own_code(written) else {}


def _is_fixed(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_fixed, value)))


@functools.lru_cache(maxsize=1024)
def _stored_by_methods(kind: type) -> Sequence[tuple[str, frozenset[str]]]:
    """The attributes that each method of a class but `__init__` assigns, of itself or of others."""
    found: list[tuple[str, frozenset[str]]] = []
    for part in inspect.getmro(kind):
        if part.__module__.startswith("torch.nn.") or part is object:
            continue
        for name, value in vars(part).items():
            codes = chain.from_iterable(map(codes_in, _codes(value))) if name != "__init__" else ()
            steps = chain.from_iterable(map(dis.get_instructions, codes))
            stored = (str(s.argval) for s in steps if s.opname in ("STORE_ATTR", "DELETE_ATTR"))
            found.append((name, frozenset(stored)))
    return found


def _named_by(kinds: Iterable[type], roots: Iterable[str]) -> Collection[str] | None:
    """The attributes that some methods of classes, and methods that these name, may read; None where that may be any.

    What the class of a forward assigns in its `__init__` counts: a function that is handed the module may read it.
    """
    parts = {part for kind in kinds for part in inspect.getmro(kind) if not part.__module__.startswith("torch.")}
    own = [vars(part)["__init__"] for part in parts if {"forward", "__init__"} <= vars(part).keys()]
    known, pending = set[str](), set(roots).union(*(names_in(code).stored for init in own for code in _codes(init)))
    while pending:
        known.add(now := pending.pop())
        for part in parts:
            for names in map(names_in, _codes(vars(part).get(now))):
                # Libraries make names of their modules, and of what is in their configs.
                if names.any_attribute and is_own_code(part):
                    return None
                pending |= names.attributes - known
    return known


@functools.lru_cache(maxsize=1024)
def _named_by_layer(kind: type) -> Collection[str]:
    """The attributes that the methods of a class of PyTorch's name; others are marks of libraries and users."""
    codes = chain.from_iterable(_codes(value) for part in inspect.getmro(kind) for value in vars(part).values())
    return set[str]().union(*(names_in(code).attributes for code in codes))


def _named_by_hooks(module: nn.Module) -> Collection[str]:
    """The attributes that hooks of the user's on a module name."""
    hooks: tuple[Any, ...] = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    codes = chain.from_iterable(_codes(hook) for hook in hooks if is_own_code(getattr(hook, "__func__", hook)))
    return set[str]().union(*(names_in(code).attributes for code in codes))


def _codes(value: Any) -> Iterator[CodeType]:
    """The code of a method or a property of a class, and of what it is wrapped around."""
    for function in (value.fget, value.fset) if isinstance(value, property) else (getattr(value, "__func__", value),):
        while function is not None:
            if isinstance(function, FunctionType):
                yield function.__code__
            function = getattr(function, "__wrapped__", None)


def code_of(model: nn.Module) -> str:
    """Hash of the code of the user's own classes in a model; empty where there are none."""
    kinds: set[Any] = {type(module) for module in model.modules()}
    codes = {f"{name_of_code(kind)}{code}" for kind in kinds if (code := _code(kind))}
    return fingerprint(sorted(codes)) if codes else ""


def _settings(module: nn.Module) -> dict[str, Any]:
    settings = {name: value for name, value in vars(module).items() if name not in OWN_ATTRIBUTES | NOTES}
    if any(part.__module__.startswith("repl_fx.") for part in inspect.getmro(type(module))):
        # State of a call, such as the runs of a synthesis inside `shared_synthesis`.
        return {name: value for name, value in settings.items() if not name.startswith("_")}
    return settings


def _nodes(gm: fx.GraphModule) -> Iterator[str]:
    # Which sizes of 1 a graph refuses depends on the values of the example inputs too.
    nodes = [node for node in gm.graph.nodes if not isinstance(node.target, SizeCheck)]
    number = {node: f"%{i}" for i, node in enumerate(nodes)}
    for node in nodes:
        target = node.target if isinstance(node.target, str) else _describe(node.target)
        given = [_describe(value, number) for value in node.args]
        given += [f"{name}={_describe(value, number)}" for name, value in node.kwargs.items()]
        yield f"{number[node]} = {node.op} {target}({', '.join(given)})"


def _describe(value: Any, number: Mapping[fx.Node, str] = _NO_NODES, depth: int = 0) -> str:
    if isinstance(value, fx.Node):
        return number.get(value, value.name)
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        # A parameter by another way, mostly, as recurrent layers have them.
        return kind_of(value)
    if isinstance(value, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(value)
    if isinstance(value, slice):
        return f"{_describe([value.start, value.stop, value.step], number, depth)}"
    # The lines of a module say what it is, where a graph calls it.
    if depth > _DEEPEST or isinstance(value, nn.Module):
        return name_of_code(type(value))
    if isinstance(value, Mapping):
        items = (f"{_describe(k, number, depth + 1)}: {_describe(v, number, depth + 1)}" for k, v in value.items())
        # One of accelerate's has not the keys that it gives.
        with suppress(KeyError):
            return f"{{{', '.join(items)}}}"
    if isinstance(value, (tuple, list, set, frozenset)):
        described = [_describe(item, number, depth + 1) for item in value]
        listed = ", ".join(sorted(described) if isinstance(value, (set, frozenset)) else described)
        return f"[{listed}]" if isinstance(value, list) else f"({listed})"
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return name_of_code(value) + _code(value)
    if isinstance(value, MethodType):
        return f"{_describe(value.__func__, number, depth + 1)} of {_describe(value.__self__, number, depth + 1)}"
    if isinstance(value, functools.partial):
        return f"partial{_describe([value.func, value.args, value.keywords], number, depth + 1)}"
    return f"{name_of_code(type(value))} {_attributes(getattr(value, '__dict__', {}), depth + 1)}".rstrip()


def _attributes(values: Mapping[str, Any], depth: int = 0) -> str:
    plain = {name: value for name, value in values.items() if not isinstance(value, (Tensor, nn.Module))}
    return " ".join(f"{name}={_describe(value, depth=depth)}" for name, value in sorted(plain.items()))


def _values(tensor: Tensor) -> str:
    """Values in few digits, or a hash; nothing of long tables of fractions, whose last digits machines differ in."""
    if tensor.is_meta:
        return ""
    flat = tensor.detach().cpu().flatten()
    if flat.numel() <= _FEW:
        return " ".join(f"{value:.4g}" for value in flat.tolist())
    if flat.is_floating_point() or flat.is_complex():
        return ""
    return hashlib.sha256(bytes_of(flat)).hexdigest()[:16]


@functools.lru_cache(maxsize=1024)
def _code(kind: Any) -> str:
    """Hash of the user's own code of a class or a function, with the numbers and words that it reads; else nothing."""
    found: list[str] = []
    for part in inspect.getmro(kind) if isinstance(kind, type) else (kind,):
        if isinstance(part, (type, FunctionType)) and is_own_code(part):
            found.append(_source(part))
            for function in _functions(part):
                named = chain.from_iterable(code.co_names for code in codes_in(function.__code__))
                values = ((name, function.__globals__.get(name)) for name in named)
                found += [f"{n}={v!r}" for n, v in values if isinstance(v, _PLAIN) and v is not None]
    return f" code {hashlib.sha256(''.join(found).encode()).hexdigest()[:16]}" if found else ""


def _source(part: Any) -> str:
    """The source without comments; where there is none, what Python made of it."""
    try:
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(part))))
    except (OSError, TypeError, SyntaxError):
        codes = (function.__code__ for function in _functions(part))
        return "".join(f"{code.co_code.hex()} {code.co_consts}" for code in codes)


def _functions(part: Any) -> list[Any]:
    """A function itself, or those of a class."""
    held = vars(part).values() if isinstance(part, type) else (part,)
    return [function for function in held if isinstance(getattr(function, "__code__", None), CodeType)]
