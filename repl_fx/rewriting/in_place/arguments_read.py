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
from functools import partial
from typing import Any

from torch import fx, nn

# A line of code, as stack traces name it.
_LINE = re.compile(r'File "([^"]+)", line (\d+)')
Line = tuple[str, int]


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
    forward = vars(block).get("forward", type(block).forward)
    places: list[tuple[str, ...]] = []
    for parameter in list(inspect.signature(type(block).forward).parameters.values())[1:]:
        name = parameter.name
        if parameter.kind is parameter.VAR_KEYWORD:
            names = _keywords_read(block, forward, name, left)
            places += [(name,)] if names is None else [(name, keyword) for keyword in sorted(names)]
        elif _is_read(block, forward, name, left):
            places.append((name,))
    return places


@dataclass(frozen=True)
class _FunctionCode:
    """The code of a function.

    Attributes:
        file, names: where it is, and what is under names there that are none of its own.
        above: the node around each node.
        loads: the places where names are read.
    """

    file: str
    names: Mapping[str, Any]
    above: dict[ast.AST, ast.AST]
    loads: list[ast.Name]

    @staticmethod
    def of(function: Callable[..., Any]) -> _FunctionCode | None:
        """The code, None where there is none to see."""
        try:
            own = inspect.unwrap(function)
            lines, first = inspect.getsourcelines(own)
            code = ast.increment_lineno(ast.parse(textwrap.dedent("".join(lines))), first - 1)
        except (OSError, TypeError, SyntaxError):
            return None
        above = {child: node for node in ast.walk(code) for child in ast.iter_child_nodes(node)}
        loads = [node for node in ast.walk(code) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
        local = {*own.__code__.co_varnames, *own.__code__.co_cellvars, *own.__code__.co_freevars}
        names = {name: value for name, value in own.__globals__.items() if name not in local}
        return _FunctionCode(own.__code__.co_filename, names, above, loads)

    def uses(self, name: str, left: Left) -> list[ast.Name]:
        """The reads of a name in the rest of a block."""
        return [n for n in self.loads if n.id == name and not _is_in_what_is_gone(n, self.above, self.file, left)]

    def meant(self, owner: nn.Module, node: ast.AST) -> Any:
        """The value that an expression such as `self.layer[0].attn` or `TABLE.get(KEY)` means; None for all others."""
        match node:
            case ast.Name(id=name):
                return owner if name == "self" else self.names.get(name)
            case ast.Constant(value=constant):
                return constant
            case ast.Attribute(value=value, attr=name):
                return getattr(self.meant(owner, value), name, None)
            case ast.Subscript(value=value, slice=key):
                within, at = self.meant(owner, value), self.meant(owner, key)
                with suppress(IndexError, KeyError, TypeError):
                    return within[at] if isinstance(within, nn.ModuleList | nn.ModuleDict | Mapping) else None
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=args) if name.startswith("get"):
                within = self.meant(owner, value)
                # Of tables alone: other functions may do more than find.
                if isinstance(within, Mapping):
                    return getattr(within, name)(*(self.meant(owner, argument) for argument in args))
        return None

    def bound_to(self, owner: nn.Module, name: str) -> list[Any]:
        """All that a name may mean; `[None]` where that is not known."""
        if name in self.names:
            return [self.names[name]]
        bound = [node for node in self.above if isinstance(node, ast.Name | ast.arg) and _is_bound(node, name)]
        values = [
            getattr(self.above[node], "value", None)
            for node in bound
            if isinstance(self.above[node], ast.Assign | ast.AnnAssign)
        ]
        known = len(values) == len(bound) and bool(bound)
        return [self.meant(owner, value) for value in values if isinstance(value, ast.AST)] if known else [None]


def _is_bound(node: ast.Name | ast.arg, name: str) -> bool:
    return node.arg == name if isinstance(node, ast.arg) else node.id == name and isinstance(node.ctx, ast.Store)


def _is_read(owner: nn.Module, function: Callable[..., Any], name: str, left: Left) -> bool:
    """Tell whether the code of a method of a module does more with an argument than hand it to what is gone."""
    code = _FunctionCode.of(function)
    if code is None:
        return True
    known, pending = set[str](), [name]
    while pending:
        known.add(now := pending.pop())
        for node in code.uses(now, left):
            further = _handed_on(node, code, partial(_takes, owner, code, left=left))
            if further is None:
                return True
            pending += [other for other in further if other not in known]
    return False


def _keywords_read(owner: nn.Module, function: Callable[..., Any], name: str, left: Left) -> set[str] | None:
    """The names under which the code of a method reads what is in its `**kwargs`; None where it may read all of it."""
    code, keywords = _FunctionCode.of(function), set[str]()
    for node in [] if code is None else code.uses(name, left):
        assert code is not None
        names = _keywords_at(owner, node, code, left)
        if names is None:
            return None
        keywords |= names
    return None if code is None else keywords


def _keywords_at(owner: nn.Module, node: ast.Name, code: _FunctionCode, left: Left) -> set[str] | None:
    by = code.above[node]
    over = code.above[by]
    match by, over:
        case ast.keyword(arg=None), ast.Call():
            callees = _callees(owner, over, code, left)
            return None if callees is None else _united(_taken_by_name(*callee, over, left) for callee in callees)
        case ast.Subscript(slice=ast.Constant(value=str(key))), _:
            return {key}
        case ast.Attribute(attr="get" | "pop"), ast.Call(args=[ast.Constant(value=str(key)), *_]):
            return {key}
        case ast.Compare(left=ast.Constant(value=str(key)), ops=[ast.In() | ast.NotIn()]), _:
            return {key}
    return None


