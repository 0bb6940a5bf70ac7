"""Surrogates that cannot be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn

from repl_fx.surrogates import Builder, Match, Site, Surrogate
from repl_fx.surrogates.shared import surrogate as registry
from repl_fx.surrogates.shared.synthesis import Synthesis


class Scale(Synthesis):
    """One number of its own."""

    def __init__(self) -> None:
        super().__init__(train_neighbours=True)
        self.scale = nn.Parameter(torch.ones(1))

    def synthesise(self, *weights: Tensor) -> Tensor:
        return self.scale * 1.0


@dataclass(frozen=True)
class NoConfig:
    """No settings."""


def _fails(x: Tensor, scale: Tensor) -> Tensor:
    made: Tensor = x * scale
    if x.requires_grad:
        # exp keeps its result, which is then written to.
        made = made.exp()
        made.add_(1)
    return made


MADE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "fails": (_fails, "modified by an inplace operation"),
    "dead": (lambda x, scale: x + 0 * scale, "none of its parameters gets a gradient"),
    "infinite": (lambda x, scale: x + (scale - 1).sqrt().nan_to_num(), "are no finite numbers"),
}


def register(monkeypatch: pytest.MonkeyPatch, apply: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Make a surrogate of a function of the stream and one number of its own known as `given`, for one test."""

    class Given(Surrogate[NoConfig, Match]):
        key = "given"

        def match(self, site: Site) -> Match:
            return Match()

        def build(self, site: Builder, match: Match) -> tuple[fx.Node, ...]:
            with site.before_node(site.block.output):
                return (site.call(apply, site.input, site.synthesise("scale", Scale())),)

    monkeypatch.setitem(registry._REGISTRY, "given", (Given, NoConfig))
