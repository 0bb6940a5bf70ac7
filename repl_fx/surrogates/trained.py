"""`trained`: for each block of a trained network the surrogate that did best where it was measured (docs/trained.md).

`narrow` with as many hidden units as a budget allows. Where no plan with `narrow` is under the budget, some blocks go
by `linear`, as few and as little worth as can be, and others keep a half or a quarter of their units; in the last
resort an eighth. Blocks without units that any of them can go of get `linear` too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from repl_fx.surrogates.linear import Linear, LinearConfig
from repl_fx.surrogates.narrow import Narrow, NarrowConfig
from repl_fx.surrogates.shared.choosing import Choosing
from repl_fx.surrogates.shared.registry import Mix, Surrogate, register_surrogate
from repl_fx.surrogates.shared.site import Site

# The shares of hidden units among which a plan chooses that has maps too; more of them cost a search time, and the maps
# are most of what is lost.
_BESIDE_MAPS = (0.5, 0.25)


@dataclass(frozen=True)
class TrainedConfig:
    """Settings of `trained`.

    Attributes:
        ratio: see `narrow`.
    """

    ratio: float | None = None

    def __post_init__(self) -> None:
        # The check of the setting.
        self.candidates()

    def candidates(self) -> tuple[Surrogate[Any, Any], ...]:
        """The surrogates to choose from, most preferred first."""
        return Narrow(NarrowConfig(self.ratio)), Linear(LinearConfig())


@register_surrogate("trained", TrainedConfig)
class Trained(Choosing[TrainedConfig]):
    """Chooses for each block, and under a budget for all."""

    stands_alone = True

    def choices(self, site: Site) -> tuple[Surrogate[Any, Any], ...]:
        """The surrogates to choose from, most preferred first."""
        return self.config.candidates()

    def under_budget(self) -> tuple[Mix, ...]:
        """Blocks with fewer and fewer hidden units, then maps in the place of some, and then of all.

        Plans with maps alone are no lighter, but fewer, where those with both are too many to choose from.
        """
        narrow, linear = self.config.candidates()
        alone = narrow.under_budget()
        if self.config.ratio:
            return *alone, (narrow, linear), (linear,)
        beside = (Narrow(NarrowConfig(ratio)) for ratio in _BESIDE_MAPS)
        return *alone, (*beside, linear), (*alone[-1], linear), (linear,)
