"""Graphs of the document: nodes with their costs in nested groups, and the outlines of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from torch import fx, nn

from repl_fx.planning.part_repeats import PartRepeats
from repl_fx.planning.report import BlockReport
from repl_fx.report.model_graph.document import Graph, Group, GroupKind, Node
from repl_fx.report.model_graph.layout import Outline
from repl_fx.report.model_graph.nesting import Nesting, Step, Steps
from repl_fx.report.model_graph.node_facts import (
    NodeCosts,
    kind_of_node,
    label_of,
    parameters_by_node,
    source_of,
    target_of,
    value_of,
)
from repl_fx.report.model_graph.picturing import HIDDEN, group_size, node_size, port_size, simplified
from repl_fx.tracing.parts.capture import qualified_name


@dataclass(frozen=True, eq=False)
class Side:
    """A graph before or after, with what its picture needs.

    Attributes:
        steps: to each node, by its name.
        blocks: steps of groups that are there even if nothing is left in them.
        source: the module that the graph was captured from, or nothing where it is not known.
    """

    part: PartRepeats
    gm: fx.GraphModule
    steps: Mapping[str, Steps]
    nesting: Nesting
    costs: NodeCosts
    report: Mapping[str, BlockReport]
    source: nn.Module | None
    after: bool = False


@dataclass(eq=False)
class _Growing:
    """A group on its way."""

    steps: Steps
    parent: int | None
    children: list[int] = field(default_factory=list)
    count: int = 0
    flops: int = 0
    kept: int = 0
    parameters: dict[int, nn.Parameter] = field(default_factory=dict)
    inputs: dict[int, None] = field(default_factory=dict)
    outputs: dict[int, None] = field(default_factory=dict)


class _Table:
    """Values in the order in which they come first, and the place of each."""

    def __init__(self) -> None:
        self.places: dict[Any, int] = {}

    def place(self, value: Any) -> int:
        return self.places.setdefault(value, len(self.places))


class GraphMaker:
    """Makes the graph of one side.

    Args:
        side: the graph and what is known of it.
        layout_of: the key of the layout of an outline.
    """

    def __init__(self, side: Side, layout_of: Callable[[Outline], str]) -> None:
        self.side, self.layout_of = side, layout_of
        self.nodes = list(side.gm.graph.nodes)
        self.places = {node: place for place, node in enumerate(self.nodes)}
        self.groups: list[_Growing] = []
        self.at: dict[Steps, int] = {}
        self.words, self.values = _Table(), _Table()
        self.tensors = parameters_by_node(side.gm)

    def make(self, counterparts: Mapping[Steps, int] | None = None) -> Graph:
        """The graph; `counterparts` are the places of groups in the other one."""
        side = self.side
        self._grow()
        rows = [self._row(node) for node in self.nodes]
        edges = [
            (self.places[feeder], place) for place, node in enumerate(self.nodes) for feeder in node.all_input_nodes
        ]
        inner = self._lift(edges)
        info = side.part.graph_module.meta["capture"]
        labels = [self._label(group) for group in self.groups]
        sizes = [self._size(label, group) for label, group in zip(labels, self.groups, strict=True)]
        groups = [
            self._group(place, label, self._outline(place, rows, sizes, inner[place]), counterparts or {})
            for place, label in enumerate(labels)
        ]
        return Graph(
            id=side.part.path,
            label=info.model,
            tracer=info.tracer,
            words=tuple(self.words.places),
            values=tuple(self.values.places),
            groups=tuple(groups),
            nodes=tuple(rows),
            edges=tuple(edges),
        )

    def with_counterparts(self, graph: Graph, others: Mapping[Steps, int]) -> Graph:
        """The graph that was made, whose groups know their places in the other one."""
        known = zip(graph.groups, self.groups, strict=True)
        groups = tuple(msgspec.structs.replace(one, counterpart=others.get(growing.steps)) for one, growing in known)
        return msgspec.structs.replace(graph, groups=groups)

    def _grow(self) -> None:
        """Make the tree of groups, with what lies in each and what it costs."""
        self._reach(())
        order: dict[int, float] = {}
        read: dict[int, float] = {}
        of_node = []
        for place, node in enumerate(self.nodes):
            group = self._reach(self.side.steps[node.name])
            of_node.append(group)
            tensors = self.tensors.get(node, [])
            at: int | None = group
            while at is not None:
                growing = self.groups[at]
                # Tensors are read at the beginning of a graph, wherever they are used.
                (read if node.op == "get_attr" else order).setdefault(at, place)
                growing.count += 1
                growing.flops += (self.side.costs.flops or {}).get(node.name, 0)
                growing.kept += (self.side.costs.kept or {}).get(node.name, 0)
                growing.parameters.update((id(tensor), tensor) for tensor in tensors)
                at = growing.parent
        self.of_node = of_node
        order = {**read, **order}
        for name, steps in self.side.nesting.blocks.items():
            # A block of which nothing is left is shown before what follows it.
            if steps not in self.at:
                first = self._first_behind(name)
                at = self._reach(steps)
                while at is not None and at not in order:
                    order[at] = first - 0.5
                    at = self.groups[at].parent
        found: list[list[tuple[float, int]]] = [[] for _ in self.groups]
        for place, group in enumerate(of_node):
            found[group].append((place, place))
        for place, growing in enumerate(self.groups):
            if growing.parent is not None:
                found[growing.parent].append((order[place], -1 - place))
        for growing, children in zip(self.groups, found, strict=True):
            growing.children = [child for _, child in sorted(children)]

    def _first_behind(self, block: str) -> int:
        """The place of the first node that stood behind a block before, and is still there."""
        steps = self.side.nesting.blocks[block]
        now = {node.name: place for place, node in enumerate(self.nodes)}
        names = [node.name for node in self.side.part.graph_module.graph.nodes]
        inside = [place for place, name in enumerate(names) if self.side.nesting.steps[name][: len(steps)] == steps]
        return next((now[name] for name in names[inside[-1] + 1 :] if name in now), len(self.nodes))

    def _reach(self, steps: Steps) -> int:
        if steps not in self.at:
            parent = self._reach(steps[:-1]) if steps else None
            self.at[steps] = len(self.groups)
            self.groups.append(_Growing(steps, parent))
        return self.at[steps]

    def _row(self, node: fx.Node) -> Node:
        side = self.side
        source = source_of(node)
        path = target_of(node)
        if isinstance(node.target, str) and node.op in ("call_module", "get_attr"):
            path = qualified_name(side.part.path, path)
        return Node(
            name=node.name,
            label=self.words.place(label_of(side.gm, node)),
            kind=kind_of_node(side.gm, node),
            group=self.of_node[self.places[node]],
            target=self.words.place(path),
            value=self.values.place(value_of(node)),
            parameters=sum(tensor.numel() for tensor in self.tensors.get(node, [])),
            flops=None if side.costs.flops is None else side.costs.flops.get(node.name, 0),
            kept=None if side.costs.kept is None else side.costs.kept.get(node.name, 0),
            source=None if source is None else self.words.place(source),
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
    ) -> Outline:
        group = self.groups[place]
        things: list[Any] = [*group.children, *(("in", n) for n in group.inputs), *(("out", n) for n in group.outputs)]
        # Values come in above all else and leave below it.
        places = {thing: k for k, thing in enumerate(things)}
        words, values = list(self.words.places), list(self.values.places)

        def row(thing: Any) -> Node | None:
            return None if isinstance(thing, int) and thing < 0 else rows[thing if isinstance(thing, int) else thing[1]]

        drawn, hidden = simplified(edges, row, values)

        def size(thing: Any) -> tuple[int, int]:
            if thing in hidden:
                return HIDDEN
            node = row(thing)
            if node is None:
                place: int = -1 - thing
                return sizes[place]
            label = words[node.label]
            return node_size(label, values[node.value].text) if isinstance(thing, int) else port_size(label)

        joined = dict.fromkeys((places[one], places[other]) for one, other in drawn)
        for k, child in enumerate(group.children):
            if child < 0 and not self.groups[-1 - child].count and (k - 1, k + 1) in joined:
                # What is left of the block is the way through it.
                del joined[k - 1, k + 1]
                joined |= {(k - 1, k): None, (k, k + 1): None}
        return Outline(
            tuple(size(thing) for thing in things),
            tuple(joined),
            len(group.children),
            len(group.inputs),
        )

    def _label(self, group: _Growing) -> str:
        if not group.steps:
            return self.side.part.path or self.side.part.graph_module.meta["capture"].model
        name = group.steps[-1].name
        name = self.side.nesting.modules.get(name, name)
        around = next((step.name for step in reversed(group.steps[:-1]) if name.startswith(f"{step.name}.")), "")
        return name.removeprefix(f"{around}.")

    def _size(self, label: str, group: _Growing) -> tuple[int, int]:
        if not group.steps:
            return group_size("graph", label, label)
        step = group.steps[-1]
        return group_size(step.kind, label, step.name)

    def _group(self, place: int, label: str, outline: Outline, counterparts: Mapping[Steps, int]) -> Group:
        side, growing = self.side, self.groups[place]
        kind: GroupKind = "graph"
        known: dict[str, Any] = {}
        name = side.part.path
        if growing.steps:
            step = growing.steps[-1]
            kind, name = step.kind, qualified_name(name, step.name)
            if step.kind == "block":
                kind, name, known = self._block(step)
            elif step.kind == "repeat":
                known["copies"] = sum(self._is_block(child) for child in growing.children)
            if step.kind == "module":
                known["type"] = self._type(step.name)
            elif step.kind == "block" and step.name in side.nesting.modules:
                known["type"] = self._type(side.nesting.modules[step.name])
        else:
            known["type"] = side.part.graph_module.meta["capture"].model
        return Group(
            name=name,
            label=label,
            kind=kind,
            children=tuple(growing.children),
            layout=self.layout_of(outline),
            nodes=growing.count,
            parameters=sum(tensor.numel() for tensor in growing.parameters.values()),
            flops=None if side.costs.flops is None else growing.flops,
            kept=None if side.costs.kept is None else growing.kept,
            parent=growing.parent,
            inputs=tuple(growing.inputs),
            outputs=tuple(growing.outputs),
            counterpart=counterparts.get(growing.steps),
            **known,
        )

    def _is_block(self, child: int) -> bool:
        return child < 0 and self.groups[-1 - child].steps[-1].kind == "block"

    def _block(self, step: Step) -> tuple[GroupKind, str, dict[str, Any]]:
        """The kind of a block's group, the name of the block and what is known of it."""
        names = [qualified_name(self.side.part.path, name) for name in self.side.nesting.names[step.name]]
        rows = [self.side.report[name] for name in names if name in self.side.report]
        if not rows:
            return "block", names[0], {"aliases": tuple(names[1:])}
        # Of several names the one that says most.
        row = max(rows, key=lambda row: ("kept", "refused", "replaced").index(row.status))
        others = tuple(name for name in names if name != row.block)
        known = {
            "aliases": others,
            "repeat": row.repeat,
            "status": row.status,
            "surrogate": row.surrogate,
            "reason": row.reason,
        }
        return ("surrogate" if self.side.after and row.status == "replaced" else "block"), row.block, known

    def _type(self, path: str) -> str | None:
        """The class of the module at a path of the part."""
        module: Any = self.side.source
        for name in path.split("."):
            module = getattr(module, name, None)
        return type(module).__name__ if isinstance(module, nn.Module) else None
