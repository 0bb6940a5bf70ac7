"""Check that a graph keeps the contract of the normal form, and name the pass that broke it.

Set `REPL_FX_CHECK=1` to run this between passes.
Never touches: anything.
"""

from __future__ import annotations

import warnings

from torch import Tensor, fx, nn

from repl_fx.errors import BrokenGraph
from repl_fx.graph import attribute, has_effect, is_tensor
from repl_fx.leaf_calls import leaf_call_operator
from repl_fx.passes.follow_device import mentions_device

_OPS = ("placeholder", "get_attr", "call_module", "call_function", "output")


def check_graph(gm: fx.GraphModule, after: str) -> None:
    """Raise unless `gm` is in normal form.

    Args:
        gm: the graph to look at.
        after: what ran last, to be blamed.

    Raises:
        BrokenGraph: names `after`, the node and what is wrong with it.
    """
    with warnings.catch_warnings():
        # lint warns about get_attr nodes that read a mode flag, which the normal form allows.
        warnings.filterwarnings("ignore", message="Node .* does not reference an nn.Module, nn.Parameter, or buffer")
        try:
            gm.graph.lint()
        except RuntimeError as problem:
            raise BrokenGraph(f"{after}: {problem}") from problem
    for node in gm.graph.nodes:
        problem_found = _problem(gm, node)
        if problem_found:
            raise BrokenGraph(f"{after}: node {node.name}: {problem_found}")


def _problem(gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.op not in _OPS:
        return f"a {node.op} node has no place in the normal form"
    if node.target is leaf_call_operator():
        return "a leaf call was not lifted"
    if node.op in ("get_attr", "call_module"):
        try:
            found = attribute(gm, str(node.target))
        except AttributeError:
            return f"{node.target} does not exist"
        if node.op == "call_module" and not isinstance(found, nn.Module):
            return f"{node.target} is no module"
        if node.op == "get_attr" and not isinstance(found, (Tensor, bool, nn.Module)):
            return f"{node.target} is no tensor, no mode flag and no module"
    if node.op != "output" and "val" not in node.meta:
        return "it has no fake value"
    captured_on = gm.meta.get("device")
    if captured_on is not None and mentions_device(node, captured_on):
        return f"device {captured_on} is baked in"
    if node.op == "call_function" and not node.users and not has_effect(node):
        return "nothing uses it and it has no effect"
    if is_tensor(node) and node.op == "get_attr":
        kept = attribute(gm, str(node.target))
        if isinstance(kept, Tensor) and tuple(kept.shape) != tuple(node.meta["val"].shape) and kept.numel():
            return f"its fake value has shape {tuple(node.meta['val'].shape)}, {node.target} has {tuple(kept.shape)}"
    return None
