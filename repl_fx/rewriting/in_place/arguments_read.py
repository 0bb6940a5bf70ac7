"""Which arguments of a block are read by what stays of it, behind a surrogate of its stream alone.

    def forward(self, x, mask=None, scale=1.0):
        x = x + self.attn(self.norm1(x), mask)          attn is gone, and mask with it: any mask will do
        return x + self.mlp(self.norm2(x)) * scale      scale is read by the block's own code

An argument that is handed on to modules which are gone, or used in statements of which nothing stays, changes nothing.
Names in `**kwargs` are followed to the functions that take them, those that are looked up in a table of a file too.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

# A line of code, as stack traces name it.
_LINE = re.compile(r'File "([^"]+)", line (\d+)')
Line = tuple[str, int]
# Statements of which a part may be gone, and another not.
_COMPOUND = (ast.For, ast.While, ast.With, ast.Try, ast.Match)


@dataclass(frozen=True)
class Left:
    """The rest of a block.

    Attributes:
        modules: the modules of which something stays.
        before, now: the lines of code that the nodes of the block are from, and those of nodes that stay.
    """

    modules: Collection[nn.Module]
    before: Collection[Line]
    now: Collection[Line]


def lines_of(nodes: Iterable[fx.Node]) -> set[Line]:
    """The lines of code that nodes are from."""
    traces = {str(node.meta.get("stack_trace")) for node in nodes}
    return {(file, int(line)) for trace in traces for file, line in _LINE.findall(trace)}


def arguments_read(block: nn.Module, left: Left) -> list[tuple[str, ...]]:
    """The arguments of a block's forward that are read by what stays of it; all of them where its code is not known.

    Of `**kwargs` each name that is read, as `("kwargs", "scale")`, or `("kwargs",)` where any may be.
    """
    forward = _Function(block, vars(block).get("forward", type(block).forward), 1, left)
    places: list[tuple[str, ...]] = []
    for parameter in list(inspect.signature(type(block).forward).parameters.values())[1:]:
        name = parameter.name
        if parameter.kind is parameter.VAR_KEYWORD:
            names = forward.keywords_read(name)
            places += [(name,)] if names is None else [(name, keyword) for keyword in sorted(names)]
        elif forward.is_read(name):
            places.append((name,))
    return places


class _Function:
    """A function that the rest of a block runs: a method of one of its modules, or what such a method calls.

    Args:
        owner: the module whose method it is, or whose method calls it.
        function: the function.
        first: the number of its first parameter that a call gives.
        left: the rest of the block.

    Attributes:
        known: whether there is code of it to see.
        file, names: where it is, and what is under names there that are none of its own.
        above: the node around each node.
        loads: the places where names are read.
    """

    def __init__(self, owner: nn.Module, function: Callable[..., Any], first: int, left: Left) -> None:
        self.owner, self.function, self.first, self.left = owner, function, first, left
        self.known = False
        try:
            own = inspect.unwrap(function)
            lines, number = inspect.getsourcelines(own)
            code = ast.increment_lineno(ast.parse(textwrap.dedent("".join(lines))), number - 1)
        except (OSError, TypeError, SyntaxError):
            return
        self.known = True
        local = {*own.__code__.co_varnames, *own.__code__.co_cellvars, *own.__code__.co_freevars}
        self.file = own.__code__.co_filename
        self.names = {name: value for name, value in own.__globals__.items() if name not in local}
        self.above = {child: node for node in ast.walk(code) for child in ast.iter_child_nodes(node)}
        self.loads = [node for node in ast.walk(code) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]

    def is_read(self, name: str) -> bool:
        """Tell whether the code does more with an argument than hand it to what is gone."""
        if not self.known:
            return True
        seen, pending = set[str](), [name]
        while pending:
            seen.add(now := pending.pop())
            for node in self._uses(now):
                further = self._handed_on(node)
                if further is None:
                    return True
                pending += [other for other in further if other not in seen]
        return False

    def keywords_read(self, name: str) -> set[str] | None:
        """The names under which the code reads what is in its `**kwargs`; None where it may read all of it."""
        return _united(map(self._keywords_at, self._uses(name))) if self.known else None

    def reads(self, call: ast.Call, used: ast.AST) -> bool:
        """Tell whether the function reads what a call hands to it."""
        keyword = next((argument for argument in call.keywords if argument.value is used), None)
        if keyword is None:
            if any(isinstance(argument, ast.Starred) for argument in call.args):
                return True
            number = next(i for i, argument in enumerate(call.args) if argument is used)
            placed = [p.name for p in self._parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
            taking = placed[number:][:1]
        else:
            taking = [p.name for p in self._parameters if p.name == keyword.arg]
        if taking or keyword is None or keyword.arg is None:
            return not taking or self.is_read(taking[0])
        rest = next((p.name for p in self._parameters if p.kind is p.VAR_KEYWORD), None)
        names = None if rest is None else self.keywords_read(rest)
        return names is None or keyword.arg in names

    def taken_by_name(self, call: ast.Call) -> set[str] | None:
        """The names that the function reads of the keywords that it is handed, beside the arguments of the call."""
        taken, given = set[str](), {keyword.arg for keyword in call.keywords}
        placed = itertools.takewhile(lambda argument: not isinstance(argument, ast.Starred), call.args)
        for parameter in self._parameters[len(list(placed)) :]:
            name = parameter.name
            if parameter.kind is parameter.VAR_KEYWORD:
                rest = self.keywords_read(name)
                return None if rest is None else taken | (rest - given)
            if parameter.kind is not parameter.VAR_POSITIONAL and name not in given and self.is_read(name):
                taken.add(name)
        return taken

    @property
    def _parameters(self) -> list[inspect.Parameter]:
        """Those that a call gives."""
        return list(inspect.signature(self.function).parameters.values())[self.first :]

    def _uses(self, name: str) -> list[ast.Name]:
        """The reads of a name in the rest of a block."""
        return [node for node in self.loads if node.id == name and not self._is_in_what_is_gone(node)]

    def _is_in_what_is_gone(self, node: ast.AST) -> bool:
        """Tell whether a name is in a statement of which nothing stays, or that was not run."""
        inner: ast.AST = node
        named = False
        while not isinstance(node, ast.stmt):
            node = self.above[node]
            named |= isinstance(node, ast.NamedExpr)
        lines = self._lines([node])
        # Values that a statement hands on as they are may be read where something stays.
        parted = named or isinstance(getattr(node, "value", None), ast.Tuple | ast.List)
        whole = not (parted or isinstance(node, _COMPOUND) or getattr(node, "orelse", []))
        if whole and not lines.isdisjoint(self.left.before) and lines.isdisjoint(self.left.now):
            return True
        while inner in self.above:
            inner, within = self.above[inner], inner
            if isinstance(inner, ast.If) and isinstance(within, ast.stmt):
                ways = [inner.body, inner.orelse] if within in inner.body else [inner.orelse, inner.body]
                # The trace went the other way, by what is no affair of this argument.
                if [self._lines(way).isdisjoint(self.left.before) for way in ways] == [True, False]:
                    return True
        return False

    def _lines(self, statements: Sequence[ast.stmt]) -> set[Line]:
        """The lines of statements."""
        spans = ((statement.lineno, statement.end_lineno or statement.lineno) for statement in statements)
        return {(self.file, number) for first, last in spans for number in range(first, last + 1)}

    def _handed_on(self, node: ast.expr) -> list[str] | None:
        """The other names that a value gets where it is handed on; None where it is read."""
        used, by = node, self.above[node]
        while isinstance(by, ast.Starred) or (isinstance(by, ast.IfExp) and used is not by.test):
            used, by = by, self.above[by]
        if isinstance(by, ast.Assign) and all(isinstance(target, ast.Name) for target in by.targets):
            return [target.id for target in by.targets if isinstance(target, ast.Name)]
        call = self.above[by] if isinstance(by, ast.keyword) else by
        if not isinstance(call, ast.Call) or used is call.func:
            return None
        callees = self._callees(call)
        return None if callees is None or any(callee.reads(call, used) for callee in callees) else []

    def _keywords_at(self, node: ast.Name) -> set[str] | None:
        """The names that are read of `**kwargs` at one place; None where that is not known."""
        by = self.above[node]
        over = self.above[by]
        match by, over:
            case ast.keyword(arg=None), ast.Call():
                callees = self._callees(over)
                return None if callees is None else _united(callee.taken_by_name(over) for callee in callees)
            case ast.Subscript(slice=ast.Constant(value=str(key))), _:
                return {key}
            case ast.Attribute(attr="get" | "pop"), ast.Call(args=[ast.Constant(value=str(key)), *_]):
                return {key}
            case ast.Compare(left=ast.Constant(value=str(key)), ops=[ast.In() | ast.NotIn()]), _:
                return {key}
        return None

    def _callees(self, call: ast.Call) -> list[_Function] | None:
        """The functions that a call runs; none of what is gone, and None in all where they are not known."""
        owner, callee = self.owner, self._meant(call.func)
        if isinstance(callee, nn.Module):
            function = vars(callee).get("forward", type(callee).forward)
            first = 0 if inspect.ismethod(function) else 1
            return [_Function(callee, function, first, self.left)] if callee in self.left.modules else []
        if callee is None and isinstance(call.func, ast.Attribute) and self._meant(call.func.value) is owner:
            # A child that the module may have, and has not.
            return []
        if inspect.ismethod(callee) and callee.__self__ is owner:
            return [_Function(owner, callee.__func__, 1, self.left)]
        functions = self._bound_to(call.func.id) if isinstance(call.func, ast.Name) else [callee]
        known = all(map(inspect.isfunction, functions))
        return [_Function(owner, function, 0, self.left) for function in functions] if known else None

    def _meant(self, node: ast.AST) -> Any:
        """The value that an expression such as `self.layer[0].attn` or `TABLE.get(KEY)` means; None for all others."""
        match node:
            case ast.Name(id=name):
                return self.owner if name == "self" else self.names.get(name)
            case ast.Constant(value=constant):
                return constant
            case ast.Attribute(value=value, attr=name):
                return getattr(self._meant(value), name, None)
            case ast.Subscript(value=value, slice=key):
                within, at = self._meant(value), self._meant(key)
                with suppress(IndexError, KeyError, TypeError):
                    return within[at] if isinstance(within, nn.ModuleList | nn.ModuleDict | Mapping) else None
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=args) if name.startswith("get"):
                within = self._meant(value)
                # Of tables alone: other functions may do more than find.
                if isinstance(within, Mapping):
                    return getattr(within, name)(*map(self._meant, args))
        return None

    def _bound_to(self, name: str) -> list[Any]:
        """All that a name may mean; `[None]` where that is not known."""
        if name in self.names:
            return [self.names[name]]
        bound = [node for node in self.above if isinstance(node, ast.Name | ast.arg) and _is_bound(node, name)]
        assigned = [self.above[node] for node in bound]
        values = [getattr(by, "value", None) for by in assigned if isinstance(by, ast.Assign | ast.AnnAssign)]
        known = len(values) == len(bound) and bool(bound)
        return [self._meant(value) for value in values if isinstance(value, ast.AST)] if known else [None]


def _is_bound(node: ast.Name | ast.arg, name: str) -> bool:
    return node.arg == name if isinstance(node, ast.arg) else node.id == name and isinstance(node.ctx, ast.Store)


def _united(sets: Iterable[set[str] | None]) -> set[str] | None:
    every = list(sets)
    return None if None in every else set().union(*filter(None, every))
