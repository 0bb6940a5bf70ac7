"""`identity`: the block is taken out, and what went in comes out. Plain depth pruning.

    out = x

Nothing is left of the block, so this is the floor for parameters, memory and time that other surrogates are measured
against. A spine without parameters (the ReLU after a ResNet block's addition) changes nothing on a value that has just
passed the same spine in the block before; a spine with parameters (post-norm) goes with its block, as in a network that
is built without it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, fx

from repl_fx.surrogates.shared.registry import Surrogate, register_surrogate
from repl_fx.surrogates.shared.site import Site


@dataclass(frozen=True)
class IdentityConfig:
    """`identity` has no settings."""


@register_surrogate("identity", IdentityConfig)
class Identity(Surrogate[IdentityConfig]):
    """Depth pruning: the block's output is its input."""

    def refuse(self, site: Site) -> str | None:
        """Refuse a block whose output is unlike its input."""
        for given, made in zip(site.block.inputs, site.block.outputs, strict=True):
            ours, theirs = given.meta.get("val"), made.meta.get("val")
            if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
                return "its streamed value is no tensor"
            if str(ours.shape) != str(theirs.shape) or ours.dtype != theirs.dtype:
                return f"it turns {tuple(ours.shape)} into {tuple(theirs.shape)}"
        return None

    def kept_parameters(self, site: Site) -> Collection[str]:
        """None: all of the block goes."""
        return ()

    def build(self, site: Site) -> tuple[fx.Node, ...]:
        """Let the inputs pass."""
        return site.inputs
