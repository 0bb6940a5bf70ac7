"""Questions of a forward that a trace answers otherwise than a run would.

torch.export takes a dynamic size for 2 or more: `if x.shape[0] == 1` is settled without a guard, and a graph of that
is another function than the model at 1. Such questions of the model's own code are noted; the graph then refuses that
size, unless model and graph compute the same there.

Some models ask `torch.compiler.is_exporting()` and compute otherwise then: with a mask of ones where they use none when
they run, for instance, which other kernels answer for. A graph of that is not the model, to the last bit.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import fx
from torch.export import ExportedProgram

from repl_fx.graph.runtime import check_least
from repl_fx.passes.driver import Result


@contextmanager
def size_questions(least: dict[str, int]) -> Iterator[None]:
    """Set `least` to 2 for each size, by the name of its symbol, of which the model asks what 1 answers otherwise."""
    kind: Any = torch.SymBool
    own = kind.__bool__

    def truth(question: Any) -> bool:
        answer: bool = own(question)
        asker = str(sys._getframe(1).f_globals.get("__name__"))
        if asker.split(".")[0] not in ("torch", "repl_fx", "sympy"):
            expression = question.node.expr
            for symbol in getattr(expression, "free_symbols", ()):
                try:
                    at_one = expression.subs(symbol, 1)
                except ZeroDivisionError:
                    # The model itself fails there.
                    at_one = not answer
                if at_one in (True, False) and bool(at_one) != answer:
                    least[str(symbol)] = 2
        return answer

    with patch.object(kind, "__bool__", truth):
        yield


def refused_sizes(gm: fx.GraphModule) -> list[tuple[str, int]]:
    """The sizes that a graph refuses to be 1: names of inputs, each with a dimension."""
    return [(node.args[3], node.args[1]) for node in gm.graph.nodes if node.target is check_least]


def refuse_sizes_(gm: fx.GraphModule, refused: Collection[tuple[str, int]]) -> Result:
    """Let a graph refuse no more than another graph of its model did, whose example inputs the model runs on."""
    checks = gm.graph.find_nodes(op="call_function", target=check_least)
    return drop_checks_(gm, [node.name for node in checks if (node.args[3], node.args[1]) not in refused])


def drop_checks_(gm: fx.GraphModule, names: Collection[str]) -> Result:
    """Let a graph refuse sizes no more by the checks of these names."""
    for node in gm.graph.find_nodes(op="call_function", target=check_least):
        if node.name in names:
            gm.graph.erase_node(node)
    return Result(gm, tuple(names))


class Asked:
    """Whether a forward wanted to know if it is being exported, and was told that it is not."""

    def __init__(self) -> None:
        self.yes = False


@contextmanager
def unaware_of_export(asked: Asked, *, unaware: bool = True) -> Iterator[None]:
    """Tell all code but torch's own that no export is going on, for the time of one, where it is to be `unaware`."""
    own: Any = torch.compiler.is_exporting

    def is_exporting() -> bool:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        if caller.split(".")[0] == "torch":
            return bool(own())
        asked.yes = True
        return False

    with patch.object(torch.compiler, "is_exporting", is_exporting if unaware else own):
        yield


def is_bounded(program: ExportedProgram) -> bool:
    """Whether a trace went a way that only sizes up to a limit go, such as a text shorter than a window."""
    ranges = program.range_constraints.values()
    return any(bounds.upper.is_Integer and bounds.lower != bounds.upper for bounds in ranges)
