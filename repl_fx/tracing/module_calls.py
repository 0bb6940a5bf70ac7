"""Note which values modules are called with, and which they return, while a model is traced, and stamp alike calls.

The notes are `repl_fx.graph.boundaries`. torch.export takes such notes too (`preserve_module_call_signature`), for
modules that are named before the trace, and as operators in the graph; the tracer's own table of values needs neither.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from repl_fx._torch import SYMBOLIC, calls_replaced, pytree, traced_node
from repl_fx.graph.boundaries import Boundary, ModuleCall, note_boundary, places
from repl_fx.running.opaque_outputs import PLAIN
from repl_fx.tracing.leaves import is_leaf
from repl_fx.tracing.stamping import Stamps


def is_noted(module: nn.Module) -> bool:
    """Tell whether calls of a module are noted: not of leaves, whose calls stay nodes, nor without parameters."""
    return not is_leaf(module) and any(True for _ in module.parameters())


@contextmanager
def record_module_calls(model: nn.Module, stamps: Stamps) -> Iterator[None]:
    """Let the nodes of a trace note the module calls whose arguments and results they are.

    Args:
        model: the model about to be traced; modules that are not to be noted are left out.
        stamps: makes alike calls copies of one.
    """
    named: dict[nn.Module, str] = {}
    for path, module in model.named_modules():
        if path and is_noted(module):
            named.setdefault(module, path)
    calls: dict[str, list[ModuleCall]] = {path: [] for path in named.values()}
    noted = [module for module in named if "_call_impl" not in vars(module)]
    stamps.begin(noted, calls)

    def noting(module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        return _noting(module, run, named[module], stamps)

    with calls_replaced(noted, noting), patch.object(Stamps, "current", stamps, create=True):
        yield


def _noting(module: nn.Module, run: Callable[..., Any], path: str, stamps: Stamps) -> Callable[..., Any]:
    signature, calls = inspect.signature(module.forward), stamps.calls_of[path]
    known = (*PLAIN, *SYMBOLIC)

    def call(*args: Any, **kwargs: Any) -> Any:
        made = ModuleCall(path, calls)
        calls.append(made)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            # Hooks make of these what the forward takes, or it says itself what is wrong.
            return run(*args, **kwargs)
        bound.apply_defaults()
        given = dict(places(bound.arguments))
        made.given = {place: leaf if isinstance(leaf, known) else type(leaf) for place, leaf in given.items()}
        for place, leaf in given.items():
            _note(leaf, Boundary(made, argument=place))
        result = stamps.call(module, made, run, args, kwargs)
        leaves, made.result = pytree.tree_flatten(result)
        made.constants = {number: leaf for number, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
        for number, leaf in enumerate(leaves):
            _note(leaf, Boundary(made, leaf=number))
        return result

    return call


def _note(value: Any, boundary: Boundary) -> None:
    node = traced_node(value) if isinstance(value, Tensor) else None
    if node is not None:
        note_boundary(node, boundary)
