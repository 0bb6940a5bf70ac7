"""Call a leaf module on state that comes from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.graph.captured import share_tensors


class FunctionalModule(nn.Module):
    """A module whose parameters and buffers are arguments.

    The module's own code runs, so whatever it does with its weights (standardise or mask them, drop some in training,
    run an LSTM's kernel on them) it does with the given ones, in either mode.

    Args:
        module: a leaf module; a copy without state is kept.
        names: the parameters and buffers that `forward` is given, in order.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.module = share_tensors(module)
        for state in (self.module._parameters, self.module._buffers):
            state.update(dict.fromkeys(state))
        if isinstance(self.module, nn.RNNBase):
            # A list of the weights beside the weights.
            self.module._flat_weights = [None] * len(self.module._flat_weights)

    def forward(self, *values: Any, **kwargs: Any) -> Any:
        """State, in the order of `names`, and then the module's own arguments."""
        state: dict[str, Tensor] = dict(zip(self.names, values, strict=False))
        before = dict(vars(self.module))
        if isinstance(self.module, nn.RNNBase):
            # The forward lists its weights anew when they are not those it refers to.
            vars(self.module)["_flat_weight_refs"] = [_nothing] * len(self.module._flat_weights)
        try:
            return torch.func.functional_call(self.module, state, values[len(self.names) :], kwargs)
        finally:
            # Some modules keep what they computed from their weights; that must not outlive the call.
            for name in vars(self.module).keys() - before.keys():
                del self.module.__dict__[name]
            self.module.__dict__.update(before)


def _nothing() -> None:
    """A weak reference to no weight."""
