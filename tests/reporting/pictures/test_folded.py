"""What of a model is in a picture."""

from __future__ import annotations

import msgspec
import pytest

from repl_fx.reporting.model_graph.document import Box, Document
from repl_fx.reporting.pictures.folded import DrawnItem, fold_document
from tests.model_graphs import small_document

pytest.importorskip("igraph")


def items(found: tuple[DrawnItem | None, ...]) -> list[DrawnItem]:
    return [item for item in found if item is not None]


def test_a_repeat_is_a_stack_and_one_kept_block_is_opened() -> None:
    folded = fold_document(small_document())
    heading, costs = folded.lines
    assert heading == "TokenNet (net.py)" and costs.startswith("parameters ") and "→" in costs and "FLOPs " in costs
    panel, stack, block = folded.cards
    assert [card.key for card in folded.cards] == ["p0", "s0", "b"] and stack.is_stack and not panel.is_stack
    assert panel.title == "the whole model" and len(panel.items) == len(panel.layout.boxes)
    ((place, key),) = panel.opens.items()
    repeat = panel.items[place]
    assert repeat is not None and (repeat.look, repeat.title, key) == ("repeat", "3 × blocks", "s0")
    assert stack.title == "blocks: 3 blocks, 1 replaced" and stack.opens == {0: "b"}
    assert [(b.title, b.look, b.mark) for b in items(stack.items)] == [
        ("blocks.0", "kept", ""),
        ("blocks.1", "replaced", "→ bottleneck"),
        ("blocks.2", "kept", ""),
    ]
    tip = items(stack.items)[1].tip
    assert "blocks.1 replaced by bottleneck" in tip and "FLOPs" in tip
    assert block.title == "inside blocks.0"
    assert {"input", "output", "layer"} <= {item.look for item in items(block.items)}


@pytest.mark.slow
def test_a_model_before_its_transform_has_no_marks() -> None:
    document = small_document()
    views = msgspec.structs.replace(document.views, after=None)
    totals = msgspec.structs.replace(document.totals, after=None)
    folded = fold_document(msgspec.structs.replace(document, views=views, totals=totals))
    assert "→" not in folded.lines[1]
    assert items(folded.cards[1].items)[0].look == "kept"


def test_what_the_layout_leaves_out_is_no_item() -> None:
    document = small_document()
    graph = (document.views.after or document.views.before).graphs[0]
    key = graph.groups[0].layout
    layout = document.layouts[key]
    boxes = (Box(0, 0, 0, 0), *layout.boxes[1:])
    less = msgspec.structs.replace(layout, boxes=boxes)
    folded = fold_document(msgspec.structs.replace(document, layouts={**document.layouts, key: less}))
    drawn = [box.width > 0 for box in boxes]
    assert [item is not None for item in folded.cards[0].items] == drawn and any(drawn) and layout.boxes[0].width > 0


def test_a_model_in_which_nothing_repeats_is_one_panel() -> None:
    document = small_document()
    graph = document.views.before.graphs[0]
    whole = msgspec.structs.replace(graph.groups[0], children=(0,), layout="one")
    lone = msgspec.structs.replace(graph, groups=(whole,))
    view = msgspec.structs.replace(document.views.before, graphs=(lone,))
    layout = msgspec.structs.replace(document.layouts[graph.groups[0].layout], boxes=(Box(9, 9, 90, 40),), routes=())
    views = msgspec.structs.replace(document.views, before=view, after=None)
    found: Document = msgspec.structs.replace(document, views=views, layouts={"one": layout})
    folded = fold_document(found)
    assert [card.key for card in folded.cards] == ["p0"]


def test_the_way_down_to_a_repeat_inside_of_a_module() -> None:
    document = small_document()
    view = document.views.after or document.views.before
    graph = view.graphs[0]
    # A module around all of the graph.
    top, *rest = graph.groups
    inner = msgspec.structs.replace(top, name="encoder", kind="module", parent=0)
    lower = [msgspec.structs.replace(g, parent=(g.parent or 0) + 1, children=_moved(g.children)) for g in rest]
    inner = msgspec.structs.replace(inner, children=_moved(inner.children))
    outer = msgspec.structs.replace(top, children=(-2,), layout="outer")
    layout = msgspec.structs.replace(document.layouts[top.layout], boxes=(Box(9, 9, 90, 40),), routes=())
    graphs = (msgspec.structs.replace(graph, groups=(outer, inner, *lower)),)
    views = msgspec.structs.replace(document.views, after=msgspec.structs.replace(view, graphs=graphs))
    layouts = {**document.layouts, "outer": layout}
    folded = fold_document(msgspec.structs.replace(document, views=views, layouts=layouts))
    assert [card.title for card in folded.cards[:2]] == ["the whole model", "inside encoder"]
    assert folded.cards[0].opens == {0: "p1"} and list(folded.cards[1].opens.values()) == ["s0"]
    assert [card.key for card in folded.cards] == ["p0", "p1", "s0", "b"]
    assert folded.cards[-1].title == "inside blocks.0"


def _moved(children: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(child if child >= 0 else child - 1 for child in children)
