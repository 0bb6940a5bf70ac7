"""The weights of one thin layer, synthesised from those of the neighbours (see `repl_fx.surrogates.bottleneck`)."""

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

# The gains of each role.
_GAINS = {"entry": "gain_in", "exit": "gain_out", "kernel": "gain_kernel"}


@dataclass(frozen=True)
class WeightForm:
    """How a stored weight is laid out.

    Attributes:
        transposed: (in, out) instead of (out, in, …).
        groups: groups of a convolution; its rows reach only their own group's inputs.
    """

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
class ThinForms:
    """Layouts of the weights that one neighbour gives to a thin layer.

    Attributes:
        entry, exit: of the linear operators that the branch begins and ends with.
        spatial: of the convolution whose kernel is kept; empty where there is none.
    """

    entry: tuple[WeightForm, ...]
    exit: tuple[WeightForm, ...]
    spatial: tuple[WeightForm, ...]


@dataclass(frozen=True)
class ThinShape:
    """The sizes of a thin layer.

    Attributes:
        width: r.
        bias_in, bias_out: whether the layer adds biases.
        zero_init: whether W_out starts at zero.
    """

    width: int
    bias_in: bool
    bias_out: bool
    zero_init: bool


@dataclass(frozen=True)
class _Piece:
    """Slices that are blended, of one weight of each neighbour, or of one neighbour alone where their sizes differ.

    Attributes:
        role: `entry`, `exit` or `kernel`.
        form: of the weights.
        units: which of their units.
        sources: which of the weights that the synthesis reads.
    """

    role: str
    form: WeightForm
    units: WeightSlice
    sources: tuple[int, ...]

    def rows(self, blended: Tensor) -> Tensor:
        """Blended slices as rows."""
        if self.role == "kernel":
            return blended.mean(1, keepdim=True)
        dense = self.form.pointwise(blended)
        return dense if self.role == "entry" else dense.t()


