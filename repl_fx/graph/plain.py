"""A graph as JSON: data that is read back without running anything that it holds.

    node           -> [name, operation, target, arguments, keywords, notes]
    aten.relu      -> ["operator", "aten.relu.default"], of a few libraries of operators alone
    add_sizes      -> ["function", "operator.add"], one of `_FUNCTIONS`
    a fake tensor  -> ["fake", 7]: a row of sizes, strides, dtype and device
    a size `2*s0`  -> ["number", …]: the row of an expression, and its value in the example

What is the same in many nodes (fake values, expressions, the code that a node is from) is a row of a table, once.
Values of any other kind are no data: `Writer` raises a `NotPlain` for them, and `Reader` a `ValueError` for whatever a
writer would not have written. A pickle (`repl_fx.graph.pickling`) keeps all graphs, and runs what it holds.
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
import random
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, partial
from operator import attrgetter
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from repl_fx._torch import (
    EXPRESSIONS,
    SYMBOLIC,
    FakeTensor,
    FakeTensorMode,
    OpOverload,
    ValueRanges,
    children_of,
    expression_of,
    known_of_sizes,
    leaf_structure,
    operator_name,
    pytree,
    settings_of_mode,
    sizes_knowing,
    symbolic_number,
)
from repl_fx.graph import decisions, runtime
from repl_fx.graph.boundaries import BOUNDARIES, Boundary, ModuleCall, boundaries
from repl_fx.graph.captured import PlainGraphModule, attribute
from repl_fx.graph.kinds import dtype_name, of_torch
from repl_fx.graph.pickling import fake_tensor, makings_of
from repl_fx.graph.signature import PackOutput
from repl_fx.running.opaque_outputs import HERE, PLAIN, Shell, is_object

Data = Any


def _word_of(value: object) -> tuple[str]:
    return (str(value).removeprefix("torch."),)


# Libraries of operators that compute, and do nothing else.
_LIBRARIES = ("aten", "torchvision", "torchaudio", "transformers")
_RUNTIME = (
    "select_mode", "check_modes", "check_constant", "check_items", "check_keys", "check_shape", "check_condition",
    "check_setting", "check_layout", "enter_grad_mode", "restore_grad_mode", "enter_autocast", "exit_autocast",
    "assign_buffer", "call_module",
)  # fmt: skip
_OPERATORS = (
    "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "abs", "eq", "ne", "lt", "le", "gt", "ge",
    "and_", "or_", "xor", "not_", "invert", "getitem", "is_", "is_not",
)  # fmt: skip
_OF_SIZES = (
    "sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_ite", "sym_sum", "_sym_sqrt", "linspace",
    "avg_pool1d", "max_pool1d", "max_pool2d", "max_pool3d",
)  # fmt: skip
_OF_NUMBERS = ("floor", "ceil", "trunc", "sqrt")
_DRAWS: tuple[Callable[..., Any], ...] = (random.random, random.uniform, random.randint)
_PYTHONS: tuple[Callable[..., Any], ...] = (max, min, int, float, bool, round, abs, len, getattr)
# The functions that a graph may call, by name.
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{f"runtime.{name}": getattr(runtime, name) for name in _RUNTIME},
    **{f"decisions.{name}": getattr(decisions, name) for name in ("choose", "pick")},
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS},
    **{f"torch.{name}": getattr(torch, name) for name in _OF_SIZES if hasattr(torch, name)},
    **{f"functional.{name}": getattr(functional, name) for name in ("avg_pool2d", "avg_pool3d")},
    **{f"math.{name}": getattr(math, name) for name in _OF_NUMBERS},
    **{f"builtins.{function.__name__}": function for function in _PYTHONS},
    **{f"random.{function.__name__}": function for function in _DRAWS},
    **{f"numpy.random.{name}": getattr(np.random, name) for name in ("rand", "random", "uniform")},
}
_NAMES: Mapping[Callable[..., Any], str] = {function: name for name, function in _FUNCTIONS.items()}
_EXPRESSIONS = {kind: name for name, kind in EXPRESSIONS.items()}
# The attributes that a graph may ask a value for: where it is.
_ATTRIBUTES = ("device", "type")
_OPERATIONS = ("placeholder", "get_attr", "call_function", "call_module", "output")
# The notes of a node that are kept.
_NOTES = {"val", "nn_module_stack", "stack_trace", "passes_through", BOUNDARIES}
_FILE = re.compile(r'(?<=File ")[^"]+(?=", line )')
_SYMBOL = re.compile(r"[a-z]+\d+")
# Values that are told by parts that are values, by the word for them: their very classes, the parts, and what makes one
# of these. Lists and tuples of other classes are no data.
_KINDS: Mapping[str, tuple[tuple[type, ...], Callable[[Any], Iterable[Any]], Callable[..., Any]]] = {
    "tuple": ((tuple,), iter, lambda *items: items),
    "list": ((list, fx.immutable_collections.immutable_list), iter, lambda *items: list(items)),
    "set": ((set, frozenset), iter, lambda *items: set(items)),
    "size": ((torch.Size,), iter, lambda *sizes: torch.Size(map(int, sizes))),
    "slice": ((slice,), attrgetter("start", "stop", "step"), lambda start, stop, step: slice(start, stop, step)),
    "range": ((ValueRanges,), attrgetter("lower", "upper"), ValueRanges),
    "device": ((torch.device,), _word_of, torch.device),
    **{n: ((getattr(torch, n),), _word_of, partial(of_torch, n)) for n in ("dtype", "layout", "memory_format")},
}
_WORDS = {kind: word for word, (kinds, *_) in _KINDS.items() for kind in kinds}
# Those that are no arguments.
_NOTED = frozenset({"set", "range"})
# What a condition on sizes is made of, besides names and numbers.
_OF_CONDITIONS = (
    ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.boolop, ast.operator, ast.unaryop, ast.cmpop,
    ast.Load,
)  # fmt: skip
_CALLED_IN_CONDITIONS = frozenset(
    {"max", "min", "math.floor", "math.ceil", "math.trunc", "torch.sym_float", "torch._sym_sqrt"}
)

# Methods that Python calls unasked.
_HOOKS = (
    "__new__", "__del__", "__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__",
    "__getattribute__",
)  # fmt: skip


class NotPlain(Exception):
    """A graph holds a value that is no plain data; the message names it."""


class Writer:
    """Writes graphs as data; `tables` is what they have in common, and is written with them.

    Args:
        packages: those whose objects are written by their attributes.

    Attributes:
        tables: rows by the name of the table, each of which only refers to rows before it.
    """

    def __init__(self, packages: Collection[str] = ()) -> None:
        self._packages = packages
        self.tables: dict[str, Any] = {
            name: [] for name in ("expressions", "sizes", "modes", "fakes", "stacks", "texts", "calls")
        }
        self.tables["files"] = {}
        self._rows: dict[str, dict[Any, int]] = {name: {} for name in self.tables}
        # The places of the nodes that were written of the graph that is.
        self._numbers: dict[fx.Node, int] = {}
        # Identities are those of these for as long as there is a writer.
        self._kept: list[Any] = []

    def graph(self, graph: fx.Graph) -> list[Data]:
        """The nodes of a graph.

        Raises:
            NotPlain: a node has a target, an argument or a note that is no data.
        """
        if type(graph._codegen) is not fx.graph.CodeGen:
            raise NotPlain("a graph whose code is written in another way")
        around, self._numbers = self._numbers, {}
        written = []
        for node in graph.nodes:
            if node.type is not None or not node.meta.keys() <= _NOTES:
                raise NotPlain(f"{node.name} has notes of other kinds")
            args, kwargs = map(self.value, (node.args, node.kwargs))
            written.append([node.name, node.op, self._target(node), args, kwargs, self._notes(node)])
            self._numbers[node] = len(self._numbers)
        self._numbers = around
        return written

    def _row(self, table: str, key: Any, row: Callable[[], Data]) -> int:
        known = self._rows[table]
        if key not in known:
            data = row()
            known[key] = len(self.tables[table])
            self.tables[table].append(data)
        return known[key]

    def _of(self, table: str, thing: Any, row: Callable[[], Data]) -> int:
        """The row of one thing, which may be equal to others."""
        self._kept.append(thing)
        return self._row(table, id(thing), row)

    def _target(self, node: fx.Node) -> Data:
        target = node.target
        if node.op != "call_function":
            return str(target)
        if isinstance(target, OpOverload) and target.namespace in _LIBRARIES:
            return ["operator", str(operator_name(target))]
        if isinstance(target, runtime.SizeCheck):
            sizes = [list(size) for size in target.sizes]
            within = list(target.within)
            return ["size check", target.condition, sizes, target.words, target.place, target.limit, within]
        if type(target) is decisions.Condition:
            return ["condition", target.skips_when]
        if type(target) is decisions.Decision:
            return ["decision", self._draw(target.draw), target.skips_when]
        if type(target) is PackOutput:
            return ["pack", self._structure(target.structure)]
        if target is getattr and node.args[1] not in _ATTRIBUTES:
            raise NotPlain(f"{node.name} asks for the attribute {node.args[1]}")
        if callable(target) and isinstance(name := _NAMES.get(target), str):
            return ["function", name]
        raise NotPlain(f"{node.name} calls {target}")

    def _draw(self, draw: Any) -> Data:
        if type(draw) is decisions.Comparison:
            functions = [_NAMES.get(function) for function in (draw.function, draw.compare)]
            if None not in functions:
                return ["comparison", *functions, self.value(draw.args), self.value(draw.other)]
        if isinstance(draw, PlainGraphModule) and not any(draw.children()):
            return ["graph", self.graph(draw.graph)]
        raise NotPlain(f"a draw by {draw}")

    def _notes(self, node: fx.Node) -> Data:
        notes: dict[str, Data] = {"val": self.value(node.meta["val"])} if "val" in node.meta else {}
        if "passes_through" in node.meta:
            notes["passes"] = bool(node.meta["passes_through"])
        if stack := node.meta.get("nn_module_stack"):
            rows = tuple((key, *map(str, entry)) for key, entry in stack.items())
            notes["stack"] = self._row("stacks", rows, lambda: [list(row) for row in rows])
        if text := node.meta.get("stack_trace"):
            notes["text"] = self._row("texts", text, lambda: text)
            self.tables["files"].update({file: _module_of(file) for file in _FILE.findall(text)})
        if at := boundaries(node):
            notes["at"] = [
                [self._call(note.call), None if note.argument is None else list(note.argument), note.leaf]
                for note in at
            ]
        return notes

    def _call(self, call: ModuleCall) -> int:
        if id(call) not in self._rows["calls"]:
            # All calls of a module are written together, and are found again by that.
            for same in call.calls:
                self._of("calls", same, lambda same=same: self._of_call(same, call.calls[0]))  # type: ignore[misc]
        return self._rows["calls"][id(call)]

    def _of_call(self, call: ModuleCall, first: ModuleCall) -> Data:
        given = [[list(place), self.value(value)] for place, value in call.given.items()]
        # Of objects no more is asked than that they are some.
        plain = (*PLAIN, *SYMBOLIC)
        constants = [[n, self.value(v if isinstance(v, plain) else type(v))] for n, v in call.constants.items()]
        result = None if call.result is None else self._structure(call.result)
        return [call.path, given, result, constants, self._rows["calls"].get(id(first))]

    def value(self, value: Any) -> Data:
        """A value that nodes note, or a constant among their arguments."""
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, fx.Node) and value in self._numbers:
            return ["node", self._numbers[value]]
        if type(value) is float:
            return value if math.isfinite(value) else ["float", repr(value)]
        if isinstance(value, FakeTensor):
            return self._fake(value)
        if type(value) in SYMBOLIC:
            return self._number(value)
        if type(value) in _WORDS:
            word = _WORDS[type(value)]
            return [word, *map(self.value, _KINDS[word][1](value))]
        if type(value) in (dict, fx.immutable_collections.immutable_dict):
            return ["dict", *([self.value(key), self.value(item)] for key, item in value.items())]
        return self._noted(value)

    def _noted(self, value: Any) -> Data:
        """A value without parts that are values, and of kinds that are no arguments."""
        if isinstance(value, sympy.Basic):
            return ["expression", self._expression(value)]
        if isinstance(value, pytree.TreeSpec):
            return ["tree", self._structure(value)]
        if isinstance(value, type):
            return ["class", value.__module__, value.__qualname__]
        if value is HERE or value is ...:
            return ["here" if value is HERE else "ellipsis"]
        if type(value) is Tensor and value.is_meta and not value.numel():
            return ["anchor"]
        if isinstance(value, Shell) and is_bare(value.kind, self._packages):
            return ["shell", *map(self.value, (value.kind, value.names, value.held, value.rest))]
        if is_object(value) and is_bare(type(value), self._packages):
            return ["object", self.value(type(value)), self.value(vars(value))]
        raise NotPlain(f"a value of the class {type(value).__name__}")

    def _fake(self, tensor: Tensor) -> Data:
        if tensor.layout is not torch.strided:
            raise NotPlain(f"a value of layout {tensor.layout}")
        mode, size, stride, dtype, device, trained = makings_of(tensor)
        sizes = ([self.value(number) for number in numbers] for numbers in (size, stride))
        row = [self._mode(mode), *sizes, dtype_name(dtype), str(device), trained]
        return ["fake", self._row("fakes", repr(row), lambda: row)]

    def _number(self, number: Any) -> Data:
        try:
            sizes, expression, *values = expression_of(number)
        except TypeError as problem:
            raise NotPlain(str(problem)) from problem
        rows = self._sizes(sizes), self._expression(expression)
        return ["number", type(number).__name__, *rows, *map(self.value, values)]

    def _mode(self, mode: Any) -> int:
        def row() -> Data:
            return [settings_of_mode(mode), None if mode.shape_env is None else self._sizes(mode.shape_env)]

        return self._of("modes", mode, row)

    def _sizes(self, sizes: Any) -> int:
        return self._of("sizes", sizes, lambda: self.value(known_of_sizes(sizes)))

    def _expression(self, expression: Any) -> int:
        """The row of an expression; those of its parts are before it."""

        def row() -> Data:
            if isinstance(expression, sympy.Symbol):
                (name,), assumptions = expression.__getnewargs_ex__()
                return ["symbol", name, dict(assumptions)]
            if isinstance(expression, sympy.Rational):
                return ["fraction", int(expression.p), int(expression.q)]
            if type(expression) not in _EXPRESSIONS:
                raise NotPlain(f"an expression of the class {type(expression).__name__}")
            return [_EXPRESSIONS[type(expression)], *map(self._expression, expression.args)]

        return self._row("expressions", expression, row)

    def _structure(self, structure: pytree.TreeSpec) -> Data:
        if structure.is_leaf():
            return None
        children = map(self._structure, children_of(structure))
        return [self.value(structure.type), self.value(structure.context), *children]


class Reader:
    """Reads what a `Writer` wrote.

    Args:
        tables: as they were written.
        own_files: the files of the user's own code that graphs are from, as they lie now.
        packages: those whose objects may be made again.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: this is not what a writer writes.
    """

    def __init__(
        self, tables: Mapping[str, Any], own_files: Iterable[str] = (), packages: Collection[str] = ()
    ) -> None:
        self._packages = packages
        self._expressions: list[Any] = []
        for row in tables["expressions"]:
            self._expressions.append(self._expression(row))
        self._sizes = [sizes_knowing(_names(self._value(row))) for row in tables["sizes"]]
        self._modes = [
            FakeTensorMode(**_names(settings), shape_env=None if sizes is None else self._sizes[sizes])
            for settings, sizes in tables["modes"]
        ]
        self._fakes = [self._makings(row) for row in tables["fakes"]]
        self._stacks = [{key: (path, kind) for key, path, kind in map(_words, rows)} for rows in tables["stacks"]]
        places = dict(_moved(tables["files"], own_files))
        self._texts = [
            _FILE.sub(lambda found: places.get(found[0], found[0]), text) for text in _words(tables["texts"])
        ]
        self._calls: list[ModuleCall] = []
        for path, given, result, constants, first in tables["calls"]:
            together = [] if first is None else self._calls[first].calls
            call = ModuleCall(
                path,
                together,
                {tuple(_words_and_numbers(place)): self._value(value) for place, value in given},
                self._structure(result),
                {int(number): self._value(value) for number, value in constants},
            )
            together.append(call)
            self._calls.append(call)

    def graph(self, nodes: Sequence[Data], root: nn.Module | None = None) -> fx.Graph:
        """The graph of these nodes.

        Args:
            root: has the modules and tensors that the graph names; None for a graph that names none.
        """
        graph = fx.Graph()
        before: list[fx.Node] = []
        for name, operation, target, args, kwargs, notes in nodes:
            if operation not in _OPERATIONS or not is_name(name):
                raise ValueError(f"a node {name!r} that is a {operation!r}")
            what = self._target(target) if operation == "call_function" else target
            given, named = self._value(args, before), self._value(kwargs, before)
            if operation == "placeholder" and not is_name(target):
                raise ValueError(f"an argument {target!r}")
            if operation in ("get_attr", "call_module"):
                _require_part(root, operation, target)
            if not all(map(is_name, named)):
                raise ValueError(f"keywords {list(named)}")
            if what is getattr and (len(given) != 2 or given[1] not in _ATTRIBUTES):
                raise ValueError(f"the attribute {given[1:]}")
            if what is runtime.call_module:
                # Of all that a graph gets hold of, these alone are called.
                _require_module(root, given[0])
            node = graph.create_node(operation, what, given, named, name)
            if node.name != name:
                raise ValueError(f"a node {name!r}, which another one is called")
            node.meta = self._notes(notes)
            before.append(node)
        if not before or before[-1].op != "output" or any(node.op == "output" for node in before[:-1]):
            raise ValueError("a graph that does not end with its output")
        return graph

    def _target(self, target: Data) -> Any:
        match target:
            case ["operator", str(name)]:
                return _operator(name)
            case ["function", str(name)]:
                return _FUNCTIONS[name]
            case ["condition", bool(skips_when)]:
                return decisions.Condition(skips_when)
            case ["decision", ["comparison", str(function), str(compare), args, other], bool(skips_when)]:
                drawn = decisions.Comparison(
                    _FUNCTIONS[function], self._value(args, ()), _FUNCTIONS[compare], self._value(other, ())
                )
                return decisions.Decision(drawn, skips_when)
            case ["decision", ["graph", nodes], bool(skips_when)]:
                return decisions.Decision(PlainGraphModule(nn.Module(), self.graph(nodes)), skips_when)
            case ["pack", structure]:
                return PackOutput(self._structure(structure))
            case ["size check", str(condition), sizes, str(words), str(place), bool(limit), [*within]]:
                taken = tuple((str(name), int(number), int(dim)) for name, number, dim in sizes)
                _require_condition(condition, [name for name, _, _ in taken])
                return runtime.SizeCheck(condition, taken, words, place, limit, tuple(map(str, within)))
        raise ValueError(f"a call of {target!r}")

    def _notes(self, notes: Mapping[str, Data]) -> dict[str, Any]:
        meta: dict[str, Any] = {}
        for name, value in notes.items():
            if name == "val":
                meta["val"] = self._value(value)
            elif name == "passes":
                meta["passes_through"] = bool(value)
            elif name == "stack":
                meta["nn_module_stack"] = self._stacks[value]
            elif name == "text":
                meta["stack_trace"] = self._texts[value]
            elif name == "at":
                meta[BOUNDARIES] = tuple(
                    Boundary(self._calls[call], None if place is None else tuple(_words_and_numbers(place)), int(leaf))
                    for call, place, leaf in value
                )
            else:
                raise ValueError(f"a note {name!r}")
        return meta

    def _value(self, data: Data, before: Sequence[fx.Node] | None = None) -> Any:
        """A value that a node notes, or, with the nodes before it, an argument of one, which is of fewer kinds."""
        read = partial(self._value, before=before)
        match data:
            case None | bool() | int() | float() | str():
                return data
            case ["node", int(number)] if before is not None and number >= 0:
                return before[number]
            case [str(kind), *parts] if kind in _KINDS and (before is None or kind not in _NOTED):
                return _KINDS[kind][2](*map(read, parts))
            case ["dict", *pairs]:
                return {read(key): read(item) for key, item in pairs}
            case ["float", ("inf" | "-inf" | "nan") as text]:
                return float(text)
            case ["ellipsis"]:
                return ...
        if before is not None:
            raise ValueError(f"a value {str(data)[:60]!r}")
        return self._noted(data)

    def _noted(self, data: Data) -> Any:
        """A value that nodes note, and that is no argument."""
        match data:
            case ["fake", int(row)]:
                return fake_tensor(*self._fakes[row])
            case ["number", str(kind), int(sizes), int(expression), hint, constant]:
                kinds = {symbolic.__name__: symbolic for symbolic in SYMBOLIC}
                values = self._value(hint), self._value(constant)
                return symbolic_number(kinds[kind], self._sizes[sizes], self._expressions[expression], *values)
            case ["expression", int(row)]:
                return self._expressions[row]
            case ["class", str(module), str(name)]:
                return _class(module, name)
            case ["tree", structure]:
                return self._structure(structure)
            case ["shell", kind, names, held, rest]:
                return Shell(self._bare(kind), *map(self._value, (names, held, rest)))
            case ["object", kind, attributes]:
                bare: Any = object.__new__(self._bare(kind))
                vars(bare).update(_names(self._value(attributes)))
                return bare
            case ["here"]:
                return HERE
            case ["anchor"]:
                return torch.empty(0, device="meta")
        raise ValueError(f"a value {str(data)[:60]!r}")

    def _bare(self, kind: Data) -> type:
        bare = self._value(kind)
        if not isinstance(bare, type) or not is_bare(bare, self._packages):
            raise ValueError(f"an object of the class {bare}")
        return bare

    def _makings(self, row: Data) -> tuple[Any, ...]:
        mode, size, stride, dtype, device, trained = row
        sizes, strides = (tuple(map(self._value, numbers)) for numbers in (size, stride))
        return self._modes[mode], sizes, strides, of_torch("dtype", dtype), torch.device(device), bool(trained)

    def _expression(self, row: Data) -> Any:
        match row:
            case ["symbol", str(name), assumptions] if _SYMBOL.fullmatch(name):
                return sympy.Symbol(name, **{str(key): bool(value) for key, value in assumptions.items()})
            case ["fraction", int(over), int(under)]:
                return sympy.Rational(over, under)
            case [str(kind), *parts] if kind in EXPRESSIONS:
                return EXPRESSIONS[kind](*(self._expressions[part] for part in parts))
        raise ValueError(f"an expression {row!r}")

    def _structure(self, structure: Data) -> pytree.TreeSpec:
        if structure is None:
            return leaf_structure()
        kind, context, *children = structure
        container = self._value(kind)
        if container not in pytree.SUPPORTED_NODES:
            raise ValueError(f"a structure of the class {container}")
        return pytree.TreeSpec(container, self._value(context), list(map(self._structure, children)))


def is_bare(kind: type, packages: Collection[str]) -> bool:
    """Tell whether objects of a class of some packages hold attributes, and Python runs no code for them unasked."""
    own = set[str]().union(*(vars(part) for part in kind.__mro__ if part is not object))
    if kind.__module__.partition(".")[0] not in packages or not own.isdisjoint(_HOOKS):
        return False
    return not any(vars(part).get("__slots__") for part in kind.__mro__)


def is_name(name: object) -> bool:
    """Tell whether a word is a name that Python's code may have."""
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def _words(rows: Sequence[Any]) -> Sequence[str]:
    if not all(isinstance(word, str) for word in rows):
        raise ValueError("words that are none")
    return rows


