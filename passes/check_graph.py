"""Check that a graph keeps the contract of the normal form, and name the pass that broke it.

With `REPL_FX_CHECK=1` the driver runs it behind each pass.
Never touches: anything.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx.errors import BrokenGraph
from repl_fx.graph.bridge import digraph, leading_to
from repl_fx.graph.captured import attribute, has_effect, is_tensor
from repl_fx.graph.notes import REPLACES, wrong_note
from repl_fx.graph.runtime import enter_autocast, leaf_call_operator
from repl_fx.graph.state import used_by
from repl_fx.surrogates.shared.synthesis import Synthesis

_OPS = ("placeholder", "get_attr", "call_module", "call_function", "output")


def check_graph(gm: fx.GraphModule, after: str) -> None:
    """Raise unless `gm` is in normal form.

    Raises:
        BrokenGraph: names `after`, the pass that ran last, the node and what is wrong with it.
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


def check_surrogates(gm: fx.GraphModule, surrogates: Mapping[str, str], gone: Mapping[str, Collection[str]]) -> None:
    """Raise unless surrogates stand in for their blocks: nothing of what they replace is read, all they make is.

    Args:
        gm: a rewritten graph, from which dead nodes are gone.
        surrogates: key of what stands in for each replaced block.
        gone: paths of parameters that nothing may read any more, by block.

    Raises:
        BrokenGraph: names the surrogate, the block and what is wrong.
    """
    read = used_by(gm).state
    for block, paths in gone.items():
        left = next((path for path in paths if path in read), None)
        if left is not None:
            raise BrokenGraph(f"{surrogates[block]} stands in for {block}, whose {left} is still read")
    # The outputs depend on these nodes, or they write somewhere, or what writes depends on them.
    ends = [n for n in gm.graph.nodes if n.op == "output" or (n.op == "call_function" and has_effect(n))]
    useful = leading_to(digraph(gm.graph.nodes), ends)
    for node in gm.graph.nodes:
        if node.op != "call_module" or not isinstance(gm.get_submodule(str(node.target)), Synthesis):
            continue
        missing = _unread(node, useful)
        if missing is not None:
            block, key = REPLACES.of(node) or ("a block", "a surrogate")
            raise BrokenGraph(f"{key} stands in for {block}, but nothing reads {missing} of {node.name}")


def mentions_device(node: fx.Node, device: torch.device) -> bool:
    """Tell whether an argument of a node, at any depth, is the literal `device`."""
    found: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda v: found.append(v) if is_device(v, device) else None)
    return bool(found) or (node.target is enter_autocast and str(node.args[0]) == device.type)


def is_device(value: Any, device: torch.device) -> bool:
    """Tell whether a literal is a device, and this one; a device without an index is any of its type."""
    if not isinstance(value, torch.device) or value.type != device.type:
        return False
    return value.index is None or device.index is None or value.index == device.index


def _unread(node: fx.Node, useful: Collection[fx.Node]) -> str | None:
    """A result of a synthesis that no useful node reads; None where all are read."""
    readers = [user for user in node.users if user in useful]
    if not readers:
        return "the result"
    made = node.meta.get("val")
    if not isinstance(made, tuple | list) or any(user.target is not operator.getitem for user in readers):
        return None
    parts = {user.args[1] for user in readers}
    return next((f"result {number}" for number in range(len(made)) if number not in parts), None)


def _problem(gm: fx.GraphModule, node: fx.Node) -> str | None:
    if node.op not in _OPS:
        return f"a {node.op} node has no place in the normal form"
    if node.target is leaf_call_operator():
        return "a leaf call was not lifted"
    found = attribute(gm, str(node.target)) if node.op == "get_attr" else None
    if node.op == "get_attr" and not isinstance(found, (Tensor, bool, nn.Module)):
        return f"{node.target} is no tensor, no mode flag and no module"
    if node.op != "output" and "val" not in node.meta:
        return "it has no fake value"
    captured_on = gm.meta.get("device")
    if captured_on is not None and mentions_device(node, captured_on):
        return f"device {captured_on} is baked in"
    if node.op == "call_function" and not node.users and not has_effect(node):
        return "nothing uses it and it has no effect"
    if is_tensor(node) and isinstance(found, Tensor) and found.shape != node.meta["val"].shape and found.numel():
        return f"its fake value has shape {tuple(node.meta['val'].shape)}, {node.target} has {tuple(found.shape)}"
    return wrong_note(node)
