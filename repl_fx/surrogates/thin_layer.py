"""The weights of one thin layer, synthesised from those of the neighbours (see `repl_fx.surrogates.bottleneck`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repl_fx.surrogates.registry import random_gains
from repl_fx.surrogates.synthesis import Synthesis


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
        entry, exit: of the mixers that the branch begins and ends with.
        spatial: of the convolution whose kernel is kept; empty where there is none.
    """

    entry: tuple[WeightForm, ...]
    exit: tuple[WeightForm, ...]
    spatial: tuple[WeightForm, ...]

    @property
    def count(self) -> int:
        """Number of weights."""
        return len(self.entry) + len(self.exit) + len(self.spatial)


class ThinSynthesis(Synthesis):
    """W_in, W_out, biases and the depthwise kernel of one thin layer.

    Args:
        width: r.
        forms: layouts of the weights, of the block before, of the block after and of the removed block.
        given: the weights, entry, exit and spatial ones, of the block before and then of the block after; they
            size the gains.
        own: the same weights of the removed block, which give the scale, and the sizes to which those of neighbours
            with other channel counts are fitted.
        bias_in, bias_out: whether the layer adds biases.
        train_neighbours: see `Synthesis`.
    """

    def __init__(
        self,
        width: int,
        forms: Sequence[ThinForms],
        given: Sequence[Tensor],
        own: Sequence[Tensor],
        *,
        bias_in: bool,
        bias_out: bool,
        train_neighbours: bool,
    ) -> None:
        super().__init__(train_neighbours)
        self.width = width
        self.forms = tuple(forms[:-1])
        own_rows = _rows(own, forms[-1:])
        self.features = own_rows.entry[0].shape[1], own_rows.exit[0].shape[1]
        rows = self._fitted(given)
        like = given[0]
        self.gain_in = random_gains(_count(rows.entry), like)
        self.gain_out = random_gains(_count(rows.exit), like)
        self.gain_kernel = random_gains(_count(rows.kernels), like) if rows.kernels else None
        self.bias_in = nn.Parameter(like.new_zeros(width)) if bias_in else None
        self.bias_out = nn.Parameter(like.new_zeros(self.features[1])) if bias_out else None
        if not like.is_meta:
            self._match_scale(rows, own_rows)

    @property
    def names(self) -> tuple[str, ...]:
        """What `synthesise` returns, in order."""
        return _names({"bias_in": self.bias_in, "bias_out": self.bias_out, "kernel": self.gain_kernel})

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """Neighbours' weights, in the order of `given`, to the thin layer's: (r, in), (out, r), …."""
        rows = self._fitted([self.given(weight) for weight in weights])
        results = [_mixed(self.gain_in, rows.entry, self.width), _mixed(self.gain_out, rows.exit, self.width).t()]
        results += [bias for bias in (self.bias_in, self.bias_out) if bias is not None]
        if self.gain_kernel is not None:
            results.append(_mixed(self.gain_kernel, rows.kernels, self.width))
        return tuple(results)

    def _fitted(self, weights: Sequence[Tensor]) -> Rows:
        """The rows of the neighbours' weights, as long as those of the removed block."""
        rows = _rows(weights, self.forms)
        return Rows(
            [_fit(piece, self.features[0]) for piece in rows.entry],
            [_fit(piece, self.features[1]) for piece in rows.exit],
            rows.kernels,
        )

    @torch.no_grad()
    def _match_scale(self, rows: Rows, own: Rows) -> None:
        """Scale the gains so that rows of the synthesised weights are as long as those of the weights they replace.

        Random gains make the rows of a group independent, so the expected square of a sum is the sum of squares; adding
        the rows up instead would cost as much as all the rest of a transform.
        """
        entry, end, kernel = _wanted_sizes(own, self.width)
        self.gain_in.mul_(_ratio(entry, _expected_size(self.gain_in, rows.entry)))
        self.gain_out.mul_(_ratio(end, _expected_size(self.gain_out, rows.exit)))
        if self.gain_kernel is not None:
            self.gain_kernel.mul_(_ratio(kernel, _expected_size(self.gain_kernel, rows.kernels)))


