"""Rows of modules, called one behind another, that are one block: one has its surrogate, the others hand the stream on.

layers.4(x, mask) -> y;  layers.5(y, mask) -> z        layers.4 hands x on, and layers.5 computes z from it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from repl_fx.finding.blocks import Block
from repl_fx.graph.boundaries import at_boundaries


class NotInPlace(Exception):
    """A surrogate that cannot stand in the source's own tree; the message is the reason."""


@dataclass(frozen=True)
class Way:
    """The way of the stream through a module.

    Attributes:
        place: among the arguments.
        leaf: the number among the results.
    """

    place: tuple[Any, ...]
    leaf: int


def ways_of(graph: fx.Graph, block: Block, paths: Sequence[str]) -> dict[str, Way]:
    """The ways of the stream through the modules of a row, by path.

    Raises:
        NotInPlace: a module hands on several values, or none.
    """
    given = [{n: b.argument for n, b in at_boundaries(graph, path) if b.argument is not None} for path in paths]
    made = [{n: b.leaf for n, b in at_boundaries(graph, path) if b.argument is None} for path in paths]
    ways, stream = {}, block.input
    for path, taken, returned, behind in zip(paths, given, made, [*given[1:], {block.output: ()}], strict=True):
        shared = [node for node in returned if node in behind]
        if len(shared) != 1 or stream not in taken:
            raise NotInPlace(f"of the results of {path}, {len(shared)} go on to the module behind it, and not one")
        ways[path] = Way(taken[stream], returned[shared[0]])
        stream = shared[0]
    return ways


def main_of(paths: Sequence[str], inside: set[fx.Node]) -> str:
    """The module of a row that has all layers which the nodes of a surrogate call; the first where they call none."""
    called = [f"{node.target}." for node in inside if node.op == "call_module"]
    with_layers = [path for path in paths if any(target.startswith(f"{path}.") for target in called)]
    return with_layers[0] if with_layers else paths[0]
