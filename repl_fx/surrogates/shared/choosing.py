"""Surrogates that choose another one for each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from repl_fx.plan import Refusal
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.registry import Config, Match, Surrogate
from repl_fx.surrogates.shared.site import Site


@dataclass(frozen=True)
class ChosenMatch(Match):
    """The first candidate that fits, with its match."""

    surrogate: Surrogate[Any, Any]
    found: Match


class Choosing(Surrogate[Config, ChosenMatch]):
    """Takes the first of its `choices` that fits; plans hold what it chose, not itself."""

    def match(self, site: Site) -> ChosenMatch | Refusal:
        """Refuse what every candidate refuses."""
        refusals = []
        for candidate in self.choices(site):
            found = candidate.match(site)
            if isinstance(found, Match):
                return ChosenMatch(candidate, found, kept_parameters=found.kept_parameters)
            refusals.append(found)
        return refusals[-1]

    def build(self, site: Builder, match: ChosenMatch) -> tuple[fx.Node, ...]:
        """Build what was chosen."""
        return match.surrogate.build(site, match.found)
