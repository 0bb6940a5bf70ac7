"""The graphs that a plan makes: blocks are replaced, syntheses batched, and weights written in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import fx

from repl_fx.graph.captured import copy_graph
from repl_fx.passes.batch_syntheses import batch_syntheses_
from repl_fx.passes.driver import Result, run_passes
from repl_fx.passes.replace_blocks import replace_blocks
from repl_fx.passes.write_in_place import write_in_place_
from repl_fx.plan import Plan
from repl_fx.tracing.parts.part_repeats import PartRepeats


@dataclass(frozen=True)
class Rewritten:
    """The graphs that a plan makes, by the path of their part; those alone in which a block is replaced.

    Attributes:
        graphs: the rewritten graphs.
        one_by_one: the same with each synthesis on its own, without code; they share all tensors with `graphs`.
    """

    graphs: Mapping[str, fx.GraphModule] = field(default_factory=dict)
    one_by_one: Mapping[str, fx.GraphModule] = field(default_factory=dict)


def apply_plan(parts: Iterable[PartRepeats], plan: Plan) -> Rewritten:
    """The graphs that a plan makes."""
    graphs, one_by_one = dict[str, fx.GraphModule](), dict[str, fx.GraphModule]()
    for part in parts:
        own = tuple(replacement for replacement in plan.replacements if replacement.block in part.blocks)
        if own:
            first = partial(_replace_blocks, part=part, plan=replace(plan, replacements=own), one_by_one=one_by_one)
            graphs[part.path] = run_passes(part.graph_module, first, batch_syntheses_, write_in_place_).graph_module
    return Rewritten(graphs, one_by_one)


def _replace_blocks(
    gm: fx.GraphModule, *, part: PartRepeats, plan: Plan, one_by_one: dict[str, fx.GraphModule]
) -> Result:
    """Replace blocks, and keep the graph as it is then."""
    result = replace_blocks(gm, part.inside, plan, part.matches)
    one_by_one[part.path] = result.graph_module
    return replace(result, graph_module=copy_graph(result.graph_module, compiled=False))
