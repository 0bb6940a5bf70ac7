"""Write the channels that a slim block makes into the stream, instead of copying the stream.

    before   t -> relu -> x; split_with_sizes(x) -> s, q; s -> … -> add -> relu -> p; cat(p, q) -> y
    after    t -> take_channels -> t, s; s -> … -> add -> p; put_channels(t, p) -> y

and likewise where no ReLU follows the additions. One value of full size and the passes over it, forward and backward,
are saved for each slim block.

Needs: the concatenations that `repl_fx.surrogates.slim` makes.
Never touches: a stream that anything else reads, or that does not come from an addition, whose backward pass needs it
not.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx, nn

from repl_fx.graph.captured import writes_in_place
from repl_fx.graph.notes import REPLACES
from repl_fx.graph.roles import ADDITIONS, MULTIPLICATIONS, RELUS
from repl_fx.passes.driver import Result
from repl_fx.surrogates.shared.channels import put_channels, take_channels

_SPLIT, _CAT = torch.ops.aten.split_with_sizes.default, torch.ops.aten.cat.default


@dataclass(frozen=True)
class _Slice:
    """A concatenation that can go.

    Attributes:
        made: the concatenation.
        stream, total: the value that is split, and the sum that it comes from: itself, or the input of its ReLU.
        split, taken, rest: the node that splits it, and the two slices.
        new: the value in the place of the first slice, before its own ReLU.
    """

    made: fx.Node
    stream: fx.Node
    total: fx.Node
    split: fx.Node
    taken: fx.Node
    rest: fx.Node
    new: fx.Node


def write_in_place_(gm: fx.GraphModule) -> Result:
    """Let slim blocks write into the stream where nothing else reads it.

    Args:
        gm: a rewritten graph, changed in place.

    Returns:
        The graph, with the names of the concatenations that are gone.
    """
    names = []
    for node in gm.graph.find_nodes(op="call_function", target=_CAT):
        found = _slice(gm, node)
        if found is not None:
            names.append(node.name)
            _write(gm, found)
    return Result(gm, tuple(names))


def _slice(gm: fx.GraphModule, node: fx.Node) -> _Slice | None:
    if REPLACES.of(node) is None or len(node.all_input_nodes) != 2:
        return None
    new, rest = node.all_input_nodes
    split = rest.args[0]
    if rest.target is not operator.getitem or not isinstance(split, fx.Node) or split.target is not _SPLIT:
        return None
    stream, taken = split.all_input_nodes[0], next(user for user in split.users if user is not rest)
    if len(stream.users) > 1 or len(rest.users) > 1:
        return None
    total = stream
    if _is_relu(gm, stream):
        total = stream.all_input_nodes[0]
        if len(total.users) > 1 or not _is_relu(gm, new) or len(new.users) > 1:
            return None
        new = new.all_input_nodes[0]
    return _Slice(node, stream, total, split, taken, rest, new) if _is_owned_sum(gm, total) else None


def _write(gm: fx.GraphModule, found: _Slice) -> None:
    relu = found.stream is not found.total
    values = found.stream.meta["val"], found.taken.meta["val"]
    with gm.graph.inserting_before(found.taken):
        both = gm.graph.call_function(take_channels, (found.total, found.taken.meta["val"].shape[1], relu))
        total, part = (gm.graph.call_function(operator.getitem, (both, i)) for i in range(2))
    with gm.graph.inserting_before(found.made):
        put = gm.graph.call_function(put_channels, (total, found.new, relu))
    for node, value in ((both, values), (total, values[0]), (part, values[1]), (put, values[0])):
        node.meta.update(found.made.meta)
        node.meta["val"] = value
    found.taken.replace_all_uses_with(part, propagate_meta=False)
    old = found.made.all_input_nodes[0]
    found.made.replace_all_uses_with(put, propagate_meta=False)
    gone = [found.made, found.rest, found.taken, found.split, *([old, found.stream] if relu else [])]
    for node in gone:
        gm.graph.erase_node(node)


def _is_relu(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        return type(module) is nn.ReLU and not module._forward_hooks and not module._forward_pre_hooks
    return node.op == "call_function" and node.target in RELUS


def _is_owned_sum(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a value is the result of an addition that has its memory for itself."""
    if node.target not in ADDITIONS:
        return False
    if not writes_in_place(node):
        return True
    given = node.args[0]
    return isinstance(given, fx.Node) and len(given.users) == 1 and _is_fresh(gm, given)


def _is_fresh(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a value has memory of its own: modules without state may hand on what they were given."""
    if node.op == "call_module":
        if any(True for _ in gm.get_submodule(str(node.target)).parameters()):
            return True
        feeders = node.all_input_nodes
        return len(feeders) == 1 and len(feeders[0].users) == 1 and _is_fresh(gm, feeders[0])
    return node.op == "call_function" and node.target in MULTIPLICATIONS
