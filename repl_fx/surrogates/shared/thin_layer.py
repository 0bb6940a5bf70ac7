"""The weights of one thin layer, synthesised from those of the neighbours (see `repl_fx.surrogates.bottleneck`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.surrogates.shared.synthesis import BlendingSynthesis, OwnWeights, length, random_values, ratio
from repl_fx.surrogates.shared.weight_slices import SliceBlend, WeightSlice

# The gains of each role.
_GAINS = {"entry": "gain_in", "exit": "gain_out", "kernel": "gain_kernel"}


@dataclass(frozen=True)
class WeightForm:
    """The part of a weight in a branch, and how it is laid out.

    Attributes:
        role: `entry` or `exit`, for linear operators that the branch begins or ends with, or `kernel`, for the
            convolution whose kernel is kept.
        transposed: (in, out) instead of (out, in, …).
        groups: groups of a convolution; its rows reach only their own group's inputs.
    """

    role: str
    transposed: bool
    groups: int

    def pointwise(self, weight: Tensor) -> Tensor:
        """The weight as a dense (out, in) matrix, kernels summed."""
        if self.transposed:
            return weight.transpose(0, 1)
        if weight.ndim > 2:
            taps = weight.flatten(2)
            # A view where it can be: a sum is a copy, which would be kept for the backward pass.
            weight = taps[:, :, 0] if taps.shape[2] == 1 else taps.sum(2)
        if self.groups == 1:
            return weight
        # Row block g of a grouped convolution reads column block g alone.
        blocks = weight.reshape(self.groups, -1, weight.shape[1])
        diagonal = torch.eye(self.groups, dtype=weight.dtype, device=weight.device)
        dense = torch.einsum("goi,gh->gohi", blocks, diagonal)
        return dense.reshape(weight.shape[0], self.groups * weight.shape[1])


@dataclass(frozen=True)
class ThinShape:
    """The width r of a thin layer, whether it adds biases, and whether W_out starts at zero."""

    width: int
    bias_in: bool
    bias_out: bool
    zero_init: bool

    def biases(self, features: int, like: Tensor) -> dict[str, Tensor]:
        """Zeros for the biases that there are, by name."""
        sizes = {"bias_in": self.width if self.bias_in else 0, "bias_out": features if self.bias_out else 0}
        return {name: like.new_zeros(size) for name, size in sizes.items() if size}


@dataclass(frozen=True)
class _WeightPiece:
    """Slices that are blended, of one weight of each neighbour, or of one neighbour alone where their sizes differ.

    Attributes:
        sources: which of the weights that the synthesis reads.
    """

    form: WeightForm
    units: WeightSlice
    sources: tuple[int, ...]

    def rows(self, blended: Tensor) -> Tensor:
        """Blended slices as rows."""
        if self.form.role == "kernel":
            return blended.mean(1, keepdim=True)
        dense = self.form.pointwise(blended)
        return dense if self.form.role == "entry" else dense.t()


class ThinSynthesis(BlendingSynthesis):
    """W_in, W_out, biases and the depthwise kernel of one thin layer.

    Args:
        shape: the sizes of the layer.
        forms: of the weights of the block before, of the block after and of the removed block.
        given: the weights of the block before and then of the block after; they size the gains.
        removed: the same weights of the removed block, which give the scale, and the sizes to which those of neighbours
            with other channel counts are fitted.
        train_neighbours: see `Synthesis`.
    """

    def __init__(
        self,
        shape: ThinShape,
        forms: Sequence[Sequence[WeightForm]],
        given: Sequence[Tensor],
        removed: Sequence[Tensor],
        *,
        train_neighbours: bool,
    ) -> None:
        super().__init__(train_neighbours)
        self.width = shape.width
        self.pieces = _pieces(forms[:-1], given, shape.width)
        rows = _rows(removed, forms[-1])
        self.features = rows["entry"][0].shape[1], rows["exit"][0].shape[1]
        like = given[0]
        self.gain_in = self._gains("entry", like)
        self.gain_out = self._gains("exit", like)
        self.gain_kernel = self._gains("kernel", like) if rows["kernel"] else None
        biases = self.hold(shape.biases(self.features[1], like))
        self.names = ("weight_in", "weight_out", *biases, *(("kernel",) if rows["kernel"] else ()))
        if not like.is_meta:
            self._match_scale(given, rows, shape.zero_init)

    def blends(self, state: Mapping[str, Tensor], weights: Sequence[Tensor]) -> list[SliceBlend]:
        """One for each piece; weights in the order of `given`."""
        taken = dict.fromkeys(_GAINS, 0)
        made = []
        for piece in self.pieces:
            role, count = piece.form.role, len(piece.sources) * piece.units.count
            gains = state[_GAINS[role]].narrow(0, taken[role], count)
            taken[role] += count
            sources = tuple(self.given(weights[source]) for source in piece.sources)
            made.append(SliceBlend(piece.units, (gains,), sources))
        return made

    def finish(self, state: Mapping[str, Tensor], blended: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        """W_in (r, in), W_out (out, r), biases, and K (r, 1, …)."""
        total: dict[str, Tensor] = {}
        for piece, slices in zip(self.pieces, blended, strict=True):
            rows, role = _folded(self._fitted(piece, slices), self.width), piece.form.role
            total[role] = total[role] + rows if role in total else rows
        made = {"weight_in": total["entry"], "weight_out": total["exit"].t(), "kernel": total.get("kernel"), **state}
        return tuple(made[name] for name in self.names)

    def _gains(self, role: str, like: Tensor) -> nn.Parameter:
        return random_values(like, sum(len(p.sources) * p.units.count for p in self.pieces if p.form.role == role))

    def _fitted(self, piece: _WeightPiece, slices: Tensor) -> Tensor:
        """Rows, as long as those of the removed block."""
        rows = piece.rows(slices)
        role = piece.form.role
        return rows if role == "kernel" else _folded(rows.t(), self.features[0 if role == "entry" else 1]).t()

    @torch.no_grad()
    def _match_scale(self, given: Sequence[Tensor], removed: Mapping[str, list[Tensor]], zero_init: bool) -> None:
        """Scale the gains so that rows of the synthesised weights are as long as those of the weights they replace.

        Random gains make the terms of a sum independent, so its expected square is the sum of their squares.
        """
        wanted = _wanted_sizes(removed, self.width)
        for role, name in _GAINS.items():
            gains = getattr(self, name)
            if gains is None:
                continue
            rows = [
                self._fitted(piece, piece.units.of(given[source]))
                for piece in self.pieces
                if piece.form.role == role
                for source in piece.sources
            ]
            typical = length([gains]) / math.sqrt(len(gains))
            gains.mul_(0.0 if zero_init and role == "exit" else ratio(wanted[role], typical * length(rows)))


@torch.no_grad()
def thin_weights(shape: ThinShape, forms: Sequence[WeightForm], removed: Sequence[Tensor]) -> OwnWeights:
    """Weights as `ThinSynthesis` makes, as parameters of their own: normal at random, rows as long as those removed."""
    rows, like, width = _rows(removed, forms), removed[0], shape.width
    columns, features = rows["entry"][0].shape[1], rows["exit"][0].shape[1]
    made = {"entry": random_values(like, width, columns), "exit": random_values(like, features, width)}
    if rows["kernel"]:
        made["kernel"] = random_values(like, width, 1, *rows["kernel"][0].shape[2:])
    wanted = {} if like.is_meta else _wanted_sizes(rows, width)
    for role, weight in made.items() if wanted else ():
        weight.mul_(0.0 if shape.zero_init and role == "exit" else ratio(wanted[role], length([weight])))
    kernel = {"kernel": made["kernel"]} if rows["kernel"] else {}
    own = {"weight_in": made["entry"], "weight_out": made["exit"], **shape.biases(features, like), **kernel}
    return OwnWeights(own)


def _pieces(forms: Sequence[Sequence[WeightForm]], given: Sequence[Tensor], width: int) -> tuple[_WeightPiece, ...]:
    """The slice that is blended: the first `width` units of a weight, or all where a group sees or reaches a part."""
    listed = list(chain.from_iterable(forms))
    each = len(forms[0])
    made = []
    for at in range(each):
        sources = range(at, len(listed), each)
        kinds = {(listed[source], given[source].shape) for source in sources}
        for some in [tuple(sources)] if len(kinds) == 1 else [(source,) for source in sources]:
            form = listed[some[0]]
            axis = int((form.role == "exit") != form.transposed)
            size = given[some[0]].shape[axis]
            count = size if form.groups > 1 and form.role != "kernel" else min(size, width)
            made.append(_WeightPiece(form, WeightSlice(axis, 0, count), some))
    return tuple(made)


def _rows(weights: Sequence[Tensor], forms: Sequence[WeightForm]) -> dict[str, list[Tensor]]:
    """Entry rows, exit columns as rows, and kernels of all units of one block's weights, by role."""
    pieces = _pieces([forms], weights, max(max(weight.shape) for weight in weights))
    roles: dict[str, list[Tensor]] = {role: [] for role in _GAINS}
    for piece, weight in zip(pieces, weights, strict=True):
        roles[piece.form.role].append(piece.rows(weight))
    return roles


def _folded(rows: Tensor, count: int) -> Tensor:
    """Row i onto row i mod count; where there are fewer, they come again."""
    have = rows.shape[0]
    if have == count:
        return rows
    if have < count:
        return rows.repeat(-(-count // have), *[1] * (rows.ndim - 1))[:count]
    rest = -have % count
    padded = torch.cat([rows, rows.new_zeros(rest, *rows.shape[1:])]) if rest else rows
    return padded.reshape(-1, count, *rows.shape[1:]).sum(0)


def _wanted_sizes(removed: Mapping[str, list[Tensor]], width: int) -> dict[str, float]:
    """The sizes of W_in, W_out and K whose rows are as long as those of the weights they replace."""
    # The length of an average row: entry weights have their own number of rows, exit weights share theirs. A kernel of
    # length 1 keeps the energy of what it filters.
    count = sum(len(rows) for rows in removed["entry"])
    return {
        "entry": length(removed["entry"]) * math.sqrt(width / count),
        "exit": length(removed["exit"]),
        "kernel": math.sqrt(width),
    }