class ThinWeights(Synthesis):
    """The weights of a thin layer of the same sizes as parameters of its own: the control that synthesis is held to.

    Normal at random, with rows as long as in the removed block.

    Args:
        width: r.
        form: layouts of the removed block's weights.
        own: its weights, as for `ThinSynthesis`.
        bias_in, bias_out: whether the layer adds biases.
    """

    def __init__(self, width: int, form: ThinForms, own: Sequence[Tensor], *, bias_in: bool, bias_out: bool) -> None:
        super().__init__(train_neighbours=True)
        self.width = width
        rows, like = _rows(own, (form,)), own[0]
        columns, features = rows.entry[0].shape[1], rows.exit[0].shape[1]
        self.weight_in = _random(like, width, columns)
        self.weight_out = _random(like, features, width)
        self.bias_in = nn.Parameter(like.new_zeros(width)) if bias_in else None
        self.bias_out = nn.Parameter(like.new_zeros(features)) if bias_out else None
        self.kernel = _random(like, width, 1, *rows.kernels[0].shape[2:]) if rows.kernels else None
        if not like.is_meta:
            with torch.no_grad():
                for weight, wanted in zip(
                    (self.weight_in, self.weight_out, self.kernel), _wanted_sizes(rows, width), strict=True
                ):
                    if weight is not None:
                        weight.mul_(_ratio(wanted, _size([weight])))

    @property
    def names(self) -> tuple[str, ...]:
        """What `synthesise` returns, in order."""
        return _names({"bias_in": self.bias_in, "bias_out": self.bias_out, "kernel": self.kernel})

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The weights themselves."""
        return tuple(getattr(self, name) for name in self.names)


def _names(optional: dict[str, Tensor | None]) -> tuple[str, ...]:
    return ("weight_in", "weight_out", *(name for name, value in optional.items() if value is not None))


def _random(like: Tensor, *sizes: int) -> nn.Parameter:
    """Standard normal values, the same on every device for the same seed."""
    return nn.Parameter(random_gains(math.prod(sizes), like).detach().reshape(sizes))


@dataclass(frozen=True)
class Rows:
    """Entry rows, exit columns as rows, and spatial kernels, one tensor for each weight."""

    entry: list[Tensor]
    exit: list[Tensor]
    kernels: list[Tensor]


def _rows(weights: Sequence[Tensor], forms: Sequence[ThinForms]) -> Rows:
    """The rows of the weights of several blocks, one form for each block."""
    rows = Rows([], [], [])
    pending = iter(weights)
    for form in forms:
        rows.entry.extend(one.pointwise(next(pending)) for one in form.entry)
        rows.exit.extend(one.pointwise(next(pending)).t() for one in form.exit)
        rows.kernels.extend(next(pending).mean(1, keepdim=True) for _ in form.spatial)
    return rows


def _fit(rows: Tensor, length: int) -> Tensor:
    """Rows of a given length: longer ones folded, column j onto column j mod length; shorter ones repeated."""
    have = rows.shape[1]
    if have == length:
        return rows
    times = -(-max(have, length) // min(have, length))
    if have < length:
        return rows.repeat(1, times)[:, :length]
    padded = torch.cat([rows, rows.new_zeros(rows.shape[0], times * length - have)], 1)
    return padded.reshape(rows.shape[0], times, length).sum(1)


def _count(rows: Sequence[Tensor]) -> int:
    return sum(piece.shape[0] for piece in rows)


def _mixed(gains: Tensor, rows: Sequence[Tensor], width: int) -> Tensor:
    """Sum the rows i = j mod width of every tensor, each times its gain, into row j.

    Tensor by tensor: stacking them first would keep a copy of the neighbours' weights for the backward pass.
    """
    total: Tensor | None = None
    for gain, piece in zip(torch.split(gains, [p.shape[0] for p in rows]), rows, strict=True):
        scaled = gain.reshape(-1, *[1] * (piece.ndim - 1)) * piece
        rest = -scaled.shape[0] % width
        if rest:
            scaled = torch.cat([scaled, scaled.new_zeros(rest, *scaled.shape[1:])])
        grouped = scaled.reshape(-1, width, *scaled.shape[1:]).sum(0)
        total = grouped if total is None else total + grouped
    assert total is not None
    return total


def _size(pieces: Sequence[Tensor]) -> float:
    """The Frobenius norm of several tensors together, in at least single precision."""
    kind = torch.promote_types(pieces[0].dtype, torch.float32)
    return math.hypot(*(float(torch.linalg.vector_norm(piece, dtype=kind)) for piece in pieces))


def _expected_size(gains: Tensor, rows: Sequence[Tensor]) -> float:
    """The expected size of what `_mixed` makes of the rows."""
    parts = torch.split(gains, [piece.shape[0] for piece in rows])
    typical = (_size([gain]) / math.sqrt(len(gain)) for gain in parts)
    return math.hypot(*(gain * _size([piece]) for gain, piece in zip(typical, rows, strict=True)))


def _wanted_sizes(own: Rows, width: int) -> tuple[float, float, float]:
    """The sizes of W_in, W_out and K whose rows are as long as those of the weights they replace."""
    # The length of an average row: entry weights have their own number of rows, exit weights share theirs. A kernel of
    # length 1 keeps the energy of what it filters.
    return _size(own.entry) * math.sqrt(width / _count(own.entry)), _size(own.exit), math.sqrt(width)


def _ratio(wanted: float, found: float) -> float:
    # Weights that start at zero have no length to match.
    return wanted / found if wanted > 0 and found > 0 else 1.0
