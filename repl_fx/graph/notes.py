"""Notes on nodes: what a graph says of its nodes besides what they compute, each in `node.meta` under a key of its own.

`val`, `nn_module_stack` and `stack_trace` are fx's own. Notes of other classes than those here stand beside these.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from torch import fx

T = TypeVar("T")


class Note(Generic[T]):
    """A kind of note.

    Args:
        key: in `node.meta`.
        kind: the class of all notes of the kind; `check_graph` asks for it.
    """

    kinds: ClassVar[list[Note[Any]]] = []

    def __init__(self, key: str, kind: type) -> None:
        self.key, self.kind = key, kind
        Note.kinds.append(self)

    def of(self, node: fx.Node) -> T | None:
        """The note on a node; None where there is none."""
        found: T | None = node.meta.get(self.key)
        return found

    def put(self, node: fx.Node, value: T) -> None:
        """Put a note on a node."""
        node.meta[self.key] = value


# On a node of a surrogate: the name of the block in the graph, and the key of the surrogate.
REPLACES: Note[tuple[str, str]] = Note("replaces", tuple)
# On a node of a block, also of a replaced one of which it stayed: the block's name in the graph.
BLOCK: Note[str] = Note("block", str)
# On a node inside of a surrogate: the name of the node of the block whose value, or whose first channels, it has.
COUNTERPART: Note[str] = Note("counterpart", str)
# On a node whose value stands for a parameter of the block: the path of the parameter.
STANDS_FOR: Note[str] = Note("stands_for", str)
# On a call: whether it returns its argument untouched in evaluation mode.
PASSES_THROUGH: Note[bool] = Note("passes_through", bool)


def wrong_note(node: fx.Node) -> str | None:
    """The first note on a node that is of another class than notes of its kind, in words."""
    for note in Note.kinds:
        if note.key in node.meta and not isinstance(found := node.meta[note.key], note.kind):
            return f"its note {note.key} is of the class {type(found).__name__}, not {note.kind.__name__}"
    return None
