"""Let constants follow the module when it moves to another device.

    before   aten.arange(n, device=cpu)
    after    get_attr device_anchor -> getattr(_, "device") -> aten.arange(n, device=_)

Needs: a graph captured on one device.
The anchor is an empty buffer that is not saved; `.to()` moves it with the parameters. Reading the device of a parameter
instead would keep that parameter alive after its block is replaced.
Never touches: devices other than the one the model was captured on, which the model names on purpose.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from repl_fx.graph.runtime import enter_autocast

ANCHOR = "device_anchor"


def follow_device_(graph: fx.Graph, root: nn.Module, device: torch.device) -> int:
    """Replace every literal of the capture device by a read of where the module is now.

    Args:
        graph: changed in place.
        root: the module tree it refers to; gets the anchor when one is needed.
        device: where the model and its inputs were when they were captured.

    Returns:
        How many nodes follow the module now.
    """
    constants = [n for n in graph.nodes if n.op == "call_function" and mentions_device(n, device)]
    if not constants:
        return 0
    root.register_buffer(ANCHOR, torch.empty(0, device=device), persistent=False)
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        anchor = graph.create_node("get_attr", ANCHOR)
        anchor.meta["val"] = torch.empty(0, device="meta")
        here = graph.call_function(getattr, (anchor, "device"))
        here.meta["val"] = device
        kind = graph.call_function(getattr, (here, "type"))
        kind.meta["val"] = device.type
    for node in constants:

        def follow(value: Any, node: fx.Node = node) -> Any:
            if _is_here(value, device):
                return here
            return kind if node.target is enter_autocast and value == device.type else value

        node.args = fx.node.map_aggregate(node.args, follow)
        node.kwargs = fx.node.map_aggregate(node.kwargs, follow)
    if not kind.users:
        graph.erase_node(kind)
    return len(constants)


def mentions_device(node: fx.Node, device: torch.device) -> bool:
    """Whether an argument of a node, at any depth, is the literal `device`."""
    found: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda v: found.append(v) if _is_here(v, device) else None)
    return bool(found) or (node.target is enter_autocast and node.args[0] == device.type)


def _is_here(value: Any, device: torch.device) -> bool:
    if not isinstance(value, torch.device) or value.type != device.type:
        return False
    return value.index is None or device.index is None or value.index == device.index
