r"""Split a block into its spine and its branches, by structure alone.

    x ----------------------- add ------------------------------ add --- out      the spine
      \- norm - qkv - … - proj -/ \- norm - fc1 - gelu - fc2 ----/               two branches

The spine holds the nodes on a path from the block's input to its output that passes no linear operator; a block with
several streamed values has such a path for each. A branch hangs on it through one residual add. Its entry operators
have no linear operator before them in the branch, its exit operators none after; a thin surrogate can stand for the
span between them.
Never touches: the graph.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import networkx as nx
from torch import Tensor, fx

from repl_fx.finding.blocks import Block
from repl_fx.finding.linear_operators import LinearOperator, linear_operator_of
from repl_fx.graph.bridge import digraph, leading_to, meeting_point, on_paths, reached_from
from repl_fx.graph.roles import ADDITIONS


@dataclass(frozen=True, eq=False)
class Branch:
    """Nodes that hang on the spine through one residual add.

    Attributes:
        root: the value the spine adds.
        join: the addition.
        stream: which of the block's streamed values it is added to, from 0.
        nodes: the branch, in program order.
        operators: its linear operators, in program order.
        entries: linear operators that read the span's input and have no linear operator before them.
        exits: linear operators that make values like the span's output and have none after.
        input: the value the span starts from.
        output: the value the span ends in: the first one that everything mixed passes through.
    """

    root: fx.Node
    join: fx.Node
    stream: int
    nodes: tuple[fx.Node, ...]
    operators: tuple[LinearOperator, ...]
    entries: tuple[LinearOperator, ...]
    exits: tuple[LinearOperator, ...]
    input: fx.Node
    output: fx.Node


@dataclass(frozen=True, eq=False)
class Split:
    """Spine and branches of a block; `reason` says why there are none."""

    spine: tuple[fx.Node, ...] = ()
    branches: tuple[Branch, ...] = ()
    reason: str | None = None


def split_branches(gm: fx.GraphModule, block: Block) -> Split:
    """The spine and the branches of a block, or why not: no path around linear operators, a gate, no branch."""
    nodes = sorted(block.nodes)
    operators = {node: linear for node in nodes if (linear := linear_operator_of(gm, node)) is not None}
    whole = digraph(sorted({*block.inputs, *nodes}))
    unmixed = whole.subgraph(n for n in whole if n not in operators)
    paths = [on_paths(unmixed, given, made) for given, made in zip(block.inputs, block.outputs, strict=True)]
    if not all(paths):
        return Split(reason="it has no spine: every path through it passes a mixing operator")
    spine = set().union(*paths)
    branches = []
    for join in (n for n in nodes if n in spine):
        for root in join.all_input_nodes:
            if root in spine or root not in whole or not (leading_to(whole, [root]) & operators.keys()):
                continue
            if join.target not in ADDITIONS:
                return Split(reason=f"a branch joins the spine by {join.name}, which is no addition")
            stream = next(i for i, path in enumerate(paths) if join in path)
            branch = _branch(whole, root, join, stream, spine, operators)
            if isinstance(branch, str):
                return Split(reason=branch)
            branches.append(branch)
    if not branches:
        return Split(reason="it has no branch with a mixing operator")
    return Split(tuple(n for n in nodes if n in spine), tuple(branches))


def _branch(
    whole: nx.DiGraph[fx.Node],
    root: fx.Node,
    join: fx.Node,
    stream: int,
    spine: set[fx.Node],
    operators: dict[fx.Node, LinearOperator],
) -> Branch | str:
    off_spine = whole.subgraph(n for n in whole if n not in spine)
    members = leading_to(off_spine, [root])
    inside = whole.subgraph(members)
    streamed = reached_from(whole, spine)
    own = [operators[n] for n in sorted(members & operators.keys()) if n in streamed]
    if not own:
        return f"the branch that ends in {root.name} does not depend on the block's input"
    nodes = {m.node for m in own}
    heads = [m for m in own if not (nx.ancestors(inside, m.node) & nodes)]
    # Cross attention reads the encoder's memory besides the stream; only what reads the stream starts the span.
    heads = [m for m in heads if m.input in streamed] or heads
    entries = [m for m in heads if m.input is heads[0].input]
    output = meeting_point(inside, nodes, root)
    tails = [m for m in own if not (nx.descendants(inside, m.node) & nodes)]
    exits = [m for m in tails if same_shape(m.node, output)]
    if not exits:
        exits = [m for m in own if same_shape(m.node, output) and m.node is not entries[0].node][-1:]
    if not exits:
        return f"no mixing operator of the branch that ends in {root.name} makes a value of its shape"
    return Branch(
        root,
        join,
        stream,
        tuple(sorted(members)),
        tuple(own),
        tuple(entries),
        tuple(exits),
        entries[0].input,
        output,
    )


def behind_entries(branch: Branch, stops: Collection[fx.Node] = ()) -> list[fx.Node]:
    """The nodes of a branch that depend on its entries by a path without any of `stops`, in program order."""
    entries = [linear.node for linear in branch.entries]
    inside = digraph(node for node in branch.nodes if node in entries or node not in stops)
    return sorted(reached_from(inside, entries).difference(entries))


def same_shape(a: fx.Node, b: fx.Node) -> bool:
    """Tell whether two values are tensors of one shape, symbolic sizes and all."""
    ours, theirs = a.meta.get("val"), b.meta.get("val")
    return isinstance(ours, Tensor) and isinstance(theirs, Tensor) and str(ours.shape) == str(theirs.shape)
