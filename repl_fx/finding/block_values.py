"""The values at the boundaries of blocks (streamed, side inputs, side outputs), and the dropout that is a block's own.

A block is found among the nodes that compute (`repl_fx.finding.node_table`); dropout, drop path and Identity, which
some copies have and others lack, are given to the block they stand in; so are sizes and truths of its own values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import fx

from repl_fx._torch import module_stack
from repl_fx.finding.block_names import BlockNames
from repl_fx.finding.blocks import Block
from repl_fx.finding.node_table import NodeTable, has_tensor, passed, passes_through
from repl_fx.graph.assigned_buffers import assigned_by
from repl_fx.graph.captured import attribute


@dataclass(frozen=True)
class BlockBoundary:
    """Nodes and values of one block, as in `repl_fx.finding.blocks.Block`."""

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    side_outputs: tuple[fx.Node, ...]
    side_inputs: tuple[fx.Node, ...]


def boundaries(
    table: NodeTable,
    members: npt.NDArray[np.int64],
    streams: Sequence[npt.NDArray[np.bool_]],
    streamed: Sequence[int],
) -> list[BlockBoundary]:
    """The boundaries of the copies of a repeat.

    Args:
        table: of the graph.
        members: int array (copies, P): positions of the nodes of each copy.
        streams: for each streamed value a bool array (P, A): the arguments of a copy that are it.
        streamed: for each streamed value its place in the copy that makes it.

    Returns:
        One for each copy; output i of a copy is input i of the next where that takes it.
    """
    copies = [tuple(table.nodes[i] for i in copy) for copy in members.tolist()]
    inside = with_passing(copies)
    places = [tuple(int(axis[0]) for axis in np.nonzero(stream)) for stream in streams]
    inputs = [
        tuple(entering(table.feeders[copy[place]][slot], nodes) for place, slot in places)
        for copy, nodes in zip(members.tolist(), inside, strict=True)
    ]
    found = []
    for number, nodes in enumerate(inside):
        made = tuple(copies[number][place] for place in streamed)
        following = inputs[number + 1] if number + 1 < len(copies) else ()
        # Copies of a similar repeat need not take what the one before made.
        takes = tuple(passed(node) for node in following) == made
        outputs = following if takes else tuple(leaving(node, nodes) for node in made)
        found.append(boundary(table, copies[number], nodes, inputs[number], outputs))
    return found


def boundary(
    table: NodeTable,
    aligned: Sequence[fx.Node],
    nodes: dict[fx.Node, None],
    inputs: tuple[fx.Node, ...],
    outputs: tuple[fx.Node, ...],
) -> BlockBoundary:
    """The boundary of one block, whose nodes are `aligned` and what else is in `nodes`."""
    side_outputs = tuple(
        node for node in nodes if node not in outputs and any(user not in nodes for user in node.users)
    )
    feeders = dict.fromkeys(f for node in nodes for f in node.all_input_nodes if f not in nodes and f not in inputs)
    side = tuple(f for f in feeders if f.op == "placeholder" or passes_through(f) or f in table.index)
    known = set(aligned)
    extra = sorted(node for node in nodes if node not in known)
    return BlockBoundary((*aligned, *extra), inputs, outputs, side_outputs, side)


def with_passing(copies: Sequence[Sequence[fx.Node]]) -> list[dict[fx.Node, None]]:
    """The nodes of each block, with the dropout and the like that belongs to it.

    Dropout behind a value of a block belongs to the block where nothing else takes the value, and where no module that
    computes something else has it. Dropout before a block that also takes the value as it is belongs to that block:
    x + f(dropout(x)).
    """
    inside = [dict.fromkeys(copy) for copy in copies]
    claimed: set[fx.Node] = set()
    for nodes in inside:
        for node in list(nodes):
            for feeder in node.all_input_nodes:
                if passes_through(feeder) and feeder not in claimed and _leads(feeder, nodes):
                    nodes[feeder] = None
                    claimed.add(feeder)
    for nodes in inside:
        pending = list(nodes)
        while pending:
            node = pending.pop()
            for user in list(node.users):
                if passes_through(user) and user not in claimed and _follows(user, node, nodes):
                    nodes[user] = None
                    claimed.add(user)
                    pending.append(user)
    for nodes in inside:
        nodes.update(dict.fromkeys(_own_numbers(nodes)))
    return inside


def _own_numbers(nodes: dict[fx.Node, None]) -> list[fx.Node]:
    """The non-tensors that a block makes of its own values: sizes, truths, decisions, updates of its own buffers."""
    paths = {path for node in nodes for path in module_stack(node)}
    found: dict[fx.Node, None] = {}
    pending = list(nodes)
    while pending:
        for user in pending.pop().users:
            if user not in nodes and user not in found and not has_tensor(user) and user.op != "output":
                found[user] = None
                pending.append(user)
    kept: set[fx.Node] = set()
    for node in sorted(found, reverse=True):
        used = bool(node.users) and node.op == "call_function"
        if (used or _updates_within(node, paths)) and all(user in nodes or user in kept for user in node.users):
            kept.add(node)
    return sorted(kept)


def _updates_within(node: fx.Node, paths: set[str]) -> bool:
    """Tell whether a node does nothing but update buffers of modules at some paths."""
    buffer = str(node.target) if node.op == "call_module" else assigned_by(node)
    return not node.users and buffer is not None and buffer.rpartition(".")[0] in paths


def _leads(node: fx.Node, nodes: dict[fx.Node, None]) -> bool:
    given = node.all_input_nodes[0]
    return (
        given not in nodes
        and all(user in nodes for user in node.users)
        and any(user in nodes and user is not node for user in given.users)
    )


def _follows(node: fx.Node, given: fx.Node, nodes: dict[fx.Node, None]) -> bool:
    """Tell whether dropout behind a value of a block is the block's: used there, or all that leaves goes through it."""
    if node in nodes:
        return False
    if any(user in nodes for user in node.users):
        return True
    return all(u is node or u in nodes for u in given.users) and not _is_elsewhere(node, nodes)


