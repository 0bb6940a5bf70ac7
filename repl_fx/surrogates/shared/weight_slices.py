"""Blends of slices of weights: what synthesis comes down to, for all surrogates of a step in a few operators.

    out = sum over weights i of gains[i] * units(weights[i])        gains one number for each unit

where units(w) are consecutive units of a weight along its input or output axis, whole or their first numbers along the
other. Blends of one size are stacked and done at once. Written as ordinary operators, each slice would be kept for the
backward pass, and each weight's gradient made by a chain of small operators; here only the weights and gains are kept,
and slices are cut again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class WeightSlice:
    """Consecutive units of a weight.

    Attributes:
        axis: of the weight, 0 or 1.
        start, count: which.
        across: how many of their numbers along the other of these two axes, the first ones; None for all.
    """

    axis: int
    start: int
    count: int
    across: int | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The slice, a view."""
        some = weight.narrow(self.axis, self.start, self.count)
        return some if self.across is None else some.narrow(1 - self.axis, 0, self.across)

    def scales(self, gains: Tensor, ndim: int) -> Tensor:
        """Gains (…, count) in as many dimensions more as make them scale slices of `ndim` dimensions."""
        return gains.reshape(*gains.shape[:-1], *[1] * self.axis, self.count, *[1] * (ndim - self.axis - 1))


@dataclass(frozen=True)
class SliceBlend:
    """One sum of scaled slices.

    Attributes:
        units: which units of each weight.
        gains: (weights, count).
        weights: whose slices are of one shape.
    """

    units: WeightSlice
    gains: Tensor
    weights: tuple[Tensor, ...]

    @property
    def kind(self) -> tuple[Any, ...]:
        """The traits that blends which can be stacked have in common."""
        one = self.weights[0]
        return (self.units.axis, len(self.weights), self.units.of(one).shape, one.dtype, one.device)


def blend_slices(blends: Sequence[SliceBlend]) -> list[Tensor]:
    """The sums, one for each blend, in the size of its slices."""
    made: dict[int, Tensor] = {}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, blend in enumerate(blends):
        groups.setdefault(blend.kind, []).append(number)
    for numbers in groups.values():
        some = [blends[number] for number in numbers]
        made.update(zip(numbers, _stacked(some) if _plain(some) else map(_alone, some), strict=True))
    return [made[number] for number in range(len(blends))]


def _alone(blend: SliceBlend) -> Tensor:
    units = blend.units
    scales = units.scales(blend.gains, blend.weights[0].ndim)
    terms = [scale * units.of(weight) for scale, weight in zip(scales, blend.weights, strict=True)]
    total: Tensor = functools.reduce(torch.add, terms)
    return total


def _plain(blends: Sequence[SliceBlend]) -> bool:
    """Whether the sums can be done together: not in a compiled graph, nor on tensors that are more than values."""
    if torch.compiler.is_compiling():
        return False
    return all(
        type(t) in (Tensor, nn.Parameter) and not t.is_meta for blend in blends for t in (blend.gains, *blend.weights)
    )


def _stacked(blends: Sequence[SliceBlend]) -> Sequence[Tensor]:
    layout = [blend.units for blend in blends]
    flat = [weight for blend in blends for weight in blend.weights]
    made: Tensor = _Stacked.apply(layout, *(blend.gains for blend in blends), *flat)  # type: ignore[no-untyped-call]
    return made.unbind()


class _Stacked(torch.autograd.Function):
    """Blends of one size, (blends, …)."""

    @staticmethod
    def forward(ctx: Any, layout: Sequence[WeightSlice], *tensors: Tensor) -> Tensor:
        ctx.layout = layout
        ctx.save_for_backward(*tensors)
        scales, slices = _cut(layout, tensors)
        return (scales * slices).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        layout, tensors = ctx.layout, ctx.saved_tensors
        count, needs = len(layout), ctx.needs_input_grad[1:]
        scales, slices = _cut(layout, tensors)
        toward = gradient.unsqueeze(1)
        gains: list[Tensor | None] = [None] * count
        if any(needs[:count]):
            others = [axis for axis in range(2, slices.ndim) if axis != layout[0].axis + 2]
            summed = (toward * slices).sum(others) if others else toward * slices
            gains = list(summed.to(tensors[0].dtype).unbind())
        weights: list[Tensor | None] = [None] * (len(tensors) - count)
        if any(needs[count:]):
            # Each weight's own, zero but for its units; a sum over the whole weight would cost as much.
            parts = (scales * toward).flatten(0, 1).unbind()
            found = [torch.empty_like(weight) for weight in tensors[count:]]
            torch._foreach_zero_(found)
            each = len(found) // count
            torch._foreach_copy_([layout[i // each].of(grad) for i, grad in enumerate(found)], list(parts))
            weights = [grad if need else None for grad, need in zip(found, needs[count:], strict=True)]
        return None, *gains, *weights


def _cut(layout: Sequence[WeightSlice], tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Gains (blends, weights, …) that scale the slices, and the slices, (blends, weights, …)."""
    count = len(layout)
    each = (len(tensors) - count) // count
    slices = torch.stack([layout[i // each].of(weight) for i, weight in enumerate(tensors[count:])])
    gains = layout[0].scales(torch.stack(list(tensors[:count])), slices.ndim - 1)
    return gains, slices.reshape(count, each, *slices.shape[1:])
