"""The protocol of passes, and the driver that runs them.

A pass is a function `(graph module, …) -> Result`. It works on a copy, unless its name ends in `_`, and writes no code:
the driver does, once, behind the last pass.

    run_passes(gm, partial(replace_blocks, repeats=repeats, plan=plan), batch_syntheses, write_in_place_)

Questions about a graph, which change none, are in `repl_fx.finding`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import fx

from repl_fx.config import check_passes
from repl_fx.errors import BrokenGraph
from repl_fx.passes.check_graph import check_graph
from repl_fx.plan import Refusal


@dataclass(frozen=True)
class Result:
    """The outcome of a pass; a pass that found more extends it.

    Attributes:
        graph_module: the graph to go on with.
        changed: names of what was changed, such as nodes or blocks.
        refusals: blocks that the pass was asked for and left as they are, with the reasons.
    """

    graph_module: fx.GraphModule
    changed: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = field(default=(), kw_only=True)

    @property
    def modified(self) -> bool:
        """Tell whether anything was changed."""
        return bool(self.changed)


Pass = Callable[[fx.GraphModule], Result]


@dataclass(frozen=True)
class Run:
    """The outcome of several passes.

    Attributes:
        graph_module: the graph behind the last pass, with its code written.
        results: of each pass, in order.
    """

    graph_module: fx.GraphModule
    results: tuple[Result, ...]


def run_passes(gm: fx.GraphModule, *passes: Pass) -> Run:
    """Run passes on a graph, one after another, and write the code of the last graph.

    Args:
        gm: a graph in normal form; passes whose name ends in `_` change it.
        passes: functions of a graph alone; `functools.partial` gives the others their further arguments.

    Raises:
        BrokenGraph: a pass changed the graph that it was to copy, or, with `REPL_FX_CHECK=1`, broke the normal form;
            names the pass.
    """
    results = []
    for one in passes:
        name = _name(one)
        result = one(gm)
        if result.modified and result.graph_module is gm and not name.endswith("_"):
            raise BrokenGraph(f"{name}: it changed the graph that it was given; let it copy, or let its name end in _")
        gm = result.graph_module
        results.append(result)
        if check_passes():
            check_graph(gm, name)
    gm.recompile()
    return Run(gm, tuple(results))


def _name(one: Any) -> str:
    while isinstance(one, partial):
        one = one.func
    return str(getattr(one, "__name__", type(one).__name__))