def _words_and_numbers(keys: Sequence[Any]) -> Sequence[Any]:
    if not all(isinstance(key, (str, int, float)) or key is None for key in keys):
        raise ValueError("keys that are no words or numbers")
    return keys


def _names(named: Any) -> dict[str, Any]:
    """Facts by name, as data of a file has them."""
    if not isinstance(named, dict):
        raise ValueError("facts without names")
    return {str(name): value for name, value in named.items()}


@cache
def _operator(name: str) -> OpOverload:
    library, *steps = name.split(".")
    if library not in _LIBRARIES or len(steps) != 2:
        raise ValueError(f"the operator {name!r}")
    overload: Any = attribute(getattr(torch.ops, library), ".".join(steps))
    # Such as `aten.from_file`, which reads and writes files.
    if not isinstance(overload, OpOverload) or any(arg.name == "filename" for arg in overload._schema.arguments):
        raise ValueError(f"the operator {name!r}")
    return overload


def _require_part(root: nn.Module | None, operation: str, path: object) -> None:
    """Refuse the path of anything but a tensor, a module or the mode of one."""
    if root is None or not isinstance(path, str):
        raise ValueError(f"the path {path!r}")
    inner, _, last = path.rpartition(".")
    owner = root.get_submodule(inner)
    held = owner._modules if operation == "call_module" else {**owner._modules, **owner._parameters, **owner._buffers}
    if last not in held and (operation != "get_attr" or (last != "training" and path != "graph_root")):
        raise ValueError(f"{path!r}, which the model has not")


