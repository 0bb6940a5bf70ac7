"""Values of a block that the model returns besides its result: keys and values for a cache, attention maps.

They are of the block that computes them; where it is replaced by something that has none, the model returns None in
their places.
"""

from __future__ import annotations

import operator
from collections.abc import Set

from torch import fx

from repl_fx.finding.blocks import Block
from repl_fx.graph.runtime import ModeSwitch, select_mode
from repl_fx.graph.signature import PackOutput


def only_returned(value: fx.Node, block: Block) -> bool:
    """Tell whether an inner value of a block is used outside it for the results of the model alone, in either mode."""
    outside = [user for user in value.users if user not in block.node_set]
    return bool(outside) and all(_returns(user, value) for user in outside)


def return_none_(value: fx.Node, inside: Set[fx.Node]) -> None:
    """Let the model return None where it returned `value`, of the block of nodes `inside`; in place."""
    for user in list(value.users):
        if user not in inside and _returns(user, value):
            user.args = fx.node.map_arg(user.args, lambda node: None if node is value else node)


def _returns(node: fx.Node, value: fx.Node) -> bool:
    """Tell whether a user of a value does nothing with it but return it, or what holds it."""
    if node.op == "output":
        return True
    if node.target is select_mode:
        hands_on = value is not node.args[0]
    else:
        hands_on = isinstance(node.target, PackOutput) or node.target is operator.getitem or _packs(node, value)
    return hands_on and all(_returns(user, node) for user in node.users)


def _packs(node: fx.Node, value: fx.Node) -> bool:
    """Tell whether a node is a switch between the modes whose versions return a value, or do not use it."""
    owner = node.graph.owning_module
    switch = owner.get_submodule(str(node.target)) if node.op == "call_module" and owner is not None else None
    if not isinstance(switch, ModeSwitch):
        return False
    places = [i for i, given in enumerate(node.args) if given is value]
    for version in switch.versions:
        inputs = [n for n in version.graph.nodes if n.op == "placeholder"]
        if not all(_returns(user, inputs[i]) for i in places for user in inputs[i].users):
            return False
    return True
