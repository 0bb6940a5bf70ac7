"""Depth pruning by hand: what `identity` must be equal to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tests.attack.blocks import Block, Branch


class Passed(nn.Module):
    """What stands where a block was: its stream goes through."""

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        return x


def prune(model: nn.Module, paths: Sequence[str | None]) -> nn.Module | None:
    """Take modules out of a fresh network.

    Returns:
        The network without them; None where one of them is no module, holds more than residual branches, or has
        hooks, so that something of it would stay.
    """
    for path in paths:
        module = None if path is None else model.get_submodule(path)
        if path is None or not isinstance(module, (Block, Branch)) or not module.prunable:
            return None
        if any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in module.modules()
        ):
            return None
        model.set_submodule(path, Passed())
    return model
