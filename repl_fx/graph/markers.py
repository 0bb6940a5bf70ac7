"""Operators that stand for something else while a graph is made, and are in no finished one."""

from __future__ import annotations

from typing import Any

import torch


def leaf_call_operator() -> Any:
    """The operator that stands for a leaf call in a traced graph."""
    return torch.ops.repl_fx.leaf_call.default
