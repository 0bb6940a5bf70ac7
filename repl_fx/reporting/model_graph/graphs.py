"""Graphs of the document: nodes with their costs in nested groups, and the outlines of these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import fx, nn

from repl_fx.reporting.model_graph import node_facts
from repl_fx.reporting.model_graph.document import Graph, Group, Node, Value
from repl_fx.reporting.model_graph.layout import GroupShape
from repl_fx.reporting.model_graph.nesting import Nesting, Steps
from repl_fx.reporting.model_graph.picturing import HIDDEN, group_size, node_size, port_size, simplified
from repl_fx.rewriting.block_reports import BlockReport
from repl_fx.tracing.parts.capture_parts import qualified_name
from repl_fx.tracing.parts.part_repeats import PartRepeats

_T = TypeVar("_T")


@dataclass(eq=False)
class _Growing:
    """A group on its way.

    Attributes:
        way: the places of the groups around it, from the outermost, and its own.
        begins: where it stands among the nodes and groups beside it, as a place between nodes.
        nodes: the places of the nodes in it, at any depth.
    """

    steps: Steps
    way: tuple[int, ...]
    begins: float = math.inf
    nodes: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)
    inputs: dict[int, None] = field(default_factory=dict)
    outputs: dict[int, None] = field(default_factory=dict)

    @property
    def parent(self) -> int | None:
        """The place of the group around it."""
        return self.way[-2] if self.steps else None


@dataclass(eq=False)
class GraphMaker:
    """Makes the graph of one side, before or after.

    Attributes:
        steps: to each node, by its name.
        costs: of each node, by its name.
        source: the module that the graph was captured from, or nothing where it is not known.
        layouts: keys of the layouts, by the outlines of groups; those that look the same share one.
        at: the places of groups, by the steps to them.
    """

    part: PartRepeats
    gm: fx.GraphModule
    steps: Mapping[str, Steps]
    nesting: Nesting
    costs: Mapping[str, node_facts.NodeCost]
    report: Mapping[str, BlockReport]
    source: nn.Module | None
    layouts: dict[GroupShape, str]
    after: bool = False

    def __post_init__(self) -> None:
        self.places = {node.name: place for place, node in enumerate(self.gm.graph.nodes)}
        parameters = node_facts.parameters_by_node(self.gm)
        self.tensors = [parameters.get(node, []) for node in self.gm.graph.nodes]
        self.groups: list[_Growing] = []
        self.at: dict[Steps, int] = {}
        self._reach(())
        self.of_node = [self._reach(self.steps[name]) for name in self.places]
        # Words and values in the order in which they come first, and the place of each.
        words: dict[str, int] = {}
        values: dict[Value, int] = {}
        self.rows = [self._row(place, node, words, values) for place, node in enumerate(self.gm.graph.nodes)]
        self.words, self.values = tuple(words), tuple(values)
        self._fill_groups()
        self._place_gone_blocks()
        self._order_children()

    def make(self, counterparts: Mapping[Steps, int]) -> Graph:
        """The graph; `counterparts` are the places of groups in the other one."""
        edges = [
            (self.places[feeder.name], place)
            for place, node in enumerate(self.gm.graph.nodes)
            for feeder in node.all_input_nodes
        ]
        inner = self._lift(edges)
        labels = list(map(self._label, self.groups))
        sizes = []
        for group, label in zip(self.groups, labels, strict=True):
            step = group.steps[-1] if group.steps else None
            sizes.append(group_size(step.kind, label, step.name) if step else group_size("graph", label, label))
        groups = [
            self._group(group, label, self._outline(group, sizes, joined), counterparts)
            for group, label, joined in zip(self.groups, labels, inner, strict=True)
        ]
        info = self.part.graph_module.meta["capture"]
        return Graph(
            id=self.part.path,
            label=info.model,
            tracer=info.tracer,
            words=self.words,
            values=self.values,
            groups=tuple(groups),
            nodes=tuple(self.rows),
            edges=tuple(edges),
        )

    def _reach(self, steps: Steps) -> int:
        """The place of the group at the end of some steps, which is added with those around it where it is new."""
        if steps not in self.at:
            around = self.groups[self._reach(steps[:-1])].way if steps else ()
            self.at[steps] = len(self.groups)
            self.groups.append(_Growing(steps, (*around, len(self.groups))))
        return self.at[steps]

    def _row(self, place: int, node: fx.Node, words: dict[str, int], values: dict[Value, int]) -> Node:
        source, path = node_facts.source_of(node), node_facts.target_of(node)
        if isinstance(node.target, str) and node.op in ("call_module", "get_attr"):
            path = qualified_name(self.part.path, path)
        flops, kept = self.costs[node.name]
        return Node(
            name=node.name,
            label=_place(words, node_facts.label_of(self.gm, node)),
            kind=node_facts.kind_of_node(self.gm, node),
            group=self.of_node[place],
            target=_place(words, path),
            value=_place(values, node_facts.value_of(node)),
            parameters=sum(tensor.numel() for tensor in self.tensors[place]),
            flops=flops,
            kept=kept,
            source=None if source is None else _place(words, source),
        )

    def _fill_groups(self) -> None:
        """Put the nodes into the groups around them, each of which begins at its first node.

        Tensors are read at the beginning of a graph, wherever they are used, so other nodes go before.
        """
        for place, group in enumerate(self.of_node):
            for around in self.groups[group].way:
                self.groups[around].nodes.append(place)
        reading = [node.op == "get_attr" for node in self.gm.graph.nodes]
        for growing in self.groups:
            growing.begins = min(growing.nodes, key=lambda place: (reading[place], place))

    def _place_gone_blocks(self) -> None:
        """Add the blocks of which nothing is left: each is shown before what follows it."""
        for steps in self.nesting.blocks.values():
            if steps not in self.at:
                before = self._first_behind(steps) - 0.5
                for group in (self.groups[around] for around in self.groups[self._reach(steps)].way):
                    if not group.nodes:
                        group.begins = min(group.begins, before)

    def _first_behind(self, block: Steps) -> int:
        """The place of the first node that stood behind a block before, and is still there."""
        names = [node.name for node in self.part.graph_module.graph.nodes]
        inside = [place for place, name in enumerate(names) if self.nesting.steps[name][: len(block)] == block]
        return next((self.places[n] for n in names[inside[-1] + 1 :] if n in self.places), len(self.places))

    def _order_children(self) -> None:
        """List the nodes and groups that lie in each group, in program order."""
        things = [(float(place), place, group) for place, group in enumerate(self.of_node)]
        for place, growing in enumerate(self.groups):
            if growing.parent is not None:
                things.append((growing.begins, -1 - place, growing.parent))
        for _, child, group in sorted(things):
            self.groups[group].children.append(child)

    def _lift(self, edges: Sequence[tuple[int, int]]) -> list[dict[tuple[Any, Any], None]]:
        """The edges between the children of each group; an end outside is the node's place, as ("in", 3)."""
        lifted: list[dict[tuple[Any, Any], None]] = [{} for _ in self.groups]
        for source, target in edges:
            ups, downs = self._above(source), self._above(target)
            shared = sum(one == other for (one, _), (other, _) in zip(ups, downs, strict=False))
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
        way = self.groups[self.of_node[node]].way
        return list(zip(way, (*(-1 - group for group in way[1:]), node), strict=True))

    def _outline(
        self, group: _Growing, sizes: Sequence[tuple[int, int]], edges: Mapping[tuple[Any, Any], None]
    ) -> GroupShape:
        """The outline of a group, of which the sizes of all groups and the edges between its children are known."""
        # Values come in above all else and leave below it.
        ends = [*(("in", node) for node in group.inputs), *(("out", node) for node in group.outputs)]
        rows: dict[Any, Node] = {child: self.rows[child] for child in group.children if child >= 0}
        rows |= {end: self.rows[end[1]] for end in ends}
        drawn, hidden = simplified(edges, rows, self.values)

        def size(thing: Any) -> tuple[int, int]:
            if thing in hidden:
                return HIDDEN
            if thing not in rows:
                return sizes[-1 - int(thing)]
            label, value = self.words[rows[thing].label], self.values[rows[thing].value]
            return port_size(label) if isinstance(thing, tuple) else node_size(label, value.text)

        things: list[Any] = [*group.children, *ends]
        places = {thing: k for k, thing in enumerate(things)}
        joined = dict.fromkeys((places[one], places[other]) for one, other in drawn)
        for k, child in enumerate(group.children):
            if child < 0 and not self.groups[-1 - child].nodes and (k - 1, k + 1) in joined:
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

    def _group(self, group: _Growing, label: str, outline: GroupShape, counterparts: Mapping[Steps, int]) -> Group:
        rows = [self.rows[place] for place in group.nodes]
        tensors = {id(tensor): tensor for place in group.nodes for tensor in self.tensors[place]}
        return Group(
            label=label,
            children=tuple(group.children),
            layout=self.layouts.setdefault(outline, str(len(self.layouts))),
            nodes=len(rows),
            parameters=sum(tensor.numel() for tensor in tensors.values()),
            flops=self._total("flops", rows),
            kept=self._total("kept", rows),
            parent=group.parent,
            inputs=tuple(group.inputs),
            outputs=tuple(group.outputs),
            counterpart=counterparts.get(group.steps),
            **self._facts(group),
        )

    def _total(self, cost: str, rows: Sequence[Node]) -> int | None:
        """The sum of a cost over nodes; None where the costs of the graph are not known."""
        return None if getattr(self.rows[0], cost) is None else sum(getattr(row, cost) for row in rows)

    def _facts(self, group: _Growing) -> dict[str, Any]:
        """The name of a group, its kind and what is known of it."""
        if not group.steps:
            return {"name": self.part.path, "kind": "graph", "type": self.part.graph_module.meta["capture"].model}
        step = group.steps[-1]
        name = qualified_name(self.part.path, step.name)
        if step.kind == "module":
            return {"name": name, "kind": "module", "type": self._type(step.name)}
        if step.kind == "repeat":
            inside = [self.groups[-1 - child].steps[-1].kind for child in group.children if child < 0]
            return {"name": name, "kind": "repeat", "copies": inside.count("block")}
        path = self.nesting.modules.get(step.name)
        names = [qualified_name(self.part.path, name) for name in self.nesting.names[step.name]]
        known: dict[str, Any] = {"name": names[0], "kind": "block", "type": None if path is None else self._type(path)}
        rows = [self.report[name] for name in names if name in self.report]
        if rows:
            # Of several names the one that says most.
            row = max(rows, key=lambda row: ("kept", "refused", "replaced").index(row.status))
            known |= {name: getattr(row, name) for name in ("repeat", "status", "surrogate", "reason")}
            known |= {"name": row.block, "kind": "surrogate" if self.after and row.status == "replaced" else "block"}
        return {**known, "aliases": tuple(name for name in names if name != known["name"])}

    def _type(self, path: str) -> str | None:
        """The class of the module at a path of the part."""
        module: Any = self.source
        for name in path.split("."):
            module = getattr(module, name, None)
        return type(module).__name__ if isinstance(module, nn.Module) else None


def _place(known: dict[_T, int], value: _T) -> int:
    """The place of a value among those that came before, or behind them."""
    return known.setdefault(value, len(known))
