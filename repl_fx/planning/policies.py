"""Policies: which surrogates may stand in for a block, and which of them a budget may take.

A policy is named and set as a surrogate is (`--surrogate auto`). Plans hold the surrogates that it chose, not itself.
Any surrogate alone is the policy that takes it for each block (`Policy`). Those that choose do it by results that were
measured:

    auto       from scratch (docs/results.md): `coarse` where the block attends to all of a fixed number of positions,
               `reuse` where it has another self-attention, `slim` where it works on pictures with channels first and
               can be had at another width, `bottleneck` where it has a spine with other branches, `blend` elsewhere
    trained    of a trained network (docs/trained.md): `narrow` with as many hidden units as a budget allows. Where no
               plan with `narrow` is under the budget, some blocks go by `linear`, as few and as little worth as can be,
               and others keep a half or a quarter of their units; in the last resort an eighth. Blocks without units
               that any of them can go of get `linear` too
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repl_fx.surrogates import Site, Surrogate, known_surrogates, make_surrogate, register_surrogate
from repl_fx.surrogates.blend import Blend, BlendConfig
from repl_fx.surrogates.bottleneck import Bottleneck, BottleneckConfig
from repl_fx.surrogates.coarse import Coarse, CoarseConfig, streams_sequence
from repl_fx.surrogates.linear import Linear, LinearConfig
from repl_fx.surrogates.narrow import Narrow, NarrowConfig
from repl_fx.surrogates.reuse import Reuse, ReuseConfig
from repl_fx.surrogates.shared.surrogate import Traits
from repl_fx.surrogates.slim import Slim, SlimConfig

__all__ = ["Auto", "AutoConfig", "Mix", "Policy", "Trained", "TrainedConfig", "known_surrogates", "policy_of"]

# The shares of hidden units among which a plan chooses that has maps too; more of them cost a search time, and the maps
# are most of what is lost.
_BESIDE_MAPS = (0.5, 0.25)


class Policy:
    """The choice of some surrogates, most preferred first.

    Args:
        candidates: the surrogates.
        traits: those by which blocks are chosen for them.
    """

    def __init__(self, candidates: tuple[Surrogate[Any, Any], ...], traits: Traits) -> None:
        self.candidates, self.traits = candidates, traits

    def choices(self, site: Site) -> tuple[Surrogate[Any, Any], ...]:
        """The surrogates that may stand in for a block, most preferred first."""
        return self.candidates

    def forms(self) -> tuple[Mix, ...]:
        """The forms of it that a budget takes the first of that it can meet; what one can meet, those behind it can.

        A form is one policy, or several, of which each block gets one.
        """
        return ((self,),)


# Policies of which each block gets one.
Mix = tuple[Policy, ...]


class _Only(Policy):
    """The policy of one surrogate."""

    def __init__(self, surrogate: Surrogate[Any, Any]) -> None:
        super().__init__((surrogate,), surrogate.traits)

    def forms(self) -> tuple[Mix, ...]:
        """See `Surrogate.sizes`."""
        return tuple((_Only(size),) for size in self.candidates[0].sizes())


def policy_of(key: str, settings: Mapping[str, Any] | None = None) -> Policy:
    """The policy of this key, with settings.

    Raises:
        UnknownSurrogate, BadInput: see `make_surrogate`.
    """
    made: Any = make_surrogate(key, settings)
    return made if isinstance(made, Policy) else _Only(made)


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


@register_surrogate("auto", AutoConfig)
class Auto(Policy):
    """Chooses for each block."""

    def __init__(self, config: AutoConfig) -> None:
        shared: Any = {"train_neighbours": config.train_neighbours, "weights": config.weights}
        if config.ratio is not None:
            shared["ratio"] = config.ratio
        candidates = (
            Coarse(CoarseConfig(**shared)),
            Reuse(ReuseConfig(heads=config.heads, **shared)),
            Slim(SlimConfig(width=config.width, **shared)),
            Bottleneck(BottleneckConfig(width=config.width, **shared)),
            Blend(BlendConfig(config.per, config.train_neighbours)),
        )
        super().__init__(candidates, Traits())

    def choices(self, site: Site) -> tuple[Surrogate[Any, Any], ...]:
        """All of them; on pictures `slim` did as well as `coarse`, and costs less."""
        return self.candidates if streams_sequence(site) else self.candidates[1:]


@dataclass(frozen=True)
class TrainedConfig:
    """Settings of `trained`.

    Attributes:
        ratio: see `narrow`.
    """

    ratio: float | None = None


@register_surrogate("trained", TrainedConfig)
class Trained(Policy):
    """Chooses for each block, and under a budget for all."""

    def __init__(self, config: TrainedConfig) -> None:
        self.ratio = config.ratio
        super().__init__((Narrow(NarrowConfig(config.ratio)), Linear(LinearConfig())), Traits("block"))

    def forms(self) -> tuple[Mix, ...]:
        """Blocks with fewer and fewer hidden units, then maps in the place of some, and then of all.

        Plans with maps alone are no lighter, but fewer, where those with both are too many to choose from.
        """
        narrow, linear = map(_Only, self.candidates)
        alone = narrow.forms()
        if self.ratio:
            return *alone, (narrow, linear), (linear,)
        beside = (_Only(Narrow(NarrowConfig(ratio))) for ratio in _BESIDE_MAPS)
        return *alone, (*beside, linear), (*alone[-1], linear), (linear,)
