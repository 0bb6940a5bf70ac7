"""Surrogates that choose another one: the first that fits, with its match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from repl_fx.plan import Refusal
from repl_fx.surrogates.identity import Identity, IdentityConfig
from repl_fx.surrogates.shared.choosing import Choosing, ChosenMatch
from repl_fx.surrogates.shared.registry import Match, Surrogate
from repl_fx.surrogates.shared.site import Site
from tests.sites import layer_site


@dataclass(frozen=True)
class _Config:
    """How many refuse before one fits."""

    refusing: int
    fits: bool = True


class _Never(Identity):
    def match(self, site: Site) -> Match | Refusal:
        return site.refusal("refused by one")


class _First(Choosing[_Config]):
    def choices(self, site: Site) -> tuple[Surrogate[Any, Any], ...]:
        never = tuple(_Never(IdentityConfig()) for _ in range(self.config.refusing))
        return (*never, Identity(IdentityConfig())) if self.config.fits else never


def test_the_first_that_fits_is_chosen() -> None:
    site = layer_site(8)
    for refusing in range(3):
        found = _First(_Config(refusing)).match(site)
        assert isinstance(found, ChosenMatch) and type(found.surrogate) is Identity
        assert found.kept_parameters == found.found.kept_parameters == ()


def test_what_all_refuse_is_refused() -> None:
    found = _First(_Config(2, fits=False)).match(layer_site(8))
    assert isinstance(found, Refusal) and found.reason == "refused by one"