def _united(sets: Iterable[set[str] | None]) -> set[str] | None:
    united = set[str]()
    for names in sets:
        if names is None:
            return None
        united |= names
    return united


def _taken_by_name(
    inner: nn.Module, function: Callable[..., Any], first: int, call: ast.Call, left: Left
) -> set[str] | None:
    """The names that a function reads of the keywords that it is handed, beside the arguments that the call gives."""
    taken, given = set[str](), {keyword.arg for keyword in call.keywords}
    placed = itertools.takewhile(lambda argument: not isinstance(argument, ast.Starred), call.args)
    for parameter in list(inspect.signature(function).parameters.values())[first + len(list(placed)) :]:
        name = parameter.name
        if parameter.kind is parameter.VAR_KEYWORD:
            rest = _keywords_read(inner, function, name, left)
            return None if rest is None else taken | (rest - given)
        if (
            parameter.kind is not parameter.VAR_POSITIONAL
            and name not in given
            and _is_read(inner, function, name, left)
        ):
            taken.add(name)
    return taken


def _is_in_what_is_gone(node: ast.AST, above: dict[ast.AST, ast.AST], file: str, left: Left) -> bool:
    """Tell whether a name is in a statement of which nothing stays, or that was not run."""
    inner: ast.AST = node
    while not isinstance(node, ast.stmt):
        node = above[node]
    lines = _lines(file, [node])
    whole = not isinstance(node, ast.For | ast.While | ast.With | ast.Try) and not getattr(node, "orelse", [])
    if whole and not lines.isdisjoint(left.before) and lines.isdisjoint(left.now):
        return True
    while inner in above:
        inner, within = above[inner], inner
        if isinstance(inner, ast.If) and isinstance(within, ast.stmt):
            ways = [inner.body, inner.orelse] if within in inner.body else [inner.orelse, inner.body]
            # The trace went the other way, by what is no affair of this argument.
            if [_lines(file, way).isdisjoint(left.before) for way in ways] == [True, False]:
                return True
    return False


def _lines(file: str, statements: Sequence[ast.stmt | ast.expr]) -> set[Line]:
    """The lines of statements."""
    spans = ((statement.lineno, statement.end_lineno or statement.lineno) for statement in statements)
    return {(file, number) for first, last in spans for number in range(first, last + 1)}


def _handed_on(node: ast.expr, code: _FunctionCode, takes: Callable[[ast.Call, ast.AST], bool]) -> list[str] | None:
    """The other names that a value gets where it is handed on; None where it is read."""
    used, by = node, code.above[node]
    while isinstance(by, ast.Starred) or (isinstance(by, ast.IfExp) and used is not by.test):
        used, by = by, code.above[by]
    if isinstance(by, ast.Assign) and all(isinstance(target, ast.Name) for target in by.targets):
        return [target.id for target in by.targets if isinstance(target, ast.Name)]
    call = code.above[by] if isinstance(by, ast.keyword) else by
    return [] if isinstance(call, ast.Call) and used is not call.func and takes(call, used) else None


def _takes(owner: nn.Module, code: _FunctionCode, call: ast.Call, used: ast.AST, *, left: Left) -> bool:
    """Tell whether a call in the code of a module hands an argument to what does not read it."""
    callees = _callees(owner, call, code, left)
    return callees is not None and not any(_reads(*callee, call, used, left) for callee in callees)


def _reads(
    inner: nn.Module, function: Callable[..., Any], first: int, call: ast.Call, used: ast.AST, left: Left
) -> bool:
    """Tell whether a function reads what a call hands to it."""
    keyword = next((argument for argument in call.keywords if argument.value is used), None)
    parameters = list(inspect.signature(function).parameters.values())[first:]
    if keyword is None:
        if any(isinstance(argument, ast.Starred) for argument in call.args):
            return True
        number = next(i for i, argument in enumerate(call.args) if argument is used)
        taking = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][number:][:1]
    else:
        taking = [p.name for p in parameters if p.name == keyword.arg]
    if taking or keyword is None or keyword.arg is None:
        return not taking or _is_read(inner, function, taking[0], left)
    rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
    names = None if rest is None else _keywords_read(inner, function, rest, left)
    return names is None or keyword.arg in names


_Callee = tuple[nn.Module, Callable[..., Any], int]


def _callees(owner: nn.Module, call: ast.Call, code: _FunctionCode, left: Left) -> list[_Callee] | None:
    """The functions that a call in the code of a module runs, each with its module and its first parameter to be given.

    None of what is gone; None in all where they are not known.
    """
    callee = code.meant(owner, call.func)
    if isinstance(callee, nn.Module):
        function = vars(callee).get("forward", type(callee).forward)
        return [(callee, function, 0 if inspect.ismethod(function) else 1)] if callee in left.modules else []
    if callee is None and isinstance(call.func, ast.Attribute) and code.meant(owner, call.func.value) is owner:
        # A child that the module may have, and has not.
        return []
    if inspect.ismethod(callee) and callee.__self__ is owner:
        return [(owner, callee.__func__, 1)]
    functions = code.bound_to(owner, call.func.id) if isinstance(call.func, ast.Name) else [callee]
    return [(owner, function, 0) for function in functions] if all(map(inspect.isfunction, functions)) else None
