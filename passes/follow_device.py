"""Let constants follow the module when it moves to another device.

    before   aten.arange(n, device=cpu)
    after    get_attr device_anchor -> getattr(_, "device") -> aten.arange(n, device=_)

Needs: a graph captured on one device.
The anchor is an empty buffer that is not saved; `.to()` moves it with the parameters. Reading the device of a parameter
instead would keep that parameter alive after its block is replaced.
Never touches: devices other than the one the model was captured on, which the model names on purpose.
"""

from __future__ import annotations

import torch
from torch import fx

from repl_fx.graph.runtime import enter_autocast
from repl_fx.passes.check_graph import is_device, mentions_device
from repl_fx.passes.driver import Result

ANCHOR = "device_anchor"


def is_anchor(name: str) -> bool:
    """Tell whether a buffer is the anchor of a graph, by its path."""
    return name.rpartition(".")[2] == ANCHOR


def follow_device_(gm: fx.GraphModule, device: torch.device) -> Result:
    """Replace every literal of the capture device by a read of where the module is now.

    Args:
        gm: changed in place; gets the anchor when one is needed, and keeps the device in its `meta`, so that
            `check_graph` finds what still names it.
        device: where the model and its inputs were when they were captured.

    Returns:
        The graph, with the names of the nodes that named the device.
    """
    graph = gm.graph
    gm.meta["device"] = device
    constants = [n for n in graph.nodes if n.op == "call_function" and mentions_device(n, device)]
    if not constants:
        return Result(gm)
    gm.register_buffer(ANCHOR, torch.empty(0, device=device), persistent=False)
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        anchor = graph.create_node("get_attr", ANCHOR)
        anchor.meta["val"] = torch.empty(0, device="meta")
        here = graph.call_function(getattr, (anchor, "device"))
        here.meta["val"] = device
        kind = graph.call_function(getattr, (here, "type"))
        kind.meta["val"] = device.type
    for node in constants:
        given = fx.node.map_aggregate((node.args, node.kwargs), lambda v: here if is_device(v, device) else v)
        node.args, node.kwargs = given
        if node.target is enter_autocast and node.args[0] == device.type:
            node.update_arg(0, kind)
    if not kind.users:
        graph.erase_node(kind)
    return Result(gm, tuple(node.name for node in constants))
