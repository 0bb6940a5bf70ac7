"""`identity`: the block is taken out, and what went in comes out. Plain depth pruning.

    out = x

Nothing is left of the block, so this is the floor for parameters, memory and time that other surrogates are measured
against. A spine without parameters (the ReLU after a ResNet block's addition) changes nothing on a value that has just
passed the same spine in the block before; a spine with parameters (post-norm) goes with its block, as in a network that
is built without it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from repl_fx.surrogates.registry import Surrogate, register_surrogate
from repl_fx.surrogates.site import Site


@dataclass(frozen=True)
class IdentityConfig:
    """`identity` has no settings."""


@register_surrogate("identity", IdentityConfig)
class Identity(Surrogate[IdentityConfig]):
    """Depth pruning: the block's output is its input."""

    def refuse(self, site: Site) -> str | None:
        """Refuse a block whose output is unlike its input."""
        given, made = site.block.input.meta.get("val"), site.block.output.meta.get("val")
        if not isinstance(given, Tensor) or not isinstance(made, Tensor):
            return "its streamed value is no tensor"
        if str(given.shape) != str(made.shape) or given.dtype != made.dtype:
            return f"it turns {tuple(given.shape)} into {tuple(made.shape)}"
        return None

    def build(self, site: Site) -> fx.Node:
        """Let the input pass."""
        return site.input
