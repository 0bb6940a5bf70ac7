"""Blocks and repeats: what was found in a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, fx

from repl_fx.display.html import Displayed


@dataclass(frozen=True, eq=False, repr=False)
class Block(Displayed):
    """One copy within a repeat.

    Attributes:
        name: unique in the graph; the module path where the block is one module.
        nodes: the block's computing nodes. Those that all copies have come first, in the same order: node k of one copy
            does what node k of another does. Behind them stands what only some copies have: dropout and drop path,
            which are absent where their rate is 0, and in similar repeats the projection of a shortcut.
        inputs: the streamed values the block takes, nodes outside the block; most blocks have one.
        outputs: the streamed values it makes: output i is input i of the next copy.
        side_outputs: other values of the block that are used outside it.
        side_inputs: other values from outside (masks, rotary tables, encoder memory), shared by all copies.
        parameters: paths of the parameters, in the order of the nodes; of the nodes all copies have, parameter k of one
            copy plays the part of parameter k of another.
        module_path: path of the module that is this block, None where no single module is.
        sizes: numbers of elements of the parameters, by the identity of the tensor: a tied one is one.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    side_outputs: tuple[fx.Node, ...]
    side_inputs: tuple[fx.Node, ...]
    parameters: tuple[str, ...]
    module_path: str | None
    sizes: Mapping[int, int]

    @property
    def size(self) -> int:
        """Number of elements of the parameters; one that is read twice counts once."""
        return sum(self.sizes.values())

    @property
    def input(self) -> fx.Node:
        """The streamed value that the block takes, the first of several."""
        return self.inputs[0]

    @property
    def output(self) -> fx.Node:
        """The streamed value that the block makes, the first of several."""
        return self.outputs[0]

    @property
    def keeps_size(self) -> bool:
        """Tell whether the streamed values that the block makes have the shapes of those that it takes."""
        for given, made in zip(self.inputs, self.outputs, strict=True):
            ours, theirs = given.meta.get("val"), made.meta.get("val")
            if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and str(ours.shape) != str(theirs.shape):
                return False
        return True

    @cached_property
    def node_set(self) -> frozenset[fx.Node]:
        """The nodes, for membership tests."""
        return frozenset(self.nodes)

    def __str__(self) -> str:
        return f"{self.name} ({len(self.nodes)} nodes, {self.size:,} parameters)"

    def details(self) -> str:
        """The block with its inputs, outputs and parameters, one a line."""
        values = {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "side outputs": self.side_outputs,
            "side inputs": self.side_inputs,
        }
        lines = [f"  {name:12} {', '.join(n.name for n in nodes)}" for name, nodes in values.items() if nodes]
        return "\n".join([str(self), *lines, *(f"  {name}" for name in self.parameters)])


@dataclass(frozen=True, eq=False, repr=False)
class Repeat(Displayed):
    """A run of isomorphic blocks, back to back, or a sequence of similar ones.

    Attributes:
        name: the common module path of its blocks, or `repeat_1`, `repeat_2`, …
        blocks: the copies, in program order; at least two.
        children: repeats inside the first copy.
        shared: whether the copies use the same parameters (ALBERT); such a repeat has nothing to save.
        similar: whether the blocks are alike only up to sizes, strides and the projection of a shortcut, and may have
            other nodes between them. Their nodes may be part of blocks of exact repeats.
        own: whether the user made it (`repeat_of`), so that a plan has to say what its blocks are.
    """

    name: str
    blocks: tuple[Block, ...]
    children: tuple[Repeat, ...] = ()
    shared: bool = False
    similar: bool = False
    own: bool = True

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def size(self) -> int:
        """Number of parameter elements in all copies together; shared ones count once."""
        return sum({key: size for block in self.blocks for key, size in block.sizes.items()}.values())

    def __str__(self) -> str:
        kind = " similar" if self.similar else ""
        return f"{self.name}: {len(self)}{kind} x {len(self.blocks[0].nodes)} nodes, {self.size:,} parameters"

    def details(self) -> str:
        """The repeat with its blocks and inner repeats, one a line."""
        lines = [str(self), *(f"  {block}" for block in self.blocks)]
        for child in self.children:
            lines.extend(f"  inside: {line}" for line in child.details().splitlines())
        return "\n".join(lines)
