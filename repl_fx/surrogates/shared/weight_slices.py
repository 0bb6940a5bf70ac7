"""Blends of slices of weights: what synthesis comes down to, for all surrogates of a step in a few operators.

    out = sum over weights i of gains[i] * units(weights[i])        gains one number for each unit

where units(w) are consecutive units of a weight along its input or output axis, or all of them, whole or their first
numbers along the other. Blends of one size are stacked and done at once, unless they are of large whole weights or one
alone, which gain nothing by it. Written as ordinary operators, each slice would be kept for the backward pass, and
each weight's gradient made by a chain of small operators; here only the weights and gains are kept, and slices are cut
again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import applied, runs_plainly

# A copy of a whole weight of so many numbers costs more than the operators that it saves.
_LARGE = 2**12


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
        whole = self.count == weight.shape[self.axis]
        some = weight if whole else weight.narrow(self.axis, self.start, self.count)
        return some if self.across is None else some.narrow(1 - self.axis, 0, self.across)

    def scales(self, gains: Tensor, ndim: int) -> Tensor:
        """Gains (…, count) or (…, 1) in as many dimensions more as make them scale slices of `ndim` dimensions."""
        return gains.reshape(*gains.shape[:-1], *[1] * self.axis, -1, *[1] * (ndim - self.axis - 1))


@dataclass(frozen=True)
class SliceBlend:
    """One sum of scaled slices.

    Attributes:
        units: which units of each weight.
        gains: in one tensor or several, for each weight one number for each unit, or one for all.
        weights: whose slices are of one shape.
    """

    units: WeightSlice
    gains: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    @property
    def whole(self) -> bool:
        """Tell whether each slice is all of its weight."""
        return all(self.units.of(weight) is weight for weight in self.weights)

    @property
    def numbers(self) -> int:
        """The number of gains of a weight."""
        return sum(gain.numel() for gain in self.gains) // len(self.weights)

    @property
    def kind(self) -> tuple[Any, ...]:
        """The traits that blends which can be stacked have in common."""
        one = self.weights[0]
        sizes = self.units.of(one).shape, self.numbers, len(self.gains), len(self.weights)
        return (self.units.axis, *sizes, one.dtype, one.device, self.whole)


def blend_slices(blends: Sequence[SliceBlend]) -> list[Tensor]:
    """The sums, one for each blend, in the size of its slices."""
    made: dict[int, Tensor] = {}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, blend in enumerate(blends):
        groups.setdefault(blend.kind, []).append(number)
    for numbers in groups.values():
        some = [blends[number] for number in numbers]
        made.update(zip(numbers, _stacked(some) if _plain(some) else map(blend_one, some), strict=True))
    return [made[number] for number in range(len(blends))]


def blend_one(blend: SliceBlend) -> Tensor:
    """The sum, by ordinary operators."""
    units = blend.units
    gains = (row for gain in blend.gains for row in gain.reshape(-1, blend.numbers))
    scales = (units.scales(row, blend.weights[0].ndim) for row in gains)
    terms = [scale * units.of(weight) for scale, weight in zip(scales, blend.weights, strict=True)]
    # Rounded as those that are stacked: `addcmul` rounds once.
    total: Tensor = functools.reduce(torch.add, terms)
    return total


def _plain(blends: Sequence[SliceBlend]) -> bool:
    """Tell whether the sums are best done together: not in a compiled graph, nor on more than plain tensors."""
    one = blends[0].weights[0]
    if not runs_plainly() or (blends[0].whole and (len(blends) == 1 or one.numel() > _LARGE)):
        return False
    tensors = [tensor for blend in blends for tensor in (*blend.gains, *blend.weights)]
    alike = len({tensor.dtype for tensor in tensors}) == 1 and not tensors[0].is_complex()
    return alike and all(type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta for tensor in tensors)


def _stacked(blends: Sequence[SliceBlend]) -> Sequence[Tensor]:
    flat = [gain for blend in blends for gain in blend.gains]
    flat += [weight for blend in blends for weight in blend.weights]
    made: Tensor = applied(_Stacked, [blend.units for blend in blends], len(blends[0].gains), *flat)
    return made.unbind()


class _Stacked(torch.autograd.Function):
    """Blends of one size, (blends, …), from the gains of all and then their weights."""

    @staticmethod
    def forward(ctx: Any, layout: Sequence[WeightSlice], gains_each: int, *tensors: Tensor) -> Tensor:
        ctx.layout, ctx.split = layout, len(layout) * gains_each
        ctx.save_for_backward(*tensors)
        scales, slices = _cut(layout, tensors[: ctx.split], tensors[ctx.split :])
        return slices.mul_(scales).sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        # Once: a checkpoint hands out each saved tensor a single time.
        saved = ctx.saved_tensors
        layout, gains, weights = ctx.layout, saved[: ctx.split], saved[ctx.split :]
        needs = ctx.needs_input_grad[2:]
        scales, slices = _cut(layout, gains, weights)
        toward = gradient.unsqueeze(1)
        to_gains: list[Tensor | None] = [None] * len(gains)
        if any(needs[: ctx.split]):
            kept = {0, 1} if scales[0, 0].numel() == 1 else {0, 1, layout[0].axis + 2}
            others = [axis for axis in range(slices.ndim) if axis not in kept]
            summed = (slices * toward).sum(others) if others else slices * toward
            parts = torch.split(summed.flatten(), [gain.numel() for gain in gains])
            to_gains = [part.view_as(gain) for part, gain in zip(parts, gains, strict=True)]
        to_weights: list[Tensor | None] = [None] * len(weights)
        if any(needs[ctx.split :]):
            # Each weight's own, zero but for its units; a sum over the whole weight would cost as much.
            found = [torch.empty_like(weight) for weight in weights]
            torch._foreach_zero_(found)
            each = len(found) // len(layout)
            places = [layout[i // each].of(grad) for i, grad in enumerate(found)]
            made = list((scales * toward).flatten(0, 1).unbind())
            if torch.is_grad_enabled():
                # The gradient is to be differentiated again, which all copies at once cannot.
                for place, value in zip(places, made, strict=True):
                    place.copy_(value)
            else:
                torch._foreach_copy_(places, made)
            to_weights = [grad if need else None for grad, need in zip(found, needs[ctx.split :], strict=True)]
        return None, None, *to_gains, *to_weights


def _cut(layout: Sequence[WeightSlice], gains: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Gains (blends, weights, …) that scale the slices, and the slices, (blends, weights, …), which are copies."""
    count, each = len(layout), len(weights) // len(layout)
    slices = torch.stack([layout[i // each].of(weight) for i, weight in enumerate(weights)])
    flat = torch.cat([gain.reshape(-1) for gain in gains]).reshape(count, each, -1)
    return layout[0].scales(flat, slices.ndim - 1), slices.reshape(count, each, *slices.shape[1:])
