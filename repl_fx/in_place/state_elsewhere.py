"""State of the rest of the model, read by a surrogate that stands in the model's own tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from repl_fx.graph.captured import attribute


class StateElsewhere(nn.Module):
    """Reads parameters, buffers and mode flags of the whole model at each call, none of which it owns.

    They are looked up by path each time, so that the values are those of now: after a swap of tensors
    (`torch.func.functional_call`), of modules (a wrapper around a block), or of the model's precision.

    Args:
        paths: in the model.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__()
        self.paths = tuple(paths)
        # In a tuple, for a module as an attribute would be registered, and the model would contain itself.
        self._model: tuple[nn.Module, ...] = ()

    def belong_to(self, model: nn.Module) -> None:
        """Read from this model from now on."""
        self._model = (model,)

    def forward(self) -> tuple[Any, ...]:
        """The values, in the order of the paths."""
        return tuple(attribute(self._model[0], path) for path in self.paths)
