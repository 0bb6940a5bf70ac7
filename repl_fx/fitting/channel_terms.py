"""Fit numbers that each act on one channel of the stream: gains of the last layer's units, scale and shift of a norm.

    y_c = v_c + sum over s of theta_sc f_sc        v: with all of them zero;  f_s: with those of term s one, less v

So the features of all channels are seen at once, one more run of the piece for each term, and the equations are small:
those of a channel are its own, but for numbers that all channels share (`blend` with `per=tensor`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx.fitting.pieces import Piece, axis_of_first, close, drawn
from repl_fx.fitting.solving import least_squares
from repl_fx.surrogates.shared.fitted_starts import ChannelTerms


class ChannelFit:
    """Sums for the fit of channel terms.

    Args:
        gm: a rewritten graph.
        node: the call of the module that has the parameters.
        start: the terms.
        point: the node whose value is fitted.

    Attributes:
        axis: of the channels at the point; known once it was found to be affine.
        rows: how many positions there were.
        features: of one row, for the choice of a ridge.
    """

    def __init__(self, gm: fx.GraphModule, node: fx.Node, start: ChannelTerms, point: fx.Node) -> None:
        self.terms, self.silent = start.terms, start.silent
        self.piece = Piece(gm, [node], point)
        self._node = node
        self.rows, self.axis = 0, 1
        self.features = len(self.terms)
        self._channels = max(term.count for term in self.terms)
        # The numbers of each term, in the piece.
        self._parts = [self.piece.parameter(node, t.parameter)[t.start : t.start + t.count] for t in self.terms]
        self._places = self._numbered()
        self.start = torch.cat(self._parts)
        self._set(torch.zeros_like(self.start))
        size = int(self._places.max()) + 1
        self._matrix = self.start.new_zeros(size, size)
        self._right = self.start.new_zeros(size)

    @property
    def numbers(self) -> int:
        """The number of fitted values."""
        return len(self.start)

    def affine(self, values: Mapping[fx.Node, Any]) -> bool:
        """Tell whether the value at the point is as this module says, on some values; finds the axis of channels."""
        at_zero = self.piece(values)
        axis = self._axis(values, at_zero)
        if axis is None:
            return False
        self.axis = axis
        theta = drawn(self.start)
        features = self._features(values, at_zero)
        expected = torch.einsum("cs,scn->cn", theta[self._places], features)
        for sign in (1, -1):
            change = self._by_channel(self._change(values, at_zero, sign * theta))
            if not close(change[: self._channels], sign * expected, at_zero) or bool(change[self._channels :].any()):
                return False
        return True

    def add(self, values: Mapping[fx.Node, Any], wanted: Tensor) -> None:
        """Add a batch.

        Args:
            values: of the nodes that the piece reads.
            wanted: the value at the point in the original.
        """
        at_zero = self.piece(values)
        left = self._by_channel(wanted.double() - at_zero)
        features = self._features(values, at_zero)
        left = left[: self._channels]
        self.rows += left.shape[1]
        pairs = self._places[:, :, None], self._places[:, None, :]
        self._matrix.index_put_(pairs, torch.einsum("scn,tcn->cst", features, features), accumulate=True)
        self._right.index_put_((self._places,), torch.einsum("scn,cn->cs", features, left), accumulate=True)

    def solve(self, ridge: float) -> dict[str, Tensor]:
        """The parameters that are fitted, by path in the module."""
        self._set(least_squares(self._matrix, self._right, ridge, None if self.silent else self.start))
        names = dict.fromkeys(term.parameter for term in self.terms)
        return {name: self.piece.parameter(self._node, name).clone() for name in names}

    def _numbered(self) -> Tensor:
        """The place in theta of each term's number for each channel, (C, S)."""
        columns, begin = [], 0
        for term in self.terms:
            one = torch.arange(term.count) + begin
            columns.append(one.expand(self._channels) if term.count == 1 else one)
            begin += term.count
        return torch.stack(columns, 1).to(self._parts[0].device)

    def _set(self, theta: Tensor) -> None:
        for part, numbers in zip(self._parts, torch.split(theta, [term.count for term in self.terms]), strict=True):
            part.copy_(numbers)

    def _features(self, values: Mapping[fx.Node, Any], at_zero: Tensor) -> Tensor:
        """(S, C, N)."""
        each = (self._change(values, at_zero, self._ones(places)) for places in self._places.t())
        return torch.stack([self._by_channel(change)[: self._channels] for change in each])

    def _ones(self, places: Tensor) -> Tensor:
        return torch.zeros_like(self.start).index_fill(0, places, 1)

    def _change(self, values: Mapping[fx.Node, Any], at_zero: Tensor, theta: Tensor) -> Tensor:
        """The change of the value at the point by some numbers."""
        self._set(theta)
        found = self.piece(values)
        self._set(torch.zeros_like(theta))
        return found - at_zero

    def _by_channel(self, value: Tensor) -> Tensor:
        """(C, N); one row where numbers are for all channels."""
        return value.reshape(1, -1) if self._channels == 1 else value.movedim(self.axis, 0).flatten(1)

    def _axis(self, values: Mapping[fx.Node, Any], at_zero: Tensor) -> int | None:
        """The axis along which the first of a term's numbers moves the first value alone; None where there is none."""
        if self._channels == 1:
            return self.axis
        for term, first in zip(self.terms, self._places[0], strict=True):
            if term.count == 1:
                continue
            moved = self._change(values, at_zero, self._ones(first))
            axis = axis_of_first(moved)
            if axis is not None and moved.shape[axis] >= self._channels:
                return axis
        return None
