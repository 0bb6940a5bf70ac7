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

from repl_fx.plan import Refusal
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.site import Site
from repl_fx.surrogates.shared.surrogate import Match, Surrogate, Traits, register_surrogate


@dataclass(frozen=True)
class IdentityConfig:
    """Settings of `identity`, which plans make.

    Attributes:
        in_stretch: whether the map of a block behind stands for this one too, and takes what it took: sizes may change.
    """

    in_stretch: bool = False


@register_surrogate("identity", IdentityConfig)
class Identity(Surrogate[IdentityConfig, Match]):
    """Depth pruning: the block's output is its input."""

    traits = Traits("nothing", reads_stream_alone=True)

    def match(self, site: Site) -> Match | Refusal:
        """Refuse a block whose output is unlike its input."""
        for given, made in zip(site.block.inputs, site.block.outputs, strict=True):
            ours, theirs = given.meta.get("val"), made.meta.get("val")
            if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
                return site.refusal("its streamed value is no tensor", made)
            changed = str(ours.shape) != str(theirs.shape) and not self.config.in_stretch
            if changed or ours.dtype != theirs.dtype:
                return site.refusal(f"it turns {tuple(ours.shape)} into {tuple(theirs.shape)}", made)
        return Match(kept_parameters=())

    def build(self, site: Builder, match: Match) -> tuple[fx.Node, ...]:
        """Let the inputs pass."""
        return site.block.inputs
