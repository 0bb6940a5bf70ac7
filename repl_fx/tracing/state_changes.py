"""What a trace changes of a model's Python state, and where the model's code does so."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from torch import nn

from repl_fx.running.code_names import is_foreign
from repl_fx.running.python_state import PythonChange, PythonState


@dataclass
class StateChanges:
    """The changes that a trace made to a model's Python state.

    Attributes:
        changes: differences after the trace, or after the model's forward in it.
        unseen: paths of the state of which nothing can be said, such as unseen.
        replaced: paths of the parameters and modules in whose place there were others.
    """

    changes: list[PythonChange] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changes or self.unseen)


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
        noted.unseen = before.unseen
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
            if not is_foreign(kind):
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
