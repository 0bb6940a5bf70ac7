"""Graphs of the document: nodes with their costs in nested groups, and the outlines of these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import fx, nn

from repl_fx.reporting.model_graph.document import Graph, Group, GroupKind, Node, Value
from repl_fx.reporting.model_graph.layout import GroupShape
from repl_fx.reporting.model_graph.nesting import Nesting, StepDown, Steps
from repl_fx.reporting.model_graph.node_facts import (
    NodeCosts,
    kind_of_node,
    label_of,
    parameters_by_node,
    source_of,
    target_of,
    value_of,
)
from repl_fx.reporting.model_graph.picturing import HIDDEN, group_size, node_size, port_size, simplified
from repl_fx.rewriting.block_reports import BlockReport
from repl_fx.tracing.parts.capture_parts import qualified_name
from repl_fx.tracing.parts.part_repeats import PartRepeats

_T = TypeVar("_T")


@dataclass(eq=False)
class _Growing:
    """A group on its way.

    Attributes:
        first: whether its first node is one that reads a tensor, and the place of that. Tensors are read at the
            beginning of a graph, wherever they are used, so others go before.
    """

    steps: Steps
    parent: int | None
    first: tuple[bool, float] = (True, math.inf)
    children: list[int] = field(default_factory=list)
    count: int = 0
    flops: int = 0
    kept: int = 0
    parameters: dict[int, nn.Parameter] = field(default_factory=dict)
    inputs: dict[int, None] = field(default_factory=dict)
    outputs: dict[int, None] = field(default_factory=dict)


@dataclass(eq=False)
class GraphMaker:
    """Makes the graph of one side, before or after.

    Attributes:
        steps: to each node, by its name.
        source: the module that the graph was captured from, or nothing where it is not known.
        layouts: keys of the layouts, by the outlines of groups; those that look the same share one.
        at: the places of groups, by the steps to them.
    """

    part: PartRepeats
    gm: fx.GraphModule
    steps: Mapping[str, Steps]
    nesting: Nesting
    costs: NodeCosts
    report: Mapping[str, BlockReport]
    source: nn.Module | None
    layouts: dict[GroupShape, str]
    after: bool = False

    def __post_init__(self) -> None:
        self.nodes = list(self.gm.graph.nodes)
        self.places = {node: place for place, node in enumerate(self.nodes)}
        self.groups: list[_Growing] = []
        self.at: dict[Steps, int] = {}
        # Words and values in the order in which they come first, and the place of each.
        self.words: dict[str, int] = {}
        self.values: dict[Value, int] = {}
        self.tensors = parameters_by_node(self.gm)
        self._count()
        self._place_gone_blocks()
        self._order_children()

    def make(self, counterparts: Mapping[Steps, int]) -> Graph:
        """The graph; `counterparts` are the places of groups in the other one."""
        rows = [self._row(node) for node in self.nodes]
        edges = [
            (self.places[feeder], place) for place, node in enumerate(self.nodes) for feeder in node.all_input_nodes
        ]
        inner = self._lift(edges)
        info = self.part.graph_module.meta["capture"]
        labels = [self._label(group) for group in self.groups]
        steps = [group.steps[-1] if group.steps else None for group in self.groups]
        sizes = [
            group_size(step.kind, label, step.name) if step else group_size("graph", label, label)
            for step, label in zip(steps, labels, strict=True)
        ]
        groups = [
            self._group(place, label, self._outline(place, rows, sizes, inner[place]), counterparts)
            for place, label in enumerate(labels)
        ]
        return Graph(
            id=self.part.path,
            label=info.model,
            tracer=info.tracer,
            words=tuple(self.words),
            values=tuple(self.values),
            groups=tuple(groups),
            nodes=tuple(rows),
            edges=tuple(edges),
        )

    def _count(self) -> None:
        """Make the tree of groups, with the number of nodes in each and their costs."""
        self._reach(())
        self.of_node = [self._reach(self.steps[node.name]) for node in self.nodes]
        for place, node in enumerate(self.nodes):
            flops, kept = self.costs.of_node(node.name)
            for growing in self._around(self.of_node[place]):
                growing.first = min(growing.first, (node.op == "get_attr", place))
                growing.count += 1
                growing.flops += flops or 0
                growing.kept += kept or 0
                growing.parameters.update((id(tensor), tensor) for tensor in self.tensors.get(node, []))

    def _place_gone_blocks(self) -> None:
        """Add the blocks of which nothing is left: each is shown before what follows it."""
        for name, steps in self.nesting.blocks.items():
            if steps not in self.at:
                first = self._first_behind(name)
                for growing in self._around(self._reach(steps)):
                    if math.isinf(growing.first[1]):
                        growing.first = (True, first - 0.5)

    def _order_children(self) -> None:
        """List the nodes and groups that lie in each group, in program order."""
        inside: list[list[tuple[float, int]]] = [[] for _ in self.groups]
        for place, group in enumerate(self.of_node):
            inside[group].append((place, place))
        for place, growing in enumerate(self.groups):
            if growing.parent is not None:
                inside[growing.parent].append((growing.first[1], -1 - place))
        for growing, children in zip(self.groups, inside, strict=True):
            growing.children = [child for _, child in sorted(children)]

    def _around(self, group: int | None) -> Iterator[_Growing]:
        """A group and those around it, from the innermost."""
        while group is not None:
            yield self.groups[group]
            group = self.groups[group].parent

    def _first_behind(self, block: str) -> int:
        """The place of the first node that stood behind a block before, and is still there."""
        steps = self.nesting.blocks[block]
        now = {node.name: place for place, node in enumerate(self.nodes)}
        names = [node.name for node in self.part.graph_module.graph.nodes]
        inside = [place for place, name in enumerate(names) if self.nesting.steps[name][: len(steps)] == steps]
        return next((now[name] for name in names[inside[-1] + 1 :] if name in now), len(self.nodes))

    def _reach(self, steps: Steps) -> int:
        if steps not in self.at:
            parent = self._reach(steps[:-1]) if steps else None
            self.at[steps] = len(self.groups)
            self.groups.append(_Growing(steps, parent))
        return self.at[steps]

    def _row(self, node: fx.Node) -> Node:
        source, path = source_of(node), target_of(node)
        if isinstance(node.target, str) and node.op in ("call_module", "get_attr"):
            path = qualified_name(self.part.path, path)
        flops, kept = self.costs.of_node(node.name)
        return Node(
            name=node.name,
            label=_place(self.words, label_of(self.gm, node)),
            kind=kind_of_node(self.gm, node),
            group=self.of_node[self.places[node]],
            target=_place(self.words, path),
            value=_place(self.values, value_of(node)),
            parameters=sum(tensor.numel() for tensor in self.tensors.get(node, [])),
            flops=flops,
            kept=kept,
            source=None if source is None else _place(self.words, source),
        )

    def _lift(self, edges: Sequence[tuple[int, int]]) -> list[dict[tuple[Any, Any], None]]:
        """The edges between the children of each group; an end outside is the node's place, as ("in", 3)."""
        lifted: list[dict[tuple[Any, Any], None]] = [{} for _ in self.groups]
        for source, target in edges:
            ups, downs = self._above(source), self._above(target)
            shared = 0
            while shared < min(len(ups), len(downs)) and ups[shared][0] == downs[shared][0]:
                shared += 1
            # Each group around an end, with what of it holds the end.
            lifted[ups[shared - 1][0]][ups[shared - 1][1], downs[shared - 1][1]] = None
            for group, child in ups[shared:]:
                self.groups[group].outputs[source] = None
                lifted[group][child, ("out", source)] = None
            for group, child in downs[shared:]:
                self.groups[group].inputs[source] = None
                lifted[group][("in", source), child] = None
        return lifted

    def _above(self, node: int) -> list[tuple[int, int]]:
        """The groups around a node from the outermost, each with the child of it that the node is or lies in."""
        found, child = [], node
        at: int | None = self.of_node[node]
        while at is not None:
            found.append((at, child))
            child, at = -1 - at, self.groups[at].parent
        return found[::-1]

    def _outline(
        self, place: int, rows: Sequence[Node], sizes: Sequence[tuple[int, int]], edges: Mapping[tuple[Any, Any], None]
    ) -> GroupShape:
        group = self.groups[place]
        ends = [*(("in", node) for node in group.inputs), *(("out", node) for node in group.outputs)]
        of_thing: dict[Any, Node] = {child: rows[child] for child in group.children if child >= 0}
        of_thing |= {end: rows[end[1]] for end in ends}
        of_group = {child: sizes[-1 - child] for child in group.children if child < 0}
        words, values = list(self.words), list(self.values)
        drawn, hidden = simplified(edges, of_thing, values)

        def size(thing: Any) -> tuple[int, int]:
            if thing in hidden:
                return HIDDEN
            if thing in of_group:
                return of_group[thing]
            node = of_thing[thing]
            label = words[node.label]
            return node_size(label, values[node.value].text) if isinstance(thing, int) else port_size(label)

        # Values come in above all else and leave below it.
        things: list[Any] = [*group.children, *ends]
        places = {thing: k for k, thing in enumerate(things)}
        joined = dict.fromkeys((places[one], places[other]) for one, other in drawn)
        for k, child in enumerate(group.children):
            if child < 0 and not self.groups[-1 - child].count and (k - 1, k + 1) in joined:
                # What is left of the block is the way through it.
                del joined[k - 1, k + 1]
                joined |= {(k - 1, k): None, (k, k + 1): None}
        return GroupShape(tuple(map(size, things)), tuple(joined), len(group.children), len(group.inputs))

    def _label(self, group: _Growing) -> str:
        if not group.steps:
            return self.part.path or self.part.graph_module.meta["capture"].model
        name = group.steps[-1].name
        name = self.nesting.modules.get(name, name)
        around = next((step.name for step in reversed(group.steps[:-1]) if name.startswith(f"{step.name}.")), "")
        return name.removeprefix(f"{around}.")

    def _group(self, place: int, label: str, outline: GroupShape, counterparts: Mapping[Steps, int]) -> Group:
        growing = self.groups[place]
        kind: GroupKind = "graph"
        known: dict[str, Any] = {"type": self.part.graph_module.meta["capture"].model}
        name = self.part.path
        if growing.steps:
            step = growing.steps[-1]
            kind, name = step.kind, qualified_name(name, step.name)
            path = self.nesting.modules.get(step.name) if kind == "block" else step.name
            known = {"type": None if path is None or kind == "repeat" else self._type(path)}
            if kind == "block":
                kind, name, of_block = self._block(step)
                known |= of_block
            elif kind == "repeat":
                known["copies"] = sum(self._is_block(child) for child in growing.children)
        return Group(
            name=name,
            label=label,
            kind=kind,
            children=tuple(growing.children),
            layout=self.layouts.setdefault(outline, str(len(self.layouts))),
            nodes=growing.count,
            parameters=sum(tensor.numel() for tensor in growing.parameters.values()),
            flops=None if self.costs.flops is None else growing.flops,
            kept=None if self.costs.kept is None else growing.kept,
            parent=growing.parent,
            inputs=tuple(growing.inputs),
            outputs=tuple(growing.outputs),
            counterpart=counterparts.get(growing.steps),
            **known,
        )

    def _is_block(self, child: int) -> bool:
        return child < 0 and self.groups[-1 - child].steps[-1].kind == "block"

    def _block(self, step: StepDown) -> tuple[GroupKind, str, dict[str, Any]]:
        """The kind of a block's group, the name of the block and what is known of it."""
        names = [qualified_name(self.part.path, name) for name in self.nesting.names[step.name]]
        rows = [self.report[name] for name in names if name in self.report]
        if not rows:
            return "block", names[0], {"aliases": tuple(names[1:])}
        # Of several names the one that says most.
        row = max(rows, key=lambda row: ("kept", "refused", "replaced").index(row.status))
        known = {name: getattr(row, name) for name in ("repeat", "status", "surrogate", "reason")}
        known["aliases"] = tuple(name for name in names if name != row.block)
        return ("surrogate" if self.after and row.status == "replaced" else "block"), row.block, known

    def _type(self, path: str) -> str | None:
        """The class of the module at a path of the part."""
        module: Any = self.source
        for name in path.split("."):
            module = getattr(module, name, None)
        return type(module).__name__ if isinstance(module, nn.Module) else None


def _place(known: dict[_T, int], value: _T) -> int:
    """The place of a value among those that came before, or behind them."""
    return known.setdefault(value, len(known))
