"""A folded model with names that are markup, in SVG and DOT."""

from __future__ import annotations

from repl_fx.reporting.model_graph.document import Box, Layout, Route
from repl_fx.reporting.pictures.folded import Card, DrawnItem, Folded, stack_of

MARKUP = '</text><script>alert("1")</script> & \\ \n\0'
_ITEM = DrawnItem(MARKUP, MARKUP, "layer", "", MARKUP)
_LAYOUT = Layout(
    200, 200, (Box(10, 10, 120, 46), Box(10, 90, 120, 66), Box(0, 0, 0, 0)), (Route(0, 1, (70, 56, 70, 90)),)
)
_BLOCKS = (
    DrawnItem(MARKUP, "112 k", "kept", "", MARKUP),
    DrawnItem("b.1", "3 k", "replaced", "→ slim", ""),
    DrawnItem("b.2", "112 k", "refused", "refused", "too odd"),
)
ODD = Folded(
    (MARKUP, "10 parameters"),
    (
        Card("p0", MARKUP, (_ITEM, DrawnItem(MARKUP, "9 k", "repeat"), None), _LAYOUT, {1: "s0"}),
        stack_of("s0", MARKUP, _BLOCKS, {0: "b"}),
        Card("b", "inside", (_ITEM, _ITEM, None), _LAYOUT, {}),
    ),
)
