"""Questions of surrogates about the branches of a block, and taking branches out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx.finding.branches import Branch, same_shape
from repl_fx.finding.linear_operators import LinearOperator
from repl_fx.graph.bridge import digraph, reached_from
from repl_fx.graph.captured import called_module, parameters_read, share_tensors, writes_in_place
from repl_fx.graph.grouping import grouped
from repl_fx.graph.state import named_tensors
from repl_fx.running.untouched import seeded
from repl_fx.surrogates.shared.norms import find_post_norm
from repl_fx.surrogates.shared.site import Site


def without(branch: Branch) -> fx.Node | None:
    """The operand that the spine adds the branch to, if it is like the sum; None if the branch cannot be left out."""
    others = [node for node in branch.join.all_input_nodes if node is not branch.root]
    if len(others) != 1 or len(branch.join.args) != 2 or branch.join.kwargs:
        return None
    if writes_in_place(branch.join) and branch.join.args[0] is branch.root and len(branch.root.users) > 1:
        # Others read the sum where the branch was.
        return None
    return others[0] if same_shape(others[0], branch.join) else None


def by_span(branches: Iterable[Branch]) -> list[tuple[Branch, ...]]:
    """The branches that end in one span together, in program order: parts of its result may join several streams."""
    return list(map(tuple, grouped((branch.output, branch) for branch in branches).values()))


def starts_at_zero(gm: fx.GraphModule, branch: Branch, end: fx.Node) -> bool:
    """Tell whether a span may end in zeros: nothing behind `end` in the branch has parameters, or is flat at zero.

    A layer scale that begins near zero would learn from zeros too slowly, and a norm would blow their first change up.
    The result of a ReLU of zeros has no gradient at all, so nothing before it would ever learn.
    """
    behind = sorted(reached_from(digraph(branch.nodes), [end]) - {end})
    if any(parameters_read(gm, node) for node in behind):
        return False
    # Values that change with the span's where that is zero.
    lively = digraph([end, *(node for node in behind if not _flat_at_zero(gm, node))])
    return branch.root in reached_from(lively, [end])


def _flat_at_zero(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether an elementwise operator of one value has no gradient where that is zero: ReLU, a square."""
    feeders, value = node.all_input_nodes, node.meta.get("val")
    if len(feeders) != 1 or not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    module = called_module(gm, node)
    # In evaluation mode, as dropout may drop all of so few numbers.
    function: Any = node.target if module is None else share_tensors(module).eval()
    leaf = torch.zeros([2] * value.ndim, requires_grad=True, device="cpu")
    try:
        with torch.enable_grad(), seeded(leaf.device, 0):
            # Operators in place must not write to a leaf.
            given = leaf * 1.0
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: given)
            made = function(*args, **kwargs)
            if not isinstance(made, Tensor) or made.shape != leaf.shape:
                return False
            (gradient,) = torch.autograd.grad(made.sum(), leaf)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
        # A function that asks for certain sizes is no elementwise operator.
        return False
    return not bool(gradient.any())


def zero_init_norms(site: Site) -> set[fx.Node]:
    """The norms that end a branch and can start at zero."""
    gm = site.graph_module
    posts = ((branch, find_post_norm(gm, branch)) for branch in site.split.branches)
    return {post for branch, post in posts if post is not None and starts_at_zero(gm, branch, post)}


def zero_init_operators(site: Site) -> list[LinearOperator]:
    """The linear operators that end a branch and can start at zero, as no norm behind them does."""
    gm = site.graph_module
    ends = (branch for branch in site.split.branches if starts_at_zero(gm, branch, branch.output))
    return [linear for branch in ends for linear in branch.exits]


def bias_paths(site: Site, linear: LinearOperator) -> list[str]:
    """The place of the bias of a linear operator."""
    if linear.node.op == "call_module":
        return [f"{linear.node.target}.bias"]
    read = [str(feeder.target) for feeder in linear.node.all_input_nodes if feeder.op == "get_attr"]
    return [path for path in read if path != linear.weight and site.tensor(path).ndim == 1]


def silencing_parameters(site: Site) -> set[str]:
    """The parameters at the ends of a block's branches that make these zero: of a norm, or else of the last layers."""
    ends = zero_init_operators(site)
    found = {linear.weight for linear in ends if linear.weight is not None}
    found |= {path for linear in ends if linear.bias for path in bias_paths(site, linear)}
    return found.union(*(parameters_read(site.graph_module, norm) for norm in zero_init_norms(site)))


def has_no_state(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node calls a module without parameters and buffers: dropout, drop path."""
    module = called_module(gm, node)
    return module is not None and not node.kwargs and not named_tensors(module)
