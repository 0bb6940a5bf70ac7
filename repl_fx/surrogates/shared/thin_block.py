"""The weights of a block at a fraction of its width (see `repl_fx.surrogates.slim`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.surrogates.shared.synthesis import BlendingSynthesis, OwnWeights, length, random_values, ratio
from repl_fx.surrogates.shared.weight_slices import SliceBlend, WeightSlice


@dataclass(frozen=True)
class WeightCut:
    """The part of one weight that a slim block has.

    Attributes:
        rows: outputs.
        columns: inputs of each.
        transposed: the weight is stored (in, out) instead of (out, in, …).
        bias: whether a bias is added.
        zero_init: whether it starts at zero.
    """

    rows: int
    columns: int
    transposed: bool
    bias: bool
    zero_init: bool

    @property
    def units(self) -> WeightSlice:
        """The slice of a stored weight."""
        return WeightSlice(int(self.transposed), 0, self.rows, self.columns)

    def laid_out(self, made: Tensor) -> Tensor:
        """A slice as (out, in, …)."""
        return made.t() if self.transposed else made

    @torch.no_grad()
    def scale(self, made: Tensor, removed: Tensor) -> float:
        """The factor that gives rows of a weight of this size the length of the removed ones; 0 to start at zero."""
        if self.zero_init:
            return 0.0
        rows = removed.shape[int(self.transposed)]
        return ratio(length([removed]) * math.sqrt(self.rows / rows), length([made]))


class SlimSynthesis(BlendingSynthesis):
    """Slices of both neighbours' weights, each unit of each with a gain of its own, summed.

    Args:
        cuts: one for each weight of the block.
        given: for each cut the weight of the block before, and that of the block after.
        removed: for each cut the weight that is removed, which gives the scale.
        train_neighbours: see `Synthesis`.
    """

    def __init__(
        self, cuts: Sequence[WeightCut], given: Sequence[Tensor], removed: Sequence[Tensor], train_neighbours: bool
    ) -> None:
        super().__init__(train_neighbours)
        self.cuts = tuple(cuts)
        for i, cut in enumerate(cuts):
            start = 1.0
            if not given[0].is_meta:
                start = cut.scale(cut.units.of(given[2 * i]) + cut.units.of(given[2 * i + 1]), removed[i])
            self.register_parameter(f"gain_{i}", nn.Parameter(given[0].new_full((2 * cut.rows,), start)))
        self.names = (*(f"weight_{i}" for i in range(len(cuts))), *self.hold(_biases(cuts, given[0])))

    def blends(self, state: Mapping[str, Tensor], weights: Sequence[Tensor]) -> list[SliceBlend]:
        """One for each cut; weights in the order of `given`."""
        return [
            SliceBlend(cut.units, (state[f"gain_{i}"],), tuple(map(self.given, weights[2 * i : 2 * i + 2])))
            for i, cut in enumerate(self.cuts)
        ]

    def finish(self, state: Mapping[str, Tensor], blended: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        """The weights, (out, in, …), and then the biases."""
        laid_out = (cut.laid_out(made) for cut, made in zip(self.cuts, blended, strict=True))
        return (*laid_out, *(state[name] for name in self.names[len(self.cuts) :]))


def slim_weights(cuts: Sequence[WeightCut], removed: Sequence[Tensor]) -> OwnWeights:
    """Weights as `SlimSynthesis` makes, as parameters of their own, normal at random."""
    weights: dict[str, Tensor] = {}
    for i, (cut, weight) in enumerate(zip(cuts, removed, strict=True)):
        made = random_values(weight, *cut.laid_out(cut.units.of(weight)).shape)
        if not weight.is_meta:
            with torch.no_grad():
                made.mul_(cut.scale(made, weight))
        weights[f"weight_{i}"] = made
    return OwnWeights({**weights, **_biases(cuts, removed[0])})


def _biases(cuts: Sequence[WeightCut], like: Tensor) -> dict[str, Tensor]:
    return {f"bias_{i}": like.new_zeros(cut.rows) for i, cut in enumerate(cuts) if cut.bias}
