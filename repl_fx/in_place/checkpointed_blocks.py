"""Activation checkpoints around the kept blocks of a model in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from repl_fx.graph.captured import RefersToModules


class CheckpointedForward(RefersToModules):
    """The forward of a block that is computed again in the backward pass, in place of keeping its inner values.

    Hooks on the block are outside of it, and run once. Where nothing is learned, the forward runs as it is.

    Args:
        module: the block.
    """

    def __init__(self, module: nn.Module) -> None:
        # A forward that someone else has put there goes on.
        self.own: Callable[..., Any] | None = vars(module).get("forward")
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.module.training or not torch.is_grad_enabled():
            return self._run(*args, **kwargs)
        return checkpoint(self._run, *args, use_reentrant=False, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return self.own(*args, **kwargs) if self.own else type(self.module).forward(self.module, *args, **kwargs)


def checkpoint_block(module: nn.Module) -> None:
    """Let a block be checkpointed in training from now on."""
    forward = CheckpointedForward(module)
    # The signature is that of the module's own forward.
    update_wrapper(forward, module.forward, updated=())
    module.__dict__["forward"] = forward
