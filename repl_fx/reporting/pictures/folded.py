"""A model folded for one picture: the way down to its largest repeat, the repeats as stacks, one block opened.

panel              stack                  panel
the whole model    blocks, 9 times        inside blocks.0
…                  blocks.0               norm1
blocks    - - -    blocks.1 -> reuse      attention
norm               blocks.2               …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repl_fx.display.numbers import change, count, size
from repl_fx.reporting.model_graph.document import COSTS, Box, Document, Graph, Group, Layout, Route

# Pixels of the blocks of a stack: their size, those between them, and how many stand below one another.
ROW_WIDTH, _ROW, _GAP, _BETWEEN, _ROWS = 250, 26, 6, 10, 16


@dataclass(frozen=True)
class DrawnItem:
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
class Card:
    """A group opened, with each group inside it as one item; or the blocks of a repeat, one below another.

    Attributes:
        key: unique in the picture: p0, p1, … on the way down, s0, s1, … for repeats, b for the block that is opened.
        items: one for each box of the layout, None where the layout leaves it out.
        opens: keys of the cards that show what is inside an item, by the place of the item.
    """

    key: str
    title: str
    items: tuple[DrawnItem | None, ...]
    layout: Layout
    opens: Mapping[int, str]

    @property
    def is_stack(self) -> bool:
        """Tell whether it shows the blocks of a repeat."""
        return self.key.startswith("s")


@dataclass(frozen=True)
class Folded:
    """A model folded.

    Attributes:
        lines: what stands above the picture: the model, and its costs.
        cards: from the whole graph down to the group of the largest repeat, its repeats, and one block of the largest,
            where anything repeats.
    """

    lines: tuple[str, ...]
    cards: tuple[Card, ...]


def fold_document(document: Document) -> Folded:
    """Fold the model of a document; after its transform, where it has one."""
    view = document.views.after or document.views.before
    found = [(graph, place) for graph in view.graphs for place in _outermost(graph)]
    if not found:
        graph = view.graphs[0]
        return Folded(_lines(document, graph), (_panel(document, graph, 0, "p0", {}),))
    graph, largest = max(found, key=_weight)
    way = graph.above(largest)
    repeats = [one for place in way for one in graph.inside(place) if graph.groups[one].kind == "repeat"]
    shown = _shown_block(graph, largest)
    keys = {place: f"p{i}" for i, place in enumerate(way)} | {place: f"s{i}" for i, place in enumerate(repeats)}
    cards = [_panel(document, graph, place, keys[place], keys) for place in way]
    cards += [_stack(graph, place, keys[place], shown) for place in repeats]
    return Folded(_lines(document, graph), (*cards, _panel(document, graph, shown, "b", {})))


def _weight(found: tuple[Graph, int]) -> int:
    """The parameters of a repeat times its blocks: three wide blocks may have more of them than twenty others."""
    graph, place = found
    return graph.groups[place].parameters * len(graph.inside(place))


def _outermost(graph: Graph) -> list[int]:
    """The places of the repeats that lie in no other."""
    repeats = [place for place, group in enumerate(graph.groups) if group.kind == "repeat"]
    return [place for place in repeats if not any(graph.groups[up].kind == "repeat" for up in graph.above(place))]


def _shown_block(graph: Graph, repeat: int) -> int:
    """The first block of a repeat that is kept, else the first."""
    blocks = graph.inside(repeat)
    return next((place for place in blocks if graph.groups[place].kind == "block"), blocks[0])


def _panel(document: Document, graph: Graph, place: int, key: str, keys: Mapping[int, str]) -> Card:
    group = graph.groups[place]
    ends = [("input", node) for node in group.inputs] + [("output", node) for node in group.outputs]
    things = [_item(graph, child) for child in group.children] + [_port(graph, node, look) for look, node in ends]
    layout = document.layouts[group.layout]
    items = tuple(item if box.width else None for item, box in zip(things, layout.boxes, strict=True))
    opens = {i: keys[-1 - child] for i, child in enumerate(group.children) if child < 0 and -1 - child in keys}
    return Card(key, "the whole model" if place == 0 else f"inside {group.name}", items, layout, opens)


def _stack(graph: Graph, place: int, key: str, shown: int) -> Card:
    blocks = graph.inside(place)
    gone = sum(graph.groups[block].status == "replaced" for block in blocks)
    title = f"{graph.groups[place].name}: {len(blocks)} blocks" + (f", {gone} replaced" if gone else "")
    opens = {blocks.index(shown): "b"} if shown in blocks else {}
    return stack_of(key, title, [_item(graph, -1 - block) for block in blocks], opens)


def stack_of(key: str, title: str, items: Sequence[DrawnItem], opens: Mapping[int, str]) -> Card:
    """A card of blocks, one below another, in as many columns as it takes."""
    columns, rows = -(-len(items) // _ROWS), min(len(items), _ROWS)
    places = ((_BETWEEN + i // _ROWS * (ROW_WIDTH + _BETWEEN), i % _ROWS * (_ROW + _GAP)) for i in range(len(items)))
    boxes = tuple(Box(x, y, ROW_WIDTH, _ROW) for x, y in places)
    # Each leads to the next, without a line.
    routes = tuple(Route(i, i + 1, ()) for i in range(len(items) - 1))
    size = columns * (ROW_WIDTH + _BETWEEN) + _BETWEEN, rows * (_ROW + _GAP) + _BETWEEN - _GAP
    return Card(key, title, tuple(items), Layout(*size, boxes, routes), opens)


def _item(graph: Graph, child: int) -> DrawnItem:
    if child >= 0:
        node = graph.nodes[child]
        label, value = graph.words[node.label], graph.values[node.value].text
        source = "" if node.source is None else f", {graph.words[node.source]}"
        return DrawnItem(label, value, node.kind, tip=f"{node.name}: {graph.words[node.target]}, {value}{source}")
    group = graph.groups[-1 - child]
    parameters = f"{count(group.parameters)} parameters"
    if group.kind == "repeat":
        return DrawnItem(f"{len(graph.inside(-1 - child))} × {group.label}", parameters, "repeat", tip=_tip(group))
    if group.kind not in ("block", "surrogate"):
        detail = f"{group.type} · {count(group.parameters)}" if group.type else count(group.parameters)
        return DrawnItem(group.label, detail, "module", tip=_tip(group))
    look = group.status or ("replaced" if group.kind == "surrogate" else "kept")
    mark = {"replaced": f"→ {group.surrogate}", "refused": "refused"}.get(look, "")
    return DrawnItem(
        group.name, count(group.parameters), look, mark, "; ".join(filter(None, (_tip(group), group.reason)))
    )


def _tip(group: Group) -> str:
    flops = "" if group.flops is None else f", {count(group.flops)} FLOPs"
    kept = "" if group.kept is None else f", {size(group.kept)} kept for backward"
    surrogate = f" replaced by {group.surrogate}" if group.surrogate else ""
    return f"{group.name}{surrogate}: {count(group.parameters)} parameters{flops}{kept}"


def _port(graph: Graph, node: int, look: str) -> DrawnItem:
    label, value = graph.words[graph.nodes[node].label], graph.values[graph.nodes[node].value].text
    return DrawnItem(label, value, look, tip=f"{look} {graph.nodes[node].name}: {value}")


def _lines(document: Document, graph: Graph) -> tuple[str, ...]:
    part = f", part {graph.id}" if graph.id else ""
    told = []
    for key, name, text in COSTS:
        before, after = getattr(document.totals.before, key), getattr(document.totals.after, key, None)
        if before is not None:
            change_of = f"{name} {text(before)} → {text(after)} ({change(before, after)})"
            told.append(f"{text(before)} {name}" if after is None else change_of)
    return f"{document.model.type} ({document.model.spec}){part}", ", ".join(told)