class ThinSynthesis(BlendingSynthesis):
    """W_in, W_out, biases and the depthwise kernel of one thin layer.

    Args:
        shape: the sizes of the layer.
        forms: layouts of the weights, of the block before, of the block after and of the removed block.
        given: the weights, entry, exit and spatial ones, of the block before and then of the block after; they
            size the gains.
        removed: the same weights of the removed block, which give the scale, and the sizes to which those of neighbours
            with other channel counts are fitted.
        train_neighbours: see `Synthesis`.
    """

    def __init__(
        self,
        shape: ThinShape,
        forms: Sequence[ThinForms],
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
        self.gain_kernel = self._gains("kernel", like) if forms[0].spatial else None
        self.bias_in = nn.Parameter(like.new_zeros(shape.width)) if shape.bias_in else None
        self.bias_out = nn.Parameter(like.new_zeros(self.features[1])) if shape.bias_out else None
        if not like.is_meta:
            self._match_scale(given, rows, shape.zero_init)

    @property
    def names(self) -> tuple[str, ...]:
        """The weights that `synthesise` returns, in order."""
        return _names({"bias_in": self.bias_in, "bias_out": self.bias_out, "kernel": self.gain_kernel})

    def blends(self, state: Mapping[str, Tensor], weights: Sequence[Tensor]) -> list[SliceBlend]:
        """One for each piece; weights in the order of `given`."""
        taken = dict.fromkeys(_GAINS, 0)
        made = []
        for piece in self.pieces:
            first, count = taken[piece.role], len(piece.sources) * piece.units.count
            gains = state[_GAINS[piece.role]].narrow(0, first, count)
            taken[piece.role] += count
            made.append(
                SliceBlend(piece.units, (gains,), tuple(self.given(weights[source]) for source in piece.sources))
            )
        return made

    def finish(self, state: Mapping[str, Tensor], blended: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        """W_in (r, in), W_out (out, r), biases, and K (r, 1, …)."""
        total: dict[str, Tensor] = {}
        for piece, slices in zip(self.pieces, blended, strict=True):
            rows = _folded(self._fitted(piece, slices), self.width)
            total[piece.role] = total[piece.role] + rows if piece.role in total else rows
        results = [total["entry"], total["exit"].t()]
        results += [state[name] for name in ("bias_in", "bias_out") if name in state]
        return (*results, total["kernel"]) if "kernel" in total else tuple(results)

    def _gains(self, role: str, like: Tensor) -> nn.Parameter:
        return random_values(like, sum(len(p.sources) * p.units.count for p in self.pieces if p.role == role))

    def _fitted(self, piece: _Piece, slices: Tensor) -> Tensor:
        """Rows, as long as those of the removed block."""
        rows = piece.rows(slices)
        return rows if piece.role == "kernel" else _fit(rows, self.features[0 if piece.role == "entry" else 1])

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
                if piece.role == role
                for source in piece.sources
            ]
            typical = length([gains]) / math.sqrt(len(gains))
            gains.mul_(0.0 if zero_init and role == "exit" else ratio(wanted[role], typical * length(rows)))


class ThinWeights(Synthesis):
    """The weights of a thin layer of the same sizes as parameters of its own: the control that synthesis is held to.

    Normal at random, with rows as long as in the removed block.

    Args:
        shape: the sizes of the layer.
        form: layouts of the removed block's weights.
        removed: its weights, as for `ThinSynthesis`.
    """

    def __init__(self, shape: ThinShape, form: ThinForms, removed: Sequence[Tensor]) -> None:
        super().__init__(train_neighbours=True)
        self.width = width = shape.width
        rows, like = _rows(removed, form), removed[0]
        columns, features = rows["entry"][0].shape[1], rows["exit"][0].shape[1]
        self.weight_in = random_values(like, width, columns)
        self.weight_out = random_values(like, features, width)
        self.bias_in = nn.Parameter(like.new_zeros(width)) if shape.bias_in else None
        self.bias_out = nn.Parameter(like.new_zeros(features)) if shape.bias_out else None
        self.kernel = random_values(like, width, 1, *rows["kernel"][0].shape[2:]) if rows["kernel"] else None
        if not like.is_meta:
            with torch.no_grad():
                for weight, wanted in zip(
                    (self.weight_in, self.weight_out, self.kernel), _wanted_sizes(rows, width).values(), strict=True
                ):
                    if weight is not None:
                        silent = shape.zero_init and weight is self.weight_out
                        weight.mul_(0.0 if silent else ratio(wanted, length([weight])))

    @property
    def names(self) -> tuple[str, ...]:
        """The weights that `synthesise` returns, in order."""
        return _names({"bias_in": self.bias_in, "bias_out": self.bias_out, "kernel": self.kernel})

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The weights themselves."""
        return tuple(getattr(self, name) for name in self.names)


def _names(optional: dict[str, Tensor | None]) -> tuple[str, ...]:
    return ("weight_in", "weight_out", *(name for name, value in optional.items() if value is not None))


def _pieces(forms: Sequence[ThinForms], given: Sequence[Tensor], width: int) -> tuple[_Piece, ...]:
    """The slice that is blended: the first `width` units of a weight, or all where a group sees or reaches a part."""
    listed = [
        (role, one)
        for form in forms
        for role, some in (("entry", form.entry), ("exit", form.exit), ("kernel", form.spatial))
        for one in some
    ]
    half = len(listed) // len(forms)
    made = []
    for at in range(half):
        sources = [at + half * block for block in range(len(forms))]
        kinds = {(listed[source], given[source].shape) for source in sources}
        for some in [tuple(sources)] if len(kinds) == 1 else [(source,) for source in sources]:
            role, form = listed[some[0]]
            axis = int((role == "exit") != form.transposed)
            size = given[some[0]].shape[axis]
            count = size if form.groups > 1 and role != "kernel" else min(size, width)
            made.append(_Piece(role, form, WeightSlice(axis, 0, count), some))
    return tuple(made)


def _rows(weights: Sequence[Tensor], form: ThinForms) -> dict[str, list[Tensor]]:
    """Entry rows, exit columns as rows, and kernels of all units of one block's weights, by role."""
    pieces = _pieces([form], weights, max(max(weight.shape) for weight in weights))
    roles: dict[str, list[Tensor]] = {role: [] for role in _GAINS}
    for piece, weight in zip(pieces, weights, strict=True):
        roles[piece.role].append(piece.rows(weight))
    return roles


def _fit(rows: Tensor, size: int) -> Tensor:
    """Rows of a given length: longer ones folded, column j onto column j mod size; shorter ones repeated."""
    have = rows.shape[1]
    if have == size:
        return rows
    times = -(-max(have, size) // min(have, size))
    if have < size:
        return rows.repeat(1, times)[:, :size]
    padded = torch.cat([rows, rows.new_zeros(rows.shape[0], times * size - have)], 1)
    return padded.reshape(rows.shape[0], times, size).sum(1)


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
