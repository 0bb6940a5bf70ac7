"""The values at the boundaries of blocks (streamed, side inputs, side outputs), and the dropout that is a block's own.

A block is found among the nodes that compute (`repl_fx.finding.node_table`); dropout, drop path and Identity, which
some copies have and others lack, are given to the block they stand in; so are sizes and truths of its own values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from repl_fx._torch import module_stack
from repl_fx.finding.block_names import BlockNames
from repl_fx.finding.blocks import Block
from repl_fx.finding.node_table import Bools, Ints, has_tensor, passed, passes_through
from repl_fx.graph.assigned_buffers import assigned_by
from repl_fx.graph.captured import attribute
from repl_fx.graph.runtime import check_condition


def blocks_of(
    names: BlockNames,
    titles: Sequence[str],
    members: Ints,
    streams: Sequence[Bools],
    streamed: Sequence[int],
) -> list[Block]:
    """The blocks of a repeat.

    Args:
        names: of the graph.
        titles: the names of the blocks.
        members: int array (copies, P): positions of the nodes of each copy.
        streams: for each streamed value a bool array (P, A): the arguments of a copy that are it.
        streamed: for each streamed value its place in the copy that makes it.

    Returns:
        One for each copy; output i of a copy is input i of the next where that takes it.
    """
    table = names.table
    copies = [tuple(table.nodes[i] for i in copy) for copy in members.tolist()]
    inside = with_passing(copies)
    places = [tuple(int(axis[0]) for axis in np.nonzero(stream)) for stream in streams]
    inputs = [
        tuple(entering(table.feeders[copy[place]][slot], nodes) for place, slot in places)
        for copy, nodes in zip(members.tolist(), inside, strict=True)
    ]
    blocks = []
    for copy, title, nodes, given, following in zip(copies, titles, inside, inputs, [*inputs[1:], ()], strict=True):
        made = tuple(copy[place] for place in streamed)
        # Copies of a similar repeat need not take what the one before made.
        takes = tuple(passed(node) for node in following) == made
        outputs = following if takes else tuple(leaving(node, nodes) for node in made)
        blocks.append(block_of(names, title, nodes, given, outputs))
    return blocks


def block_of(
    names: BlockNames,
    title: str,
    nodes: dict[fx.Node, None],
    inputs: tuple[fx.Node, ...],
    outputs: tuple[fx.Node, ...],
    own: int = 0,
) -> Block:
    """The block of some nodes, of which the last `own` that compute are not in all copies."""
    table = names.table
    members = [node for node in nodes if node in table.index]
    aligned = dict.fromkeys(members[: len(members) - own])
    side_outputs = (node for node in nodes if node not in outputs and any(user not in nodes for user in node.users))
    feeders = dict.fromkeys(f for node in nodes for f in node.all_input_nodes if f not in nodes and f not in inputs)
    parameters = tuple(path for node in members for path in table.parameters[table.index[node]])
    tensors = [attribute(table.graph_module, path) for path in parameters]
    return Block(
        name=title,
        nodes=(*aligned, *sorted(nodes.keys() - aligned.keys())),
        inputs=inputs,
        outputs=outputs,
        side_outputs=tuple(side_outputs),
        side_inputs=tuple(f for f in feeders if f.op == "placeholder" or passes_through(f) or f in table.index),
        parameters=parameters,
        # Behind the sign is what tells the block from another of the same module, in an exact and a similar repeat.
        module_path=names.module_of(title.partition("#")[0], members),
        sizes={id(tensor): tensor.numel() for tensor in tensors},
    )


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
    """The non-tensors that a block makes of its values: sizes, truths, checks, decisions, updates of its buffers."""
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
        used = (bool(node.users) and node.op == "call_function") or node.target is check_condition
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
