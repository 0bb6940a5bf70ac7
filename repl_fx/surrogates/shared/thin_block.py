"""The weights of a block at a fraction of its width (see `repl_fx.surrogates.slim`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.surrogates.shared.initialisation import length, random_values, ratio
from repl_fx.surrogates.shared.synthesis import BlendingSynthesis, Synthesis
from repl_fx.surrogates.shared.weight_slices import SliceBlend, WeightSlice


@dataclass(frozen=True)
class Cut:
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
        self, cuts: Sequence[Cut], given: Sequence[Tensor], removed: Sequence[Tensor], train_neighbours: bool
    ) -> None:
        super().__init__(train_neighbours)
        self.cuts = tuple(cuts)
        for i, cut in enumerate(cuts):
            start = 1.0
            if not given[0].is_meta:
                start = cut.scale(cut.units.of(given[2 * i]) + cut.units.of(given[2 * i + 1]), removed[i])
            self.register_parameter(f"gain_{i}", nn.Parameter(given[0].new_full((2 * cut.rows,), start)))
        _add_biases(self, cuts, given[0])

    @property
    def names(self) -> tuple[str, ...]:
        """The weights that `synthesise` returns, in order."""
        return _names(self.cuts)

    def blends(self, state: Mapping[str, Tensor], weights: Sequence[Tensor]) -> list[SliceBlend]:
        """One for each cut; weights in the order of `given`."""
        return [
            SliceBlend(cut.units, (state[f"gain_{i}"],), tuple(map(self.given, weights[2 * i : 2 * i + 2])))
            for i, cut in enumerate(self.cuts)
        ]

    def finish(self, state: Mapping[str, Tensor], blended: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        """The weights, (out, in, …), and then the biases."""
        biases = [state[f"bias_{i}"] for i, cut in enumerate(self.cuts) if cut.bias]
        return (*(cut.laid_out(made) for cut, made in zip(self.cuts, blended, strict=True)), *biases)


class SlimWeights(Synthesis):
    """Weights of the same sizes as parameters of their own, normal at random: the control that synthesis is held to.

    Args:
        cuts, removed: as for `SlimSynthesis`.
    """

    def __init__(self, cuts: Sequence[Cut], removed: Sequence[Tensor]) -> None:
        super().__init__(train_neighbours=True)
        self.cuts = tuple(cuts)
        for i, (cut, weight) in enumerate(zip(cuts, removed, strict=True)):
            made = random_values(weight, *cut.laid_out(cut.units.of(weight)).shape)
            if not weight.is_meta:
                with torch.no_grad():
                    made.mul_(cut.scale(made, weight))
            self.register_parameter(f"weight_{i}", made)
        _add_biases(self, cuts, removed[0])

    @property
    def names(self) -> tuple[str, ...]:
        """The weights that `synthesise` returns, in order."""
        return _names(self.cuts)

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The weights themselves."""
        return tuple(getattr(self, name) for name in self.names)


def _add_biases(module: nn.Module, cuts: Sequence[Cut], like: Tensor) -> None:
    for i, cut in enumerate(cuts):
        if cut.bias:
            module.register_parameter(f"bias_{i}", nn.Parameter(like.new_zeros(cut.rows)))


def _names(cuts: Sequence[Cut]) -> tuple[str, ...]:
    weights = (f"weight_{i}" for i in range(len(cuts)))
    return (*weights, *(f"bias_{i}" for i, cut in enumerate(cuts) if cut.bias))
