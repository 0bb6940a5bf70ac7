"""Costs of a model under a plan, and what each replacement saves of them.

    saved(3 -> reuse) = costs of the graph - costs of the graph in which block 3 alone is replaced

What replacements save adds up exactly, as a surrogate touches its block and the neighbours alone. Replacements of one
kind save the same: those in one repeat, by one surrogate, of blocks that cost the same between blocks that cost the
same. So a graph is built for each kind, and not for each block.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from torch import fx, nn

from repl_fx.costs.counted import Costs, flops_by_node, kept_by_node, measure_form
from repl_fx.costs.timed import latency_share, node_times
from repl_fx.errors import BadInput
from repl_fx.graph.state import parameter_count
from repl_fx.passes.driver import run_passes
from repl_fx.passes.fold_surrogates import fold_surrogates
from repl_fx.passes.replace_blocks import block_of
from repl_fx.plan import Plan, Replacement
from repl_fx.rewriting.apply import Rewritten, apply_plan
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.timing import Share
from repl_fx.tracing.parts.capture_parts import Part
from repl_fx.tracing.parts.part_repeats import ModelRepeats

LATENCY, PARAMETERS = "latency", "params"
# The costs that are counted, by the names that budgets have for them.
COUNTED: Mapping[str, Callable[[Costs], int | None]] = {
    PARAMETERS: lambda costs: costs.parameters,
    "flops": lambda costs: costs.flops,
    "memory": lambda costs: costs.activation_bytes,
}


def counted_in(costs: Costs) -> dict[str, int]:
    """Those of `COUNTED` that are known."""
    return {name: value for name, cost in COUNTED.items() if (value := cost(costs)) is not None}


# Of a plan and the graphs that it makes: the model as its users have it, and with the graphs in it.
Forms = Callable[[Plan, Rewritten], tuple[nn.Module, nn.Module]]


def folded_latency(parts: Sequence[Part], graphs: Mapping[str, fx.GraphModule]) -> Share:
    """The time of a call of each part with other graphs, by path, folded as for inference, as a share of the time now.

    Raises:
        BadInput: a graph that cannot be timed.
    """
    after = (replace(p, graph_module=_folded(graphs.get(p.path, p.graph_module))) for p in parts)
    return latency_share(parts, tuple(after))


def _folded(gm: fx.GraphModule) -> fx.GraphModule:
    return run_passes(gm, fold_surrogates).graph_module


class ReplacementCosts:
    """The savings of replacements, of the costs that a budget names.

    Args:
        found: the repeats of the model.
        forms: makes the model of a plan.
        names: of the costs; of `COUNTED`, or latency.
        seed: of the surrogates' initial values.
    """

    def __init__(self, found: ModelRepeats, forms: Forms, names: Collection[str], seed: int) -> None:
        self.found, self.forms, self.names, self.seed = found, forms, tuple(names), seed
        self._saved: dict[Hashable, dict[str, int]] = {}
        self._left: dict[tuple[str, ...], dict[str, float]] = {}

    @cached_property
    def before(self) -> dict[str, int]:
        """The costs of the original: those that are known of the counted ones, and its time where that is named.

        Raises:
            BadInput: a named cost is unknown, because the model does not run on shapes alone.
        """
        captured = self.found.captured
        costs = measure_form(captured.source, captured.module, captured.parts)
        before = counted_in(costs)
        for name in self.names:
            if name in COUNTED and name not in before:
                raise BadInput(
                    f"a budget of {name} is for models that run on shapes alone, and this one does not "
                    f"({costs.unknown}); give --budget params=… or latency=…"
                )
            if not before.get(name, 1):
                raise BadInput(f"a budget of {name} is for a model that has any; leave {name} out")
        if LATENCY in self.names:
            # Graphs that take turns on a device must not wait for one another's memory.
            before[LATENCY] = sum(sum(node_times({"": part})[""].values()) for part in captured.parts)
        return before

    def saved(self, *replacements: Replacement) -> dict[str, int]:
        """The savings of a replacement, or those of a stretch, of each cost named; below 0 where they cost more.

        Raises:
            ForeignError, BrokenGraph, PlanMismatch: its surrogate cannot be built.
        """
        kind = tuple(map(self._kind, replacements))
        if kind not in self._saved:
            rewritten = self.rewritten(replacements)
            # Which form a plan of several has is not known yet: the better one here, and `left` tells.
            model, graphs = self.forms(self._plan(replacements), rewritten)
            saved = self._least_counted_saved(model, graphs)
            if LATENCY in self.names:
                saved[LATENCY] = self._time_saved(replacements, rewritten.graphs)
            self._saved[kind] = saved
        return self._saved[kind]

    def left(self, replacements: Sequence[Replacement]) -> dict[str, float]:
        """The share of each known cost that is left of the original, counted on the model itself.

        Latency is measured: the upper end of its spread, where that is narrow enough to tell.
        """
        together = tuple(map(repr, replacements))
        if together not in self._left:
            rewritten = self.rewritten(replacements)
            after = self._counted(*self.forms(self._plan(replacements), rewritten))
            left = {name: number / self.before[name] for name, number in after.items() if self.before[name]}
            if LATENCY in self.names:
                share = folded_latency(self.found.captured.parts, rewritten.graphs)
                left[LATENCY] = share.value if share.wide else share.upper
            self._left[together] = left
        return dict(self._left[together])

    def rewritten(self, replacements: Sequence[Replacement]) -> Rewritten:
        """The graphs that some replacements make.

        Raises:
            ForeignError, BrokenGraph, PlanMismatch: a surrogate cannot be built.
        """
        return apply_plan(self.found, self._plan(replacements))

    def _plan(self, replacements: Sequence[Replacement]) -> Plan:
        return Plan(tuple(replacements), (), "", self.seed)

    def _counted(self, model: nn.Module, graphs: nn.Module, *, training: bool = True) -> dict[str, int]:
        return counted_in(measure_form(model, graphs, self.found.captured.parts, training=training))

    def _least_counted_saved(self, model: nn.Module, graphs: nn.Module) -> dict[str, int]:
        """The savings of the better of both forms of a model, of each cost that is named and counted."""
        names = tuple(name for name in COUNTED if name in self.names)
        sizes = [parameter_count(form) for form in (graphs, model)]
        if not names or (names == (PARAMETERS,) and sizes[0] <= sizes[1]):
            # Neither has to run.
            return {name: self.before[name] - sizes[0] for name in names}
        # For each kind of replacement, and a step of training is most of what is measured.
        forms = dict.fromkeys((graphs, model))
        each = [self._counted(form, graphs, training="memory" in names) for form in forms]
        return {name: self.before[name] - min(after[name] for after in each) for name in names}

    def _kind(self, replacement: Replacement) -> Hashable:
        settings = json.dumps(replacement.settings, sort_keys=True, default=repr)
        costs = tuple(self._block_costs[name] for name in (replacement.block, *replacement.neighbours))
        return replacement.repeat, replacement.surrogate, settings, costs

    @cached_property
    def _block_costs(self) -> dict[str, Hashable]:
        """Costs of each block, by the block's name: what tells kinds of blocks apart."""
        costs: dict[str, Hashable] = {}
        for part in self.found:
            gm, given = part.graph_module, self._inputs(part.path)
            flops = flops_by_node(gm, given) or {}
            kept = kept_by_node(gm, given) or {}
            own = dict(gm.named_parameters(remove_duplicate=False))
            names = Counter(map(id, own.values()))
            for name, block in part.blocks.items():
                tensors = [own[path] for path in block.parameters]
                # Parameters that are read elsewhere too do not go with the block.
                sizes = tuple((tensor.shape, tensor.requires_grad, names[id(tensor)]) for tensor in tensors)
                numbers = sum(flops.get(n, 0) for n in block.nodes), sum(kept.get(n.name, 0) for n in block.nodes)
                costs[name] = sizes, numbers, len(block.nodes), len(block.side_outputs)
        return costs

    def _inputs(self, path: str) -> ExampleInputs:
        """The example inputs of the part at a path."""
        return next(part.inputs for part in self.found.captured.parts if part.path == path)

    def _time_saved(self, replacements: Sequence[Replacement], graphs: Mapping[str, fx.GraphModule]) -> int:
        """Nanoseconds that replacements in one part save, in blocks and neighbours, folded as for inference."""
        part = self.found.part_of(replacements[0].block)
        given, folded = self._inputs(part.path), _folded(graphs[part.path])
        times = node_times({"before": Part("", part.graph_module, given), "after": Part("", folded, given)})
        names = {name for one in replacements for name in (one.block, *one.neighbours)}
        around = {part.blocks[name].name for name in names}
        nodes = {n for name in names for n in part.blocks[name].nodes}
        before = sum(times["before"][node.name] for node in nodes)
        after = sum(times["after"][node.name] for node in folded.graph.nodes if block_of(node) in around)
        return before - after
