"""Windows over the positions of a stream: their means, and giving what was made for a window to its positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repl_fx.running.untouched import no_autocast
from repl_fx.surrogates.shared.builder import Builder

_POOLS = {2: torch.ops.aten.avg_pool2d.default, 3: torch.ops.aten.avg_pool3d.default}
# Class and distillation tokens, and up to four registers.
_MOST_BESIDE_GRID = 5


@dataclass(frozen=True)
class PictureWindows:
    """Squares (cubes) of a picture, channels first.

    Where they do not divide it, what is left at the far edges is in no mean, and the windows are spread evenly over the
    whole picture: of 14 positions, 5, 5 and 4 get what became of the means over 4, 4 and 4.

    Attributes:
        side: positions along each axis.
    """

    side: int

    @classmethod
    def of(cls, value: Tensor, ratio: float) -> PictureWindows:
        """Windows for a value (batch, channels, …), so that there are about `ratio` windows for a position."""
        fixed = [size for size in value.shape[2:] if isinstance(size, int)]
        return cls(min([max(1, round(ratio ** (-1 / (value.ndim - 2)))), *fixed]))

    def fewer(self, value: Tensor) -> Tensor:
        """(batch, channels, …) at the lower resolution."""
        axes = value.ndim - 2
        pooled: Tensor = _POOLS[axes](value, [self.side] * axes)
        return pooled

    def mean(self, site: Builder, stream: fx.Node) -> fx.Node:
        """(batch, channels, …) at the lower resolution."""
        return site.call(window_means, stream, self.side)

    def added(self, site: Builder, stream: fx.Node, change: fx.Node) -> fx.Node:
        """The stream with the change at its own resolution added."""
        return site.call(add_windows, stream, change)


def window_means(stream: Tensor, side: int) -> Tensor:
    """The means over squares (cubes) of a picture; one that is smaller than they is a single window."""
    sides = [min(side, size) for size in stream.shape[2:]]
    means: Tensor = _POOLS[len(sides)](stream, sides)
    return means


def add_windows(stream: Tensor, change: Tensor) -> Tensor:
    """The sum of a picture and one of a lower resolution, each value of which goes to positions side by side."""
    return stream + F.interpolate(change, size=stream.shape[2:], mode="nearest")


def mix_positions(matrix: Tensor, stream: Tensor) -> Tensor:
    """The product of a constant matrix and a sequence, in the precision of the sequence, which may not be its own.

    Under autocast too: a copy of the whole sequence in the lower precision costs more than the product, and means lose
    digits. (ViT-B on an H100, eager: 69.4 ms a step, and 70.6 with copies.)
    """
    with no_autocast(stream.device):
        return torch.matmul(matrix.to(stream.dtype), stream)


@dataclass(frozen=True)
class TokenWindows:
    """Windows over a sequence (batch, positions, channels).

    A grid of patches, with a few tokens before it, is divided along both sides, and each of these tokens is a window of
    its own; another sequence is divided into runs.

    Attributes:
        window: of each position.
    """

    window: tuple[int, ...]

    @classmethod
    def of(cls, value: Tensor, ratio: float) -> TokenWindows:
        """Windows for a value, so that there are about `ratio` windows for a position."""
        positions = int(value.shape[1])
        beside, side = _grid(positions)
        if side is None:
            count = max(1, round(ratio * positions))
            return cls(tuple(i * count // positions for i in range(positions)))
        count = max(min(2, side - 1), math.floor(side * math.sqrt(ratio)))
        part = [i * count // side for i in range(side)]
        return cls((*range(beside), *(beside + count * row + column for row in part for column in part)))

    def fewer(self, value: Tensor) -> Tensor:
        """(batch, windows, channels)."""
        return value.narrow(1, 0, self.count)

    @property
    def count(self) -> int:
        """The number of windows."""
        return self.window[-1] + 1

    def mean(self, site: Builder, stream: fx.Node) -> fx.Node:
        """(batch, windows, channels)."""
        member = self._members(site)
        means = self._matrix(site, "mean", member / member.sum(1, keepdim=True))
        return site.call(mix_positions, means, stream)

    def added(self, site: Builder, stream: fx.Node, change: fx.Node) -> fx.Node:
        """The stream with the change of its window added to each position."""
        spread = self._matrix(site, "spread", self._members(site).t().contiguous())
        return site.call(torch.ops.aten.add.Tensor, stream, site.call(mix_positions, spread, change))

    def _members(self, site: Builder) -> Tensor:
        like = site.tensor(site.block.parameters[0])
        member = F.one_hot(torch.tensor(self.window), self.count).t()
        return member.to(dtype=like.dtype, device=like.device)

    def _matrix(self, site: Builder, name: str, values: Tensor) -> fx.Node:
        holder = nn.Module()
        holder.register_buffer("matrix", values)
        return site.parameter(f"{site.module(name, holder)}.matrix")


Windows = PictureWindows | TokenWindows


def _grid(positions: int) -> tuple[int, int | None]:
    """The number of tokens before a square grid, and its side; None where there is no such grid."""
    for beside in range(_MOST_BESIDE_GRID + 1):
        side = math.isqrt(max(0, positions - beside))
        if side > 1 and side * side == positions - beside:
            return beside, side
    return 0, None
