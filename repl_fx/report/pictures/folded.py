"""A model folded for one picture: the way down to its largest repeat, the repeats as stacks, one block opened.

panel              stack                  panel
the whole model    blocks, 9 times        inside blocks.0
…                  blocks.0               norm1
blocks    - - -    blocks.1 -> reuse      attention
norm               blocks.2               …
"""

from __future__ import annotations

from dataclasses import dataclass

from repl_fx.display.numbers import change, count, size
from repl_fx.report.model_graph.document import Cost, Document, Graph, Group, Layout


@dataclass(frozen=True)
class Item:
    """One thing in a picture.

    Attributes:
        look: kind of a node, or of a group; `replaced`, `kept` or `refused` for a block.
        detail: a second line; empty for none.
        mark: a word that marks it beside its colour; empty for none.
        tip: all that is known of it, in a line.
    """

    title: str
    detail: str
    look: str
    mark: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Panel:
    """A group opened, with each group inside it as one item.

    Attributes:
        items: one for each box of the layout, None where the layout leaves it out.
        opened: the place of the item that the next panel opens.
        stacks: the places of items that are stacks, by their number in `Folded.stacks`.
    """

    title: str
    items: tuple[Item | None, ...]
    layout: Layout
    opened: int | None
    stacks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Stack:
    """The blocks of a repeat, in order; `opened` is the place of the one that is shown."""

    title: str
    blocks: tuple[Item, ...]
    opened: int | None


@dataclass(frozen=True)
class Folded:
    """A model folded.

    Attributes:
        lines: what stands above the picture: the model, and its costs.
        panels: from the whole graph down to the group of the largest repeat.
        block: one of its blocks opened; None where nothing repeats.
    """

    lines: tuple[str, ...]
    panels: tuple[Panel, ...]
    stacks: tuple[Stack, ...]
    block: Panel | None


def fold_document(document: Document) -> Folded:
    """Fold the model of a document; after its transform, where it has one."""
    view = document.views.after or document.views.before
    found = [(graph, place) for graph in view.graphs for place in _outermost(graph)]
    largest = max(found, key=_weight, default=None)
    graph = view.graphs[0] if largest is None else largest[0]
    way = [0] if largest is None else _above(graph, largest[1])
    repeats = [-1 - child for place in way for child in graph.groups[place].children if _is_repeat(graph, child)]
    shown = None if largest is None else _shown_block(graph, largest[1])
    panels = [
        _panel(graph, place, document, repeats, below) for place, below in zip(way, (*way[1:], None), strict=True)
    ]
    return Folded(
        _lines(document, graph),
        tuple(panels),
        tuple(_stack(graph, place, shown) for place in repeats),
        None if shown is None else _panel(graph, shown, document, (), None),
    )


def _weight(found: tuple[Graph, int]) -> int:
    """The parameters of a repeat times its blocks: three wide blocks may have more of them than twenty others."""
    graph, place = found
    repeat = graph.groups[place]
    return repeat.parameters * sum(child < 0 for child in repeat.children)


def _is_repeat(graph: Graph, child: int) -> bool:
    return child < 0 and graph.groups[-1 - child].kind == "repeat"


def _outermost(graph: Graph) -> list[int]:
    """The places of the repeats that lie in no other."""
    repeats = [place for place, group in enumerate(graph.groups) if group.kind == "repeat"]
    return [place for place in repeats if not any(graph.groups[up].kind == "repeat" for up in _above(graph, place))]


def _above(graph: Graph, place: int) -> list[int]:
    """The groups around a group, from the outermost."""
    above: list[int] = []
    parent = graph.groups[place].parent
    while parent is not None:
        above.insert(0, parent)
        parent = graph.groups[parent].parent
    return above


def _shown_block(graph: Graph, repeat: int) -> int | None:
    """The first block of a repeat that is kept, else the first."""
    blocks = [-1 - child for child in graph.groups[repeat].children if child < 0]
    return next((place for place in blocks if graph.groups[place].kind == "block"), blocks[0] if blocks else None)


