"""Which arguments of a block are read by what stays of it, behind a surrogate of its stream alone.

    def forward(self, x, mask=None, scale=1.0):
        x = x + self.attn(self.norm1(x), mask)          attn is gone, and mask with it: any mask will do
        return x + self.mlp(self.norm2(x)) * scale      scale is read by the block's own code

An argument that is handed on to modules which are gone, or used in statements of which nothing stays, changes nothing.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx, nn

# A line of code, as stack traces name it.
_LINE = re.compile(r'File "([^"]+)", line (\d+)')
Line = tuple[str, int]


@dataclass(frozen=True)
class Left:
    """What is left of a block.

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


def arguments_read(block: nn.Module, left: Left) -> list[str]:
    """The arguments of a block's forward that are read by what stays of it; all of them where its code is not known."""
    forward = vars(block).get("forward", type(block).forward)
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    return [name for name in names if _is_read(block, forward, name, left)]


def _is_read(owner: nn.Module, function: Callable[..., Any], name: str, left: Left) -> bool:
    """Whether the code of a method of a module does more with an argument than hand it to what is gone."""
    try:
        own = inspect.unwrap(function)
        lines, first = inspect.getsourcelines(own)
        code = ast.increment_lineno(ast.parse(textwrap.dedent("".join(lines))), first - 1)
    except (OSError, TypeError, SyntaxError):
        return True
    file = own.__code__.co_filename
    above = {child: node for node in ast.walk(code) for child in ast.iter_child_nodes(node)}
    loads = [node for node in ast.walk(code) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    known, pending = set[str](), [name]
    while pending:
        known.add(now := pending.pop())
        for node in (node for node in loads if node.id == now):
            if _is_in_what_is_gone(node, above, file, left):
                continue
            further = _handed_on(node, above, partial(_takes, owner, left=left))
            if further is None:
                return True
            pending += [other for other in further if other not in known]
    return False


def _is_in_what_is_gone(node: ast.AST, above: dict[ast.AST, ast.AST], file: str, left: Left) -> bool:
    """Whether a name is in a statement of which nothing stays, or that was not run."""
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


def _lines(file: str, statements: Sequence[ast.stmt]) -> set[Line]:
    """The lines of statements."""
    spans = ((one.lineno, one.end_lineno or one.lineno) for one in statements)
    return {(file, number) for first, last in spans for number in range(first, last + 1)}


def _handed_on(
    node: ast.expr, above: dict[ast.AST, ast.AST], takes: Callable[[ast.Call, ast.AST], bool]
) -> list[str] | None:
    """The other names that a value gets where it is handed on; None where it is read."""
    used, by = node, above[node]
    while isinstance(by, ast.Starred) or (isinstance(by, ast.IfExp) and used is not by.test):
        used, by = by, above[by]
    if isinstance(by, ast.Assign) and all(isinstance(target, ast.Name) for target in by.targets):
        return [target.id for target in by.targets if isinstance(target, ast.Name)]
    call = above[by] if isinstance(by, ast.keyword) else by
    return [] if isinstance(call, ast.Call) and used is not call.func and takes(call, used) else None


def _takes(owner: nn.Module, call: ast.Call, used: ast.AST, *, left: Left) -> bool:
    """Whether a call in the code of a module hands an argument to what is gone alone."""
    callee = _meant(owner, call.func)
    if isinstance(callee, nn.Module) and callee not in left.modules:
        return True
    if callee is None and isinstance(call.func, ast.Attribute) and _meant(owner, call.func.value) is owner:
        # A child that the module may have, and has not.
        return True
    if isinstance(callee, nn.Module):
        inner, function = callee, vars(callee).get("forward", type(callee).forward)
    elif inspect.ismethod(callee) and callee.__self__ is owner:
        inner, function = owner, callee.__func__
    else:
        return False
    keyword = next((one for one in call.keywords if one.value is used), None)
    if keyword is None and any(isinstance(one, ast.Starred) for one in call.args):
        return False
    parameters = list(inspect.signature(function).parameters.values())[0 if inspect.ismethod(function) else 1 :]
    if keyword is None:
        number = next(i for i, one in enumerate(call.args) if one is used)
        found = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][number:][:1]
    else:
        found = [p.name for p in parameters if p.name == keyword.arg]
    return bool(found) and not _is_read(inner, function, found[0], left)


def _meant(owner: nn.Module, code: ast.expr) -> Any:
    """The module or method that an expression such as `self.layer[0].attn` means; None for all others."""
    if isinstance(code, ast.Name):
        return owner if code.id == "self" else None
    if isinstance(code, ast.Attribute):
        return getattr(_meant(owner, code.value), code.attr, None)
    if isinstance(code, ast.Subscript):
        within = _meant(owner, code.value)
        try:
            return within[ast.literal_eval(code.slice)] if isinstance(within, nn.ModuleList | nn.ModuleDict) else None
        except (ValueError, IndexError, KeyError, TypeError):
            return None
    return None