def _require_module(root: nn.Module | None, node: object) -> None:
    """Refuse to call anything but a module; a switch is handed those that it calls."""
    if not isinstance(node, fx.Node) or node.op != ("placeholder" if root is None else "get_attr"):
        raise ValueError(f"a call of {node}")


def _require_condition(condition: str, names: Sequence[str]) -> None:
    """Refuse a condition that is anything but arithmetic of sizes: it is compiled as Python's code."""
    pending: list[ast.AST] = [ast.parse(condition, mode="eval")]
    while pending:
        node = pending.pop()
        match node:
            case ast.Call(func=function, args=args, keywords=[]) if ast.unparse(function) in _CALLED_IN_CONDITIONS:
                pending += args
            case ast.Name(id=name) if name in names and is_name(name):
                pass
            case ast.Constant(value=int() | float()):
                pass
            case _ if isinstance(node, _OF_CONDITIONS):
                pending += ast.iter_child_nodes(node)
            case _:
                raise ValueError(f"the condition {condition!r}")


def _class(module: str, name: str) -> type:
    """A class of a file that is loaded already; nothing is imported."""
    kind = operator.attrgetter(name)(sys.modules[module])
    if not isinstance(kind, type):
        raise ValueError(f"the class {module}.{name}")
    return kind


@cache
def _module_of(file: str) -> str:
    """The name of the module that a file is loaded as; empty where it is none."""
    return next((name for name in list(sys.modules) if _file_of(name) == file), "")


def _file_of(module: str) -> str | None:
    """The file of a loaded module; one that imports itself at its first use is left alone."""
    return getattr(sys.modules.get(module), "__dict__", {}).get("__file__")


def _moved(files: Mapping[str, str], own_files: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Files of the machine that a graph was written on, each with where it is here."""
    own = {re.split(r"[/\\]", file)[-1]: file for file in own_files}
    for was, module in files.items():
        now = own.get(re.split(r"[/\\]", was)[-1]) or _file_of(module)
        if now is not None and now != was:
            yield was, str(now)
