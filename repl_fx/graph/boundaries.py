"""Boundaries of module calls: the values of a graph that a module of the source was handed, and that it returned.

    source   x = self.blocks[3](x, mask=m)
    graph    add_7 [into blocks.3: x], where_1 [into blocks.3: mask] -> … -> add_9 [out of blocks.3]

A module that is to stand in the source's own tree in the place of a block has to know which of the graph's values it is
handed there, and which it has to return. The tracer notes both in `node.meta["boundaries"]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from repl_fx._torch import SYMBOLIC, pytree
from repl_fx.graph.notes import Note

BOUNDARIES = "boundaries"


@dataclass(eq=False)
class ModuleCall:
    """One call of a module in a trace.

    Attributes:
        path: of the module.
        calls: all calls of the module in the trace, this one among them.
        given: the leaves of the arguments, by place (see `Boundary`); of tensors and other objects that are no plain
            values and no numbers, their classes.
        result: the structure of the result; None until the call has run.
        constants: the leaves of the result that are no tensors, by number.
    """

    path: str
    calls: list[ModuleCall] = field(repr=False)
    given: Mapping[tuple[Any, ...], Any] = field(default_factory=dict)
    result: pytree.TreeSpec | None = None
    constants: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Boundary:
    """A value at the boundary of a module call.

    Attributes:
        call: the call.
        argument: the place of the value among the arguments: the name in the forward's signature, and the keys of
            containers behind it; None for a result.
        leaf: the number of the value among the flattened results; -1 for an argument.
    """

    call: ModuleCall
    argument: tuple[Any, ...] | None = None
    leaf: int = -1


_NOTE: Note[tuple[Boundary, ...]] = Note(BOUNDARIES, tuple)


def is_object(kind: Any) -> bool:
    """Tell whether a note of a leaf among arguments is the class of objects that are neither tensors nor numbers."""
    return isinstance(kind, type) and not issubclass(kind, (Tensor, *SYMBOLIC))


def note_objects_(graph: fx.Graph, other: fx.Graph) -> None:
    """Note of the calls in a graph the objects that they are handed in the other mode alone: a cache, mostly."""
    calls, others = ({b.call.path: b.call for node in one.nodes for b in boundaries(node)} for one in (graph, other))
    for path in calls.keys() & others.keys():
        known = calls[path].given
        objects = {place: kind for place, kind in others[path].given.items() if is_object(kind)}
        calls[path].given = {**known, **{place: kind for place, kind in objects.items() if known.get(place) is None}}


def places(arguments: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The leaves of bound arguments, with the keys that lead to each."""
    for path, leaf in pytree.tree_flatten_with_path(dict(arguments))[0]:
        yield tuple(_key(step) for step in path), leaf


def _key(step: Any) -> Any:
    if isinstance(step, pytree.SequenceKey):
        return step.idx
    return step.name if isinstance(step, pytree.GetAttrKey) else step.key


def boundaries(node: fx.Node) -> tuple[Boundary, ...]:
    """The boundaries that the value of a node is at."""
    return _NOTE.of(node) or ()


def note_boundary(node: fx.Node, boundary: Boundary) -> None:
    """Note a boundary on a node."""
    _NOTE.put(node, (*boundaries(node), boundary))


def move_boundaries(old: fx.Node, new: fx.Node) -> None:
    """Note on a node the boundaries of the one whose place it takes."""
    for boundary in old.meta.pop(BOUNDARIES, ()):
        note_boundary(new, boundary)


def at_boundaries(graph: fx.Graph, path: str) -> Iterator[tuple[fx.Node, Boundary]]:
    """The nodes of a graph at the boundaries of the calls of one module, in program order."""
    for node in graph.nodes:
        for boundary in boundaries(node):
            if boundary.call.path == path:
                yield node, boundary
