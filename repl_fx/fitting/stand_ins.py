"""What stands in for each block of a rewritten model, and what of it can be fitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import fx, nn

from repl_fx.fitting.last_layer import layer_of
from repl_fx.fitting.maps import MapFit
from repl_fx.fitting.norm_statistics import is_batch_norm
from repl_fx.fitting.pieces import Piece
from repl_fx.graph.bridge import digraph, leading_to, reached_from
from repl_fx.graph.captured import is_tensor
from repl_fx.graph.notes import COUNTERPART
from repl_fx.graph.roles import ADDITIONS
from repl_fx.passes.replace_blocks import block_of
from repl_fx.plan import Plan, Replacement
from repl_fx.rewriting.result import TransformResult
from repl_fx.surrogates import make_surrogate
from repl_fx.surrogates.shared.fitted_starts import (
    FITTED,
    ChannelTerms,
    FittedStart,
    KeptUnits,
    LastLayer,
    WholeMap,
)
from repl_fx.surrogates.shared.site import surrogate_path


@dataclass(frozen=True, eq=False)
class GraphStandIn:
    """The surrogate of a block, in the rewritten graph of its part.

    Attributes:
        part: path of the part.
        block: the block, by the name that it has in the model.
        name: the name that it has in the graph.
        surrogate: the key of what stands for it.
        graph: the rewritten graph, with each synthesis on its own.
        nodes: those of the surrogate, and what stays of the block.
        outputs: the nodes behind the surrogate, with those of the captured graph that they stand for.
        last: the node of the captured graph that made the stream behind the block.
        original: the nodes of the captured graph by those that stand for them; also `last`, for itself.
        starts: the calls with what can be fitted of them, in program order.
    """

    part: str
    block: str
    name: str
    surrogate: str
    graph: fx.GraphModule
    nodes: tuple[fx.Node, ...]
    outputs: Mapping[fx.Node, fx.Node]
    last: fx.Node
    original: Mapping[fx.Node, fx.Node]
    starts: tuple[tuple[fx.Node, FittedStart], ...]

    @property
    def reason(self) -> str:
        """Why nothing of it can be fitted; empty where something can."""
        if make_surrogate(self.surrogate).traits.source == "nothing":
            return "nothing is in the place of the block"
        if any(node.meta["val"].is_complex() for node in (*self.outputs.values(), *self.hidden)):
            return "its values are complex numbers, for which there is no fit"
        return "" if self.starts else "none of its own numbers acts linearly on the stream"

    @property
    def kept_units(self) -> KeptUnits | None:
        """Its hidden units, of which some stay; it is never silent then."""
        return next((start for _, start in self.starts if isinstance(start, KeptUnits)), None)

    @cached_property
    def hidden(self) -> list[fx.Node]:
        """The nodes of the captured graph that make its hidden units, of which some stay."""
        named = {node.name: node for node in self.original.values()}
        return [] if self.kept_units is None else [named[units.value] for units in self.kept_units.hidden]

    @cached_property
    def in_order(self) -> tuple[tuple[fx.Node, FittedStart | None], ...]:
        """The calls with what can be fitted of them, and, with None, batch norms of the surrogate's own before them."""
        own = surrogate_path(self.name)
        norms = [n for n in self.nodes if str(n.target).startswith(f"{own}.") and is_batch_norm(self.graph, n)]
        starts = dict(self.starts)
        order: list[tuple[fx.Node, FittedStart | None]] = []
        for node in norms:
            order += [(node, None), *([(node, starts[node])] if node in starts else ())]
        for node, start in self.starts:
            if node not in norms:
                # Those of a later branch see what was fitted in one before.
                order += [*((norm, None) for norm in norms if len(self.starts) > 1 or not order), (node, start)]
        return tuple(order)

    @cached_property
    def points(self) -> dict[tuple[fx.Node, FittedStart], list[fx.Node]]:
        """The nodes behind each start that stand for one of the block's: outputs, then sums, the last first.

        Of a call that makes a layer's weight they are behind that layer.
        """
        whole = digraph(self.graph.graph.nodes)
        inside = leading_to(whole, self.outputs)
        found = {}
        for node, start in self.starts:
            first = layer_of(self.graph, node, start) or node if isinstance(start, LastLayer) else node
            behind = sorted(reached_from(whole, [first]) & inside - {first}, reverse=True)
            noted = [n for n in behind if n in self.original and is_tensor(n)]
            found[node, start] = sorted(noted, key=lambda n: (n not in self.outputs, n.target not in ADDITIONS))
        return found

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that a fit changes."""
        return [self.graph.get_submodule(str(node.target)) for node in dict.fromkeys(n for n, _ in self.in_order)]

    @cached_property
    def ends(self) -> Mapping[fx.Node, fx.Node]:
        """The nodes whose distance from the original says how close a fit is, with those of the captured graph."""
        node, start = self.starts[0]
        # The stream passes the block where the map is merged into the layer before.
        merged = isinstance(start, WholeMap) and start.merged
        return {MapFit.places(node, merged=True)[0]: self.last} if merged else self.outputs

    @cached_property
    def compared(self) -> set[fx.Node]:
        """The nodes of the captured graph whose values a fit looks at."""
        behind = {} if isinstance(self.starts[0][1], WholeMap) else self.points
        points = {self.original[point] for points in behind.values() for point in points}
        return {self.last, *self.ends.values(), *self.outputs.values(), *self.hidden, *points}

    @cached_property
    def watched(self) -> set[fx.Node]:
        """The nodes whose values a fit looks at."""
        seen = set(self.outputs)
        for node, start in self.in_order:
            if isinstance(start, WholeMap):
                return {*MapFit.places(node, start.merged), *self.ends}
            seen.update(node.all_input_nodes)
            for output in self.outputs if start else ():
                piece = Piece(self.graph, [node], output)
                seen |= {*piece.nodes, *piece.given}
        return {node for node in seen if node.op != "get_attr"}


def stand_ins(result: TransformResult) -> Iterator[GraphStandIn]:
    """The surrogate of each block, in program order; of a stretch that has one map, the map alone."""
    found = [_stand_in(result, r) for r in ends_of_stretches(result.plan)]
    order = [part.path for part in result.parts]
    return iter(sorted(found, key=lambda one: (order.index(one.part), one.last)))


def ends_of_stretches(plan: Plan) -> tuple[Replacement, ...]:
    """The replacements of a plan but for those of blocks that another one stands for too."""
    sources = {r.block: make_surrogate(r.surrogate, r.settings).traits.source for r in plan.replacements}
    # Others between the same kept blocks stand for their own block alone.
    spanned = {(r.repeat, r.before, r.after) for r in plan.replacements if sources[r.block] == "stream"}
    return tuple(
        r for r in plan.replacements if sources[r.block] != "nothing" or (r.repeat, r.before, r.after) not in spanned
    )


def _stand_in(result: TransformResult, replacement: Replacement) -> GraphStandIn:
    part = result.found.part_of(replacement.block)
    block, graph = part.blocks[replacement.block], result.one_by_one[part.path]
    nodes = tuple(node for node in graph.graph.nodes if block_of(node) == block.name)
    named = {node.name: node for node in part.graph_module.graph.nodes}
    original = {node: named[name] for node in nodes if (name := COUNTERPART.of(node))}
    # Of several that stand for one, such as a sum of a part of the channels, the last is all of it.
    outputs = {node: of for of, node in {of: node for node, of in original.items() if of in block.outputs}.items()}
    starts = tuple((node, start) for node in nodes for start in FITTED.of(node) or ())
    key = replacement.surrogate
    return GraphStandIn(
        part.path, replacement.block, block.name, key, graph, nodes, outputs, block.outputs[-1], original, starts
    )


def silence_(module: nn.Module, start: FittedStart) -> None:
    """Set the numbers to zero without which the surrogate is silent; none where it never is."""
    if isinstance(start, LastLayer):
        for name in start.parameters:
            module.get_parameter(name).zero_()
    elif isinstance(start, ChannelTerms) and start.silent:
        for term in start.terms:
            module.get_parameter(term.parameter)[term.start : term.start + term.count] = 0
