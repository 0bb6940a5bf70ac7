"""Statistics of the values at the boundaries of the blocks of one repeat, while the model runs.

    x0 -> [block 1] -> x1 -> [block 2] -> x2 -> …      a boundary: what enters a block, or what leaves it

    influence of blocks i to j   1 - mean of cos(x, y)              over all positions of all samples: ShortGPT (Men et
                                                                    al. 2024, arXiv:2403.03853); of stretches: Gromov
                                                                    et al. 2024 (arXiv:2403.17887)
    change of a block            sqrt(sum |y - x|² / sum |x|²)      over the same
    gradient of a block          mean over samples of |sum g (y - x)|,  g = dL/dy, where L is the loss of the sample:
                                                                    |L(y = x) - L| to first order, as in Molchanov et
                                                                    al. 2016 (arXiv:1611.06440)

x is what enters the first block and y what leaves the last. A position is a vector along the feature axis: that along
which the first linear operator of the blocks works. Where several values stream, their positions count together. Two
vectors of zeros are alike (cosine 1), and one of zeros is unlike any other (cosine 0).

Sums are float64, of products in the precision of the values, float32 at least. Each value is compared with those before
it when it is made; all are dropped behind the last block, so that those of one batch and of one repeat are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import GradientEdge, get_gradient_edge

from repl_fx.finding.blocks import Block, Repeat
from repl_fx.finding.linear_operators import linear_operator_of
from repl_fx.graph.grouping import grouped

# The streamed values at a boundary.
_Place = tuple[fx.Node, ...]


@dataclass(eq=False)
class Alikeness:
    """The likeness of two boundaries, so far.

    Attributes:
        apart: sum of one minus the cosine.
        changed: sum of the squares of the difference.
        entering: sum of the squares of what enters.
        positions: how many were compared.
        reason: why they cannot be compared; empty where they can.
    """

    apart: Tensor | float = 0.0
    changed: Tensor | float = 0.0
    entering: Tensor | float = 0.0
    positions: int = 0
    reason: str = ""

    @property
    def influence(self) -> float | None:
        """One minus the mean cosine."""
        return None if self.reason or not self.positions else float(self.apart) / self.positions

    @property
    def change(self) -> float | None:
        """The norm of the difference, relative to that of what enters."""
        entering = float(self.entering)
        return None if self.reason or not entering else (float(self.changed) / entering) ** 0.5


@dataclass(eq=False)
class Sensitivity:
    """The gradient of the loss times the contribution of a block, so far.

    Attributes:
        total: sum over samples of the magnitude.
        samples: how many.
        reason: why there is none; empty where there is one.
    """

    total: float = 0.0
    samples: int = 0
    reason: str = ""

    @property
    def gradient(self) -> float | None:
        """The mean magnitude."""
        return None if self.reason or not self.samples else self.total / self.samples


@dataclass(frozen=True, eq=False)
class _Contribution:
    """The difference that a block makes to one of its values, and the place of its gradient."""

    block: int
    difference: Tensor
    edge: GradientEdge
    batch_axis: int


# A boundary of the batch at hand: copies of its values, in float32 at least, each with its squares by position.
_Seen = list[tuple[Tensor, Tensor]]


class RepeatStatistics:
    """The statistics of the blocks of one repeat.

    Args:
        gm: the graph of the repeat.
        repeat: with the names that the blocks have in the graph.
        gradients: whether contributions of blocks are kept for `add_gradients`.

    Attributes:
        alike: by the numbers of the first and the last block of a stretch.
        sensitive: by the number of the block.
        broken: numbers of the blocks whose output was no finite number in the batch at hand.
    """

    def __init__(self, gm: fx.GraphModule, repeat: Repeat, *, gradients: bool) -> None:
        self.repeat, self.gradients = repeat, gradients
        blocks = repeat.blocks
        places = dict.fromkeys(place for block in blocks for place in (block.inputs, block.outputs))
        self._places: list[_Place] = list(places)
        numbers = {place: number for number, place in enumerate(self._places)}
        self._entries = [numbers[block.inputs] for block in blocks]
        self._exits = [numbers[block.outputs] for block in blocks]
        self._axes = [_feature_axis(gm, blocks[0], value) for value in blocks[0].inputs]
        self._batch_axes = {node: _batch_axis(gm, node) for place in self._places for node in place}
        self.alike = {(i, j): Alikeness() for j in range(len(blocks)) for i in range(j + 1)}
        self.sensitive = [Sensitivity() for _ in blocks]
        self._pending: dict[int, dict[fx.Node, Tensor]] = {}
        self._held: dict[int, _Seen] = {}
        self._contributions: list[_Contribution] = []
        self._finite: dict[int, Tensor] = {}

    def notes(self) -> dict[fx.Node, Callable[[Any], None]]:
        """The functions that take the values of the nodes at boundaries (see `repl_fx.graph.recording`)."""
        at = grouped((node, number) for number, place in enumerate(self._places) for node in dict.fromkeys(place))
        return {node: partial(self._take, node, numbers) for node, numbers in at.items()}

    @property
    def broken(self) -> list[int]:
        """Blocks, by number, that made values that are no finite numbers since the last `forget`."""
        bad = {number for number, finite in self._finite.items() if not bool(finite)}
        return [block for block, number in enumerate(self._exits) if number in bad]

    def forget(self) -> None:
        """Drop all values of a batch."""
        for kept in (self._pending, self._held, self._contributions, self._finite):
            kept.clear()

    @property
    def edges(self) -> list[GradientEdge]:
        """The places in the backward pass of the batch at hand whose gradients `add_gradients` takes."""
        return [one.edge for one in self._contributions]

    def add_gradients(self, gradients: Sequence[Tensor | None], samples: int) -> None:
        """Add what blocks contribute to the loss of the batch at hand, to first order.

        Args:
            gradients: of the mean loss, one for each of `edges`; None where the loss does not depend on the value.
            samples: of the batch.
        """
        sums: dict[int, Tensor] = {}
        for one, gradient in zip(self._contributions, gradients, strict=True):
            difference = one.difference
            reached = torch.zeros_like(difference) if gradient is None else gradient.detach().reshape(difference.shape)
            product = (reached * difference).movedim(one.batch_axis, 0)
            if product.shape[0] % samples:
                shape = "x".join(map(str, difference.shape))
                self.sensitive[one.block].reason = f"its value, {shape}, cannot be divided among {samples} samples"
                continue
            # The loss is a mean: that of one sample has `samples` times its share of the gradient.
            each = samples * product.reshape(samples, -1).sum(1, dtype=torch.float64)
            sums[one.block] = sums[one.block] + each if one.block in sums else each
        for block, each in sums.items():
            sensitive, total = self.sensitive[block], float(each.abs().sum())
            if not math.isfinite(total):
                sensitive.reason = "the gradient of the loss there is no finite number"
            sensitive.total += total
            sensitive.samples += samples

    @torch.no_grad()
    def _take(self, node: fx.Node, at: Sequence[int], value: object) -> None:
        for number in at:
            pending = self._pending.setdefault(number, {})
            if not isinstance(value, Tensor) or not value.is_floating_point():
                self._refuse(number, "its streamed value is no tensor of floating point numbers")
                continue
            pending[node] = value
            if len(pending) == len(set(self._places[number])):
                del self._pending[number]
                self._complete(number, [pending[one] for one in self._places[number]])

    def _complete(self, number: int, values: list[Tensor]) -> None:
        """Compare a boundary with those before it."""
        wide = [_copied(value) for value in values]
        seen = [(value, _dot(value, value, axis)) for value, axis in zip(wide, self._axes, strict=True)]
        finite = torch.isfinite(torch.stack([squares.sum() for _, squares in seen]).sum())
        self._finite[number] = finite & self._finite[number] if number in self._finite else finite
        for last, out in enumerate(self._exits):
            if out != number:
                continue
            for first in range(last + 1):
                entry = self._held.get(self._entries[first])
                if entry is not None:
                    self._compare(self.alike[first, last], entry, seen, single=first == last)
            entry = self._held.get(self._entries[last])
            if self.gradients and entry is not None and not self.alike[last, last].reason:
                self._contribute(last, entry, seen, values)
        if number in self._entries:
            self._held[number] = seen
        if number == self._exits[-1]:
            self._held.clear()

    def _compare(self, alike: Alikeness, entry: _Seen, seen: _Seen, *, single: bool) -> None:
        for (ours, _), (theirs, _) in zip(entry, seen, strict=True):
            if ours.shape != theirs.shape:
                shapes = ("x".join(map(str, value.shape)) for value in (ours, theirs))
                alike.reason = f"it turns {' into '.join(shapes)}"
                return
        for (ours, own), (theirs, other), axis in zip(entry, seen, self._axes, strict=True):
            norm = (own * other).sqrt()
            # No vector has a direction where both are zeros, or one of them is.
            both = ((own == 0) & (other == 0)).to(norm)
            cosine = torch.where(norm > 0, _dot(ours, theirs, axis) / norm, both)
            alike.apart = alike.apart + (1 - cosine).clamp(min=0).sum()
            alike.positions += norm.numel()
            if single:
                difference = theirs - ours
                alike.changed = alike.changed + _dot(difference, difference, axis).sum()
                alike.entering = alike.entering + own.sum()

    def _contribute(self, block: int, entry: _Seen, seen: _Seen, values: list[Tensor]) -> None:
        place = self._places[self._exits[block]]
        for node, value, (before, _), (after, _) in zip(place, values, entry, seen, strict=True):
            if not value.requires_grad:
                self.sensitive[block].reason = "its value has no gradient"
                return
            # Of the value as it is now: the model may write over it.
            edge = get_gradient_edge(value)
            self._contributions.append(_Contribution(block, after - before, edge, self._batch_axes[node]))

    def _refuse(self, number: int, reason: str) -> None:
        for (first, last), alike in self.alike.items():
            if number in (self._entries[first], self._exits[last]):
                alike.reason = reason


def _copied(value: Tensor) -> Tensor:
    """A copy, as the model may write over the value, in float32 at least and with a feature axis."""
    wide = value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
    return wide if wide.ndim > 1 else wide.reshape(-1, 1)


def _dot(ours: Tensor, theirs: Tensor, axis: int) -> Tensor:
    return (ours * theirs).sum(axis, dtype=torch.float64)


def _feature_axis(gm: fx.GraphModule, block: Block, value: fx.Node) -> int:
    """The feature axis of a streamed value: that along which the first linear operator on a value like it works."""
    like = value.meta.get("val")
    for node in sorted(block.nodes):
        operator = linear_operator_of(gm, node)
        given = None if operator is None else operator.input.meta.get("val")
        if operator is None or operator.kind == "other" or not isinstance(given, Tensor):
            continue
        if isinstance(like, Tensor) and given.ndim == like.ndim:
            return operator.axis
    return -1


def _batch_axis(gm: fx.GraphModule, node: fx.Node) -> int:
    """The axis of a value along which the samples lie: the first whose size grows with the batch; else the first."""
    inputs = (n.meta.get("val") for n in gm.graph.nodes if n.op == "placeholder")
    batch: Any = next((value.shape[0] for value in inputs if isinstance(value, Tensor) and value.ndim), None)
    value: Any = node.meta.get("val")
    if not isinstance(batch, torch.SymInt) or not isinstance(value, Tensor):
        return 0
    symbols, sizes = batch.node.expr.free_symbols, enumerate(list[Any](value.shape))
    grows = (a for a, size in sizes if isinstance(size, torch.SymInt) and size.node.expr.free_symbols & symbols)
    return next(grows, 0)
