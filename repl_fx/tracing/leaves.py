"""The leaves: modules whose calls stay calls in the normal form.

A module of a user's own that may compute otherwise in training, or draw random numbers, by its code alone, stays a call
in the graph, which is then right in both modes and draws anew each time. All else is traced into: a call would hide
which of its arguments are read. The answer may be yes for code that never does; a no for code that does is still right,
because a trace sees what a module does.
"""

from __future__ import annotations

import inspect
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from repl_fx.running.code_names import codes_in
from repl_fx.surrogates.shared.synthesis import Synthesis

_NAMES = frozenset({"training", "dropout", "random", "bernoulli", "multinomial", "poisson", "fork_rng", "rrelu"})
_PARTS = ("rand", "dropout", "droppath", "drop_path", "uniform", "normal_", "exponential", "geometric_", "cauchy_")
_NOT_IN_FORWARD = ("__init__", "extra_repr", "train")
# How deep functions that a forward calls are looked into.
_DEEPEST = 4


_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def is_leaf(module: nn.Module) -> bool:
    """Tell whether calls of a module stay calls in the normal form.

    A leaf is a synthesis of a surrogate, or it has no child modules and is one of `torch.nn` (or derived from one), or
    has no parameters and may depend on the mode or on random numbers: Linear, a Conv2d subclass that pads, Dropout,
    DropPath. All other modules of the user's own are traced into, so that their parameters can be seen, and which of
    their arguments they read.
    """
    if isinstance(module, Synthesis):
        # Folding evaluates the call of a synthesis once.
        return True
    if any(True for _ in module.children()) or isinstance(module, _CONTAINERS):
        return False
    # A forward that somebody put into one module belongs to that module, and not to the copy that a graph calls.
    if "forward" in vars(module):
        return False
    kind: Any = type(module)
    # Code of a class around its forward is called around the stand-in too.
    if has_own_call(kind):
        return False
    from_torch = any(base.__module__.startswith("torch.nn.") and base is not nn.Module for base in kind.__mro__)
    return from_torch or (not any(True for _ in module.parameters(recurse=False)) and may_vary(kind))


def has_own_call(kind: type[nn.Module]) -> bool:
    """Tell whether a class has code of its own around its forward."""
    return kind.__call__ is not nn.Module.__call__


@cache
def may_vary(kind: type[nn.Module]) -> bool:
    """Tell whether the code of a class, or of a function it calls, names the training mode or a random draw.

    Code that it inherits from torch is not looked at; code that cannot be seen may vary.
    """
    functions = [value for base in kind.__mro__ if not _of_torch(base) for value in vars(base).values()]
    own = [inspect.unwrap(value) for value in functions if isinstance(value, FunctionType)]
    forward = inspect.unwrap(kind.forward)
    if not isinstance(forward, FunctionType):
        return True
    seen: set[CodeType] = set()
    running = (f for f in (*own, forward) if isinstance(f, FunctionType) and f.__name__ not in _NOT_IN_FORWARD)
    return any(_names(function, seen, 0) for function in running)


def _names(function: FunctionType, seen: set[CodeType], depth: int) -> bool:
    if function.__code__ in seen or depth > _DEEPEST:
        return False
    for code in codes_in(function.__code__):
        seen.add(code)
        for name in (*code.co_names, *code.co_varnames):
            if name in _NAMES or any(part in name.lower() for part in _PARTS):
                return True
            called = function.__globals__.get(name)
            if isinstance(called, FunctionType) and not _of_torch(called) and _names(called, seen, depth + 1):
                return True
    return False


def _of_torch(value: Any) -> bool:
    return str(value.__module__).split(".")[0] in ("torch", "builtins")
