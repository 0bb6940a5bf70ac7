"""Nodes that name the device a model was captured on."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from repl_fx.graph.runtime import enter_autocast


def mentions_device(node: fx.Node, device: torch.device) -> bool:
    """Whether an argument of a node, at any depth, is the literal `device`."""
    found: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda v: found.append(v) if is_device(v, device) else None)
    return bool(found) or (node.target is enter_autocast and node.args[0] == device.type)


def is_device(value: Any, device: torch.device) -> bool:
    """Whether a literal is a device, and this one; a device without an index is any of its type."""
    if not isinstance(value, torch.device) or value.type != device.type:
        return False
    return value.index is None or device.index is None or value.index == device.index
