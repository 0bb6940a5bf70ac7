"""What surrogates ask of the branches of a block, and taking branches out."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx

from repl_fx.blocks import Block
from repl_fx.passes.split_branches import Branch


def without(branch: Branch) -> fx.Node | None:
    """What the spine adds the branch to, where it is like the sum; None where the branch cannot be left out."""
    others = [node for node in branch.join.all_input_nodes if node is not branch.root]
    if len(others) != 1 or len(branch.join.args) != 2 or branch.join.kwargs:
        return None
    ours, theirs = others[0].meta.get("val"), branch.join.meta.get("val")
    alike = isinstance(ours, Tensor) and isinstance(theirs, Tensor) and str(ours.shape) == str(theirs.shape)
    return others[0] if alike else None


def drop_branches(branches: Iterable[Branch]) -> list[tuple[fx.Node, fx.Node]]:
    """Take branches out of the spine; returns each sum, and what stands in its place."""
    made = []
    for branch in branches:
        passed = without(branch)
        assert passed is not None
        branch.join.replace_all_uses_with(passed)
        made.append((branch.join, passed))
    return made


def outputs_after(block: Block, made: Iterable[tuple[fx.Node, fx.Node]]) -> tuple[fx.Node, ...]:
    """What stands for the outputs of a block after values in it were replaced, each old one by a new, in order."""
    outputs = list(block.outputs)
    for old, new in made:
        outputs = [new if output is old else output for output in outputs]
    return tuple(outputs)


def starts_at_zero(gm: fx.GraphModule, branch: Branch, end: fx.Node) -> bool:
    """Whether a span may end in zeros: nothing behind `end` in the branch has parameters.

    A layer scale that begins near zero would learn from zeros too slowly, and a norm would blow their first change up.
    """
    behind = {end}
    for node in branch.nodes:
        if node in behind or behind.isdisjoint(node.all_input_nodes):
            continue
        behind.add(node)
        if any(feeder.op == "get_attr" for feeder in node.all_input_nodes):
            return False
        if node.op == "call_module" and any(True for _ in gm.get_submodule(str(node.target)).parameters()):
            return False
    return True