def _panel(graph: Graph, place: int, document: Document, repeats: list[int] | tuple[()], below: int | None) -> Panel:
    group = graph.groups[place]
    inside = [_item(graph, child) for child in group.children]
    around = [_port(graph, node, "input") for node in group.inputs] + [
        _port(graph, node, "output") for node in group.outputs
    ]
    stacks = tuple((i, repeats.index(-1 - c)) for i, c in enumerate(group.children) if -1 - c in repeats and c < 0)
    opened = None if below is None else group.children.index(-1 - below)
    title = "the whole model" if place == 0 else f"inside {group.name}"
    layout = document.layouts[group.layout]
    items = (item if box.width else None for item, box in zip((*inside, *around), layout.boxes, strict=True))
    return Panel(title, tuple(items), layout, opened, stacks)


def _stack(graph: Graph, place: int, shown: int | None) -> Stack:
    repeat = graph.groups[place]
    blocks = [-1 - child for child in repeat.children if child < 0]
    opened = blocks.index(shown) if shown in blocks else None
    gone = sum(graph.groups[block].status == "replaced" for block in blocks)
    title = f"{repeat.name}: {len(blocks)} blocks" + (f", {gone} replaced" if gone else "")
    return Stack(title, tuple(_item(graph, -1 - block) for block in blocks), opened)


def _item(graph: Graph, child: int) -> Item:
    if child >= 0:
        node = graph.nodes[child]
        label, value = graph.words[node.label], graph.values[node.value].text
        source = "" if node.source is None else f", {graph.words[node.source]}"
        return Item(label, value, node.kind, tip=f"{node.name}: {graph.words[node.target]}, {value}{source}")
    group = graph.groups[-1 - child]
    parameters = f"{count(group.parameters)} parameters"
    if group.kind == "repeat":
        blocks = sum(one < 0 for one in group.children)
        return Item(f"{blocks} × {group.label}", parameters, "repeat", tip=_tip(group))
    if group.kind not in ("block", "surrogate"):
        detail = f"{group.type} · {count(group.parameters)}" if group.type else count(group.parameters)
        return Item(group.label, detail, "module", tip=_tip(group))
    look = group.status or ("replaced" if group.kind == "surrogate" else "kept")
    mark = {"replaced": f"→ {group.surrogate}", "refused": "refused"}.get(look, "")
    return Item(group.name, count(group.parameters), look, mark, "; ".join(filter(None, (_tip(group), group.reason))))


def _tip(group: Group) -> str:
    flops = "" if group.flops is None else f", {count(group.flops)} FLOPs"
    kept = "" if group.kept is None else f", {size(group.kept)} kept for backward"
    surrogate = f" replaced by {group.surrogate}" if group.surrogate else ""
    return f"{group.name}{surrogate}: {count(group.parameters)} parameters{flops}{kept}"


def _port(graph: Graph, node: int, look: str) -> Item:
    label, value = graph.words[graph.nodes[node].label], graph.values[graph.nodes[node].value].text
    return Item(label, value, look, tip=f"{look} {graph.nodes[node].name}: {value}")


def _lines(document: Document, graph: Graph) -> tuple[str, ...]:
    part = f", part {graph.id}" if graph.id else ""
    before, after = document.totals.before, document.totals.after
    costs = (("parameters", count, _parameters), ("FLOPs", count, _flops), ("kept for backward", size, _kept))
    told = []
    for name, text, value in costs:
        one, other = value(before), None if after is None else value(after)
        if one is not None:
            told.append(
                f"{text(one)} {name}" if other is None else f"{name} {text(one)} → {text(other)} ({change(one, other)})"
            )
    return f"{document.model.type} ({document.model.spec}){part}", ", ".join(told)


def _parameters(cost: Cost) -> int | None:
    return cost.parameters


def _flops(cost: Cost) -> int | None:
    return cost.flops


def _kept(cost: Cost) -> int | None:
    return cost.kept
