"""`auto`: for each block the surrogate that did best where it was measured (docs/results.md).

`coarse` where the block attends to all of a fixed number of positions, `reuse` where it has another self-attention,
`slim` where it works on pictures with channels first and can be had at another width, `bottleneck` where it has a spine
with other branches, `blend` elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from repl_fx.surrogates.blend import Blend, BlendConfig
from repl_fx.surrogates.bottleneck import Bottleneck, BottleneckConfig
from repl_fx.surrogates.coarse import Coarse, CoarseConfig, streams_sequence
from repl_fx.surrogates.reuse import Reuse, ReuseConfig
from repl_fx.surrogates.shared.choosing import Choosing
from repl_fx.surrogates.shared.registry import Surrogate, register_surrogate
from repl_fx.surrogates.shared.site import Site
from repl_fx.surrogates.slim import Slim, SlimConfig


@dataclass(frozen=True)
class AutoConfig:
    """Settings of `auto`: those of the surrogates it chooses from.

    Attributes:
        ratio: see `coarse`, `reuse`, `slim` and `bottleneck`; None for the default of each.
        heads: see `reuse`.
        width: see `slim` and `bottleneck`.
        per: see `blend`.
        train_neighbours: whether gradients flow into the neighbours' weights.
        weights: see `coarse`, `reuse`, `slim` and `bottleneck`; `blend` has no weights of its own.
    """

    ratio: float | None = None
    heads: int | None = None
    width: int | None = None
    per: str = "channel"
    train_neighbours: bool = True
    weights: str = "neighbours"

    def __post_init__(self) -> None:
        # Their own checks of the settings.
        self.candidates()

    def candidates(self) -> tuple[Surrogate[Any, Any], ...]:
        """The surrogates to choose from, most preferred first."""
        shared: Any = {"train_neighbours": self.train_neighbours, "weights": self.weights}
        if self.ratio is not None:
            shared["ratio"] = self.ratio
        return (
            Coarse(CoarseConfig(**shared)),
            Reuse(ReuseConfig(heads=self.heads, **shared)),
            Slim(SlimConfig(width=self.width, **shared)),
            Bottleneck(BottleneckConfig(width=self.width, **shared)),
            Blend(BlendConfig(self.per, self.train_neighbours)),
        )


@register_surrogate("auto", AutoConfig)
class Auto(Choosing[AutoConfig]):
    """Chooses for each block."""

    def choices(self, site: Site) -> tuple[Surrogate[Any, Any], ...]:
        """The surrogates to choose from, most preferred first."""
        # On pictures `slim` did as well as `coarse`, and costs less.
        return tuple(c for c in self.config.candidates() if not isinstance(c, Coarse) or streams_sequence(site))
