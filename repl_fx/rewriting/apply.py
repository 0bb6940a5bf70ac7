"""The graphs that a plan makes: blocks are replaced, syntheses batched, and weights written in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import fx

from repl_fx.passes.batch_syntheses import batch_syntheses
from repl_fx.passes.driver import run_passes
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
            replacing = partial(
                replace_blocks, repeats=part.inside, plan=replace(plan, replacements=own), matches=part.matches
            )
            run = run_passes(part.graph_module, replacing, batch_syntheses, write_in_place_)
            one_by_one[part.path], graphs[part.path] = run.results[0].graph_module, run.graph_module
    return Rewritten(graphs, one_by_one)
