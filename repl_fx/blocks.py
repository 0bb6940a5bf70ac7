"""Blocks and repeats: what was found in a graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import fx


@dataclass(frozen=True, eq=False)
class Block:
    """One copy within a repeat.

    Attributes:
        name: unique in the graph; the module path where the block is one module.
        nodes: the block's computing nodes in an order that is the same for all copies of the repeat: node k of one
            copy does what node k of another does.
        input: the streamed value the block takes, a node outside the block.
        outputs: the values used outside; the streamed one first.
        side_inputs: other values from outside (masks, rotary tables, encoder memory), shared by all copies.
        parameters: paths of the parameters, in the order of the nodes; parameter k of one copy plays the part of
            parameter k of another.
        module_path: path of the module that is this block, None where no single module is.
        size: number of elements of the parameters.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    input: fx.Node
    outputs: tuple[fx.Node, ...]
    side_inputs: tuple[fx.Node, ...]
    parameters: tuple[str, ...]
    module_path: str | None
    size: int

    @property
    def output(self) -> fx.Node:
        """The streamed value that the block makes."""
        return self.outputs[0]

    @cached_property
    def node_set(self) -> frozenset[fx.Node]:
        """The nodes, for membership tests."""
        return frozenset(self.nodes)

    def __str__(self) -> str:
        return f"{self.name} ({len(self.nodes)} nodes, {self.size:,} parameters)"

    def details(self) -> str:
        """The block with its inputs, outputs and parameters, one a line."""
        lines = [str(self), f"  input    {self.input.name}", f"  outputs  {', '.join(n.name for n in self.outputs)}"]
        if self.side_inputs:
            lines.append(f"  side     {', '.join(n.name for n in self.side_inputs)}")
        return "\n".join([*lines, *(f"  {name}" for name in self.parameters)])


@dataclass(frozen=True, eq=False)
class Repeat:
    """A run of isomorphic blocks, back to back.

    Attributes:
        name: the common module path of its blocks, or `repeat_1`, `repeat_2`, …
        blocks: the copies, in program order; at least two.
        children: repeats inside the first copy.
        shared: whether the copies use the same parameters (ALBERT); such a repeat has nothing to save.
    """

    name: str
    blocks: tuple[Block, ...]
    children: tuple[Repeat, ...] = ()
    shared: bool = False

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def size(self) -> int:
        """Number of parameter elements in all copies together; shared ones count once."""
        return self.blocks[0].size if self.shared else sum(block.size for block in self.blocks)

    def __str__(self) -> str:
        return f"{self.name}: {len(self)} x {len(self.blocks[0].nodes)} nodes, {self.size:,} parameters"

    def details(self) -> str:
        """The repeat with its blocks and inner repeats, one a line."""
        lines = [str(self), *(f"  {block}" for block in self.blocks)]
        for child in self.children:
            lines.extend(f"  inside: {line}" for line in child.details().splitlines())
        return "\n".join(lines)
