"""What of a group is drawn, and in boxes of which size: streamed tensors, not the arithmetic of sizes beside them.

Left out of pictures, while the document has all of it:

- values that are no tensors, such as a size that every block reads, and checks that give nothing;
- weights that only syntheses read, most of them of other blocks;
- what takes the results of a synthesis apart: its lines begin at the synthesis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repl_fx.graph.grouping import grouped
from repl_fx.reporting.model_graph.document import GroupKind, Node, NodeKind, Value

# Pixels of the page's fonts, about: a title is 13 px and bold, what stands below it 11 px.
_TITLE, _TEXT, _MARGIN = 7.8, 6.4, 26
_LINE, _TWO_LINES, _STACK = 28, 46, 66
_NARROWEST, _WIDEST = 90, 320
# For a word such as "replaced" beside the title.
_TAG = 84
# For "9.99 M param · 999 M FLOP", and for that behind "12 of 24 replaced".
_COSTS, _COPIES = 190, 262
# A tuple of many is cut.
_VALUE = 150
HIDDEN = (0, 0)

Edges = Mapping[tuple[Any, Any], None]


def simplified(
    edges: Edges, rows: Mapping[Any, Node], values: Sequence[Value]
) -> tuple[dict[tuple[Any, Any], None], set[Any]]:
    """The edges between the things of a group that are drawn, and the things that are not.

    Args:
        edges: pairs of things, from a value to its reader.
        rows: the nodes that things are; groups are none.
        values: `Graph.values`.
    """
    readers = grouped(edges)
    syntheses = {thing for thing, node in rows.items() if node.kind == "synthesis"}
    # The synthesis of each of its results that is read.
    parts = {reader: source for source, reader in edges if source in syntheses and _is(rows, reader, "operator")}
    parts = {reader: source for reader, source in parts.items() if reader in readers}
    hidden = set(parts)
    for thing in {thing for edge in edges for thing in edge} & rows.keys():
        of_syntheses = syntheses.issuperset(readers.get(thing, ()))
        number = _is_no_tensor(rows[thing], values[rows[thing].value], thing in readers)
        if number or (of_syntheses and _is(rows, thing, "parameter")):
            hidden.add(thing)
    drawn = {
        (parts.get(source, source), reader): None
        for source, reader in edges
        if reader not in hidden and (source not in hidden or source in parts)
    }
    return drawn, hidden


def _is(rows: Mapping[Any, Node], thing: Any, kind: NodeKind) -> bool:
    return thing in rows and rows[thing].kind == kind


def _is_no_tensor(node: Node, value: Value, is_read: bool) -> bool:
    """Tell whether a node gives a number, or nothing; a tuple, or what has no words for it, may hold tensors."""
    ends = node.kind in ("input", "output", "synthesis", "layer")
    number = bool(value.text) and not value.text.startswith(("(", "[", "{"))
    return not ends and value.shape is None and (number or not (value.text or is_read))


def node_size(label: str, value: str) -> tuple[int, int]:
    """Width and height of the box of a node, in pixels."""
    return _wide(_TITLE * len(label), min(_TEXT * len(value), _VALUE)), _TWO_LINES if value else _LINE


def port_size(label: str) -> tuple[int, int]:
    """Width and height of the box of a value that enters or leaves a group."""
    return _wide(_TITLE * len(label)), _LINE


def group_size(kind: GroupKind, label: str, name: str) -> tuple[int, int]:
    """Width and height of the box of a group: a block is shown by its name, a repeat has a cell for each copy."""
    if kind == "repeat":
        return _wide(_TITLE * len(label) + _TAG, _COPIES), _STACK
    shown = name if kind in ("block", "surrogate") else label
    return _wide(_TITLE * len(shown) + _TAG, _COSTS), _TWO_LINES


def _wide(*widths: float) -> int:
    return round(min(max(_NARROWEST, _MARGIN + max(widths)), _WIDEST))
