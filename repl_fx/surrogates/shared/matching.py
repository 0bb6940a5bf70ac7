"""The matches of surrogates and the blocks of one graph; a surrogate is asked once about each block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from repl_fx.arguments import require_kind
from repl_fx.errors import PlanMismatch
from repl_fx.finding.blocks import Block, Repeat
from repl_fx.plan import Refusal
from repl_fx.surrogates.shared.site import Site
from repl_fx.surrogates.shared.surrogate import Match, Surrogate


class Matches:
    """The sites of a graph with these repeats, and what surrogates answered there.

    Args:
        prefix: before the names of its blocks, such as "backbone." for those of a part of a model.
    """

    def __init__(self, graph_module: fx.GraphModule, repeats: Sequence[Repeat], prefix: str = "") -> None:
        self.graph_module = graph_module
        self._blocks = {f"{prefix}{block.name}": (block, repeat) for repeat in repeats for block in repeat.blocks}
        self._sites: dict[tuple[str, ...], Site] = {}
        self._answers: dict[tuple[Site, str, str], Match | Refusal] = {}

    def block(self, name: str) -> tuple[Block, Repeat]:
        """The block of a name, with its repeat.

        Raises:
            PlanMismatch: the graph has no such block.
        """
        if name not in self._blocks:
            raise PlanMismatch(f"the plan names block {name}, which this model does not have; make a new plan")
        return self._blocks[name]

    def site(self, block: str, before: str, after: str) -> Site:
        """The site of a block between its neighbours, all by name; where it has none, it is its own.

        Raises:
            PlanMismatch: the graph has no such block.
        """
        names = block, before or block, after or block
        if names not in self._sites:
            (removed, repeat), (first, _), (second, _) = map(self.block, names)
            self._sites[names] = Site(self.graph_module, removed, first, second, repeat.name)
        return self._sites[names]

    def of(self, surrogate: Surrogate[Any, Any], site: Site) -> Match | Refusal:
        """The match of a surrogate at a site, or its refusal.

        Raises:
            BadInput: it returned neither.
        """
        key = site, surrogate.key, repr(surrogate.config)
        if key not in self._answers:
            answer = surrogate.match(site)
            require_kind(answer, Match | Refusal, f"match of {surrogate.key} returns a Match, or site.refusal(reason)")
            self._answers[key] = answer
        return self._answers[key]
