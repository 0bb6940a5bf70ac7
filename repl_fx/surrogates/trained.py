"""`trained`: for each block of a trained network the surrogate that did best where it was measured (docs/trained.md).

`narrow` with as many hidden units as a budget allows; `linear` where no plan with `narrow` is under the budget, and for
blocks without units that any of them can go of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from repl_fx.surrogates.linear import Linear, LinearConfig
from repl_fx.surrogates.narrow import Narrow, NarrowConfig
from repl_fx.surrogates.shared.choosing import Choosing
from repl_fx.surrogates.shared.registry import Surrogate, register_surrogate
from repl_fx.surrogates.shared.site import Site


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

    def choices(self, site: Site) -> tuple[Surrogate[Any, Any], ...]:
        """The surrogates to choose from, most preferred first."""
        return self.config.candidates()

    def under_budget(self) -> tuple[Surrogate[Any, Any], ...]:
        """Blocks with fewer and fewer hidden units, and then maps in the place of blocks."""
        return tuple(form for candidate in self.config.candidates() for form in candidate.under_budget())
