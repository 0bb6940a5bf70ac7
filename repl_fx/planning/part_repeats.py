"""The repeats of a model: those of each of its parts, under the names that they have in the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import fx

from repl_fx.analysis.blocks import Block, Repeat
from repl_fx.passes.find_repeats import find_repeats
from repl_fx.surrogates.shared.matching import Matches
from repl_fx.tracing.fingerprint import lines_of_graph
from repl_fx.tracing.parts.capture import CapturedParts, qualified_name


@dataclass(frozen=True)
class PartRepeats:
    """The repeats of one part.

    Attributes:
        path: of the part in the model; "" is the whole model.
        graph_module: the graph.
        inside: the repeats, under the names that they have in the graph.
        repeats: the same under the names that they have in the model.
    """

    path: str
    graph_module: fx.GraphModule
    inside: tuple[Repeat, ...]
    repeats: tuple[Repeat, ...]

    @classmethod
    def of(cls, path: str, gm: fx.GraphModule, repeats: Sequence[Repeat]) -> PartRepeats:
        """The repeats that were found in the graph of a part."""
        return cls(path, gm, tuple(repeats), tuple(_named_from(path, repeat) for repeat in repeats))

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """The blocks as they are in the graph, by the names that they have in the model."""
        return {
            outside.name: inside
            for named, repeat in zip(self.repeats, self.inside, strict=True)
            for outside, inside in zip(named.blocks, repeat.blocks, strict=True)
        }

    @cached_property
    def matches(self) -> Matches:
        """The matches of surrogates and blocks."""
        return Matches(self.graph_module, self.inside, qualified_name(self.path, ""))

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The text of the graph."""
        return tuple(lines_of_graph(self.graph_module))


def find_in_parts(captured: CapturedParts) -> tuple[PartRepeats, ...]:
    """Find the repeats of each part of a model."""
    return tuple(
        PartRepeats.of(part.path, part.graph_module, find_repeats(part.graph_module)) for part in captured.parts
    )


def repeats_of(captured: CapturedParts) -> tuple[Repeat, ...]:
    """The repeats of all parts of a model."""
    return tuple(repeat for part in find_in_parts(captured) for repeat in part.repeats)


def _named_from(path: str, repeat: Repeat) -> Repeat:
    if not path:
        return repeat
    blocks = tuple(
        replace(
            block,
            name=qualified_name(path, block.name),
            parameters=tuple(qualified_name(path, name) for name in block.parameters),
            module_path=None if block.module_path is None else qualified_name(path, block.module_path),
        )
        for block in repeat.blocks
    )
    children = tuple(_named_from(path, child) for child in repeat.children)
    return replace(repeat, name=qualified_name(path, repeat.name), blocks=blocks, children=children)
