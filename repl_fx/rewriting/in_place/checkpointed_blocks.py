"""Activation checkpoints around the kept blocks of a model in place."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from repl_fx.rewriting.in_place.wrapped_forward import WrappedForward


class CheckpointedForward(WrappedForward):
    """The forward of a block that is computed again in the backward pass, in place of keeping its inner values.

    Hooks on the block run once. Where nothing is learned, the forward runs as it is.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.module.training or not torch.is_grad_enabled():
            return self.run(*args, **kwargs)
        return checkpoint(self.run, *args, use_reentrant=False, **kwargs)