def _is_elsewhere(node: fx.Node, nodes: dict[fx.Node, None]) -> bool:
    """Tell whether dropout stands in a module that computes, and computes nothing of a block."""
    # Its own path is that of no other.
    around = {path for path in module_stack(node) if path != node.target}
    around.difference_update(*(module_stack(inside) for inside in nodes))
    # Mostly it stands in a module of the block, and the graph need not be searched.
    computing = (one for one in node.graph.nodes if has_tensor(one) and not passes_through(one)) if around else ()
    return any(not around.isdisjoint(module_stack(one)) for one in computing)


def block_of(table: NodeTable, named: BlockNames, name: str, members: Sequence[int], bounds: BlockBoundary) -> Block:
    """The block of the nodes at these positions, which are those that all copies have and any parametric others."""
    # Behind the sign is what tells the block from another of the same module, in an exact and a similar repeat.
    path = name.partition("#")[0]
    module_path = named.module_of(path, (table.nodes[i] for i in members))
    parameters = tuple(path for i in members for path in table.parameters[i])
    root = table.nodes[members[0]].graph.owning_module
    assert root is not None  # blocks are of the graph of a module
    tensors = [attribute(root, name) for name in parameters]
    return Block(
        name=name,
        **vars(bounds),
        parameters=parameters,
        module_path=module_path,
        sizes={id(tensor): tensor.numel() for tensor in tensors},
    )


def share_parameters(blocks: Sequence[Block]) -> bool:
    """Tell whether all blocks use the same parameters."""
    # Tied tensors may go by several names.
    first, *others = (list(block.sizes) for block in blocks)
    return bool(first) and all(other == first for other in others)


def entering(value: fx.Node, nodes: dict[fx.Node, None]) -> fx.Node:
    """The node by which a value enters a block: the one before the dropout that belongs to the block."""
    while value in nodes:
        value = value.all_input_nodes[0]
    return value


def leaving(node: fx.Node, nodes: dict[fx.Node, None]) -> fx.Node:
    """The node by which a value leaves a block: the dropout behind it, where all else goes through that."""
    while len(node.users) == 1 and (user := next(iter(node.users))) in nodes and passes_through(user):
        node = user
    return node
