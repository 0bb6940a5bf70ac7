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

import torch
from torch import fx, nn

from repl_fx.graph.captured import writes_in_place
from repl_fx.graph.notes import REPLACES
from repl_fx.graph.roles import ADDITIONS, MULTIPLICATIONS, RELUS
from repl_fx.passes.driver import Result
from repl_fx.surrogates.shared.channels import put_channels, take_channels

_SPLIT, _CAT = torch.ops.aten.split_with_sizes.default, torch.ops.aten.cat.default


def write_in_place_(gm: fx.GraphModule) -> Result:
    """Let slim blocks write into the stream where nothing else reads it.

    Args:
        gm: a rewritten graph, changed in place.

    Returns:
        The graph, with the names of the concatenations that are gone.
    """
    made = gm.graph.find_nodes(op="call_function", target=_CAT)
    return Result(gm, tuple(node.name for node in made if _write_in_place(gm, node)))


def _write_in_place(gm: fx.GraphModule, made: fx.Node) -> bool:
    """Take a concatenation out of the graph; tell whether it was one that can go."""
    joined = _joined(made)
    if joined is None:
        return False
    new, rest, split = joined
    stream, taken = split.all_input_nodes[0], next(user for user in split.users if user is not rest)
    if len(stream.users) > 1 or len(rest.users) > 1:
        return False
    gone = [made, rest, taken, split]
    # The sum that the stream comes from: itself, or the input of its ReLU; likewise of the new value.
    total, relu = stream, _is_relu(gm, stream)
    if relu:
        total = stream.all_input_nodes[0]
        if len(total.users) > 1 or not _is_relu(gm, new) or len(new.users) > 1:
            return False
        gone += [new, stream]
        new = new.all_input_nodes[0]
    if not _is_owned_sum(gm, total):
        return False
    whole, first = stream.meta["val"], taken.meta["val"]
    with gm.graph.inserting_before(taken):
        both = gm.graph.call_function(take_channels, (total, first.shape[1], relu))
        kept, part = (gm.graph.call_function(operator.getitem, (both, i)) for i in range(2))
    with gm.graph.inserting_before(made):
        put = gm.graph.call_function(put_channels, (kept, new, relu))
    for node, value in ((both, (whole, first)), (kept, whole), (part, first), (put, whole)):
        node.meta.update(made.meta)
        node.meta["val"] = value
    taken.replace_all_uses_with(part, propagate_meta=False)
    made.replace_all_uses_with(put, propagate_meta=False)
    for node in gone:
        gm.graph.erase_node(node)
    return True


def _joined(made: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """The value that a concatenation puts in the place of a slice, the other slice, and the node that made both."""
    if REPLACES.of(made) is None or len(made.all_input_nodes) != 2:
        return None
    new, rest = made.all_input_nodes
    split = rest.args[0]
    if rest.target is not operator.getitem or not isinstance(split, fx.Node) or split.target is not _SPLIT:
        return None
    return new, rest, split


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
