"""Fit the weight of a last layer, or gains of its columns, from moments of the values that it reads.

    y = v + T(W h + b)        T: what leads from the layer to the stream (a layout, a layer scale, windows to positions)

T^T T scales each value, by a number of its position times one of its channel: w_n c_i. Then all that is needed of the
data is

    H = sum of w_n h_n h_n^T        X = sum of (T^T e)_n h_n^T        e = y' - v,  h with a one behind it, for b

and least squares is  C W H = X,  with C the diagonal of c. Of gains g_k of the columns, W = sum over k of g_k V_k with
a column for each k, it is  A g = a:  A_kl = (V_k^T C V_l) H_kl,  a_k = V_k^T X_k.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from repl_fx.fitting.pieces import Piece, axis_of_first, close, drawn, in_double
from repl_fx.fitting.solving import Gram, least_squares
from repl_fx.graph.captured import attribute, called_module
from repl_fx.graph.roles import CONVOLUTIONS, LINEAR
from repl_fx.surrogates.shared.fitted_starts import LastLayer
from repl_fx.surrogates.shared.recompute import RecomputedAttention, RecomputedBranch

_CONVOLUTIONS = frozenset(CONVOLUTIONS.values())


class LayerFit:
    """Sums for the fit of a last layer.

    Args:
        gm: a rewritten graph.
        node: the call of the synthesis that makes the weight.
        start: which of its results, and of its parameters.
        point: the node whose value is fitted.

    Attributes:
        axis: of the channels at the point; known once it was found to be affine.
        rows: how many positions there were.
        features: of one row, for the choice of a ridge.
    """

    def __init__(self, gm: fx.GraphModule, node: fx.Node, start: LastLayer, point: fx.Node) -> None:
        layer = layer_of(gm, node, start)
        assert layer is not None  # the caller has asked
        self._gm, self._node, self._start, self.layer = gm, node, start, layer
        self._synthesis = gm.get_submodule(str(node.target))
        self.tail = Piece(gm, [layer], point, instead=True)
        self.axis = self._own_axis = 1 if layer.target in _CONVOLUTIONS else -1
        self.rows, self.features = 0, 0
        self._sums, self._x = Gram(), torch.zeros(0)
        # Of each channel; empty until it was found to be affine.
        self._scales = torch.zeros(0)

    @property
    def numbers(self) -> int:
        """The number of fitted values."""
        return sum(self._synthesis.get_parameter(name).numel() for name in self._start.parameters)

    def affine(self, values: Mapping[fx.Node, Any]) -> bool:
        """Tell whether T is linear, and T^T T scales values as this module says, on some values."""
        value = in_double(values[self.layer])
        probe = drawn(value)
        at_zero = self._behind(values, torch.zeros_like(value))
        change = self._behind(values, probe) - at_zero
        if not close(self._behind(values, -probe) - at_zero, -change, at_zero + change):
            return False
        scales = self._rows(self._back(values, self._behind(values, torch.ones_like(value)) - at_zero))
        first = torch.zeros_like(value)
        first.select(self._own_axis, 0).fill_(1)
        axis = axis_of_first(self._behind(values, first) - at_zero)
        channels, positions = scales.sum(0), scales.sum(1)
        if axis is None:
            return False
        self.axis = axis
        if not bool(channels.sum() > 0) or not close(torch.outer(positions, channels) / channels.sum(), scales, scales):
            return False
        before, self._scales = self._scales, channels / channels.mean()
        if len(before) and not close(self._scales, before, before):
            return False
        return close(self._rows(self._back(values, change)), scales * self._rows(probe), scales)

    def add(self, values: Mapping[fx.Node, Any], wanted: Tensor) -> None:
        """Add a batch.

        Args:
            values: of the layer, of what it reads, and of what the tail does.
            wanted: the value at the point in the original.
        """
        none = torch.zeros_like(in_double(values[self.layer]))
        at_zero = self._behind(values, none)
        left = wanted.double() - at_zero
        toward = self._rows(self._back(values, left))
        weights = self._rows(self._back(values, self._behind(values, none + 1) - at_zero)).mean(1)
        read = read_by(self._gm, self.layer, values).reshape(len(toward), -1)
        read = torch.cat([read, read.new_ones(len(read), 1)], 1)
        self.rows += int((weights > 0).sum())
        self._sums.add(read, weights)
        if not len(self._x):
            self._x = read.new_zeros(toward.shape[1], read.shape[1])
        self._x.addmm_(toward.t(), read)
        self.features = read.shape[1] - 1

    def solve(self, ridge: float) -> dict[str, Tensor]:
        """The parameters that are fitted, by path in the module."""
        return self._gains(ridge) if self._start.gains else self._whole(ridge)

    def _whole(self, ridge: float) -> dict[str, Tensor]:
        (_, weight), bias = self._start.weight, self._start.bias
        moments = self._sums.whole()
        size = len(moments) if bias else len(moments) - 1
        root = self._scales.sqrt()
        # In a basis of channels in which T is the same for all.
        right = torch.where(root > 0, self._x[:, :size].t() / root, 0)
        theta = least_squares(moments[:size, :size], right, ridge)
        matrix = torch.where(root > 0, theta / root, 0).t()
        own = self._synthesis.get_parameter(weight)
        matrix, shift = matrix[:, : len(moments) - 1], matrix[:, -1]
        fitted = {weight: matrix.t() if self._start.transposed else matrix.reshape(own.shape)}
        if bias:
            fitted[bias[1]] = shift.clone()
        return fitted

    def _gains(self, ridge: float) -> dict[str, Tensor]:
        (_, gains), bias = self._start.weight, self._start.bias
        which, columns, vectors = self._columns()
        moments = self._sums.whole()
        count = int(which.max()) + 1
        size = count + (len(self._x) if bias else 0)
        matrix, right = moments.new_zeros(size, size), moments.new_zeros(size)
        scaled = self._scales[:, None] * vectors
        pairs = (vectors.t() @ scaled) * moments[columns][:, columns]
        matrix.index_put_((which[:, None], which), pairs, accumulate=True)
        right.index_put_((which,), (vectors * self._x[:, columns]).sum(0), accumulate=True)
        if bias:
            crossed = moments.new_zeros(count, len(self._x)).index_add_(0, which, (scaled * moments[columns, -1]).t())
            matrix[:count, count:], matrix[count:, :count] = crossed, crossed.t()
            matrix[count:, count:] = (self._scales * moments[-1, -1]).diag()
            right[count:] = self._x[:, -1]
        theta = least_squares(matrix, right, ridge)
        return {gains: theta[:count], **({bias[1]: theta[count:]} if bias else {})}

    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gain, the column and the values (C) of each column that a gain of one makes; values are (C, q)."""
        (place, name), device = self._start.weight, self._x.device
        synthesis = copy.deepcopy(self._synthesis).double().requires_grad_(False)
        weights = [in_double(attribute(self._gm, str(n.target))) for n in self._node.all_input_nodes]
        gains = synthesis.get_parameter(name)
        which, columns, vectors = [], [], []
        for number in range(len(gains)):
            gains.zero_()[number] = 1
            weight = synthesis(*weights)[place].flatten(1)
            # A gain that makes nothing stays zero.
            for column in weight.any(0).nonzero().flatten().tolist() or [0]:
                which.append(number)
                columns.append(column)
                vectors.append(weight[:, column].clone())
        return torch.tensor(which, device=device), torch.tensor(columns, device=device), torch.stack(vectors, 1)

    def _behind(self, values: Mapping[fx.Node, Any], value: Tensor) -> Tensor:
        return self.tail({**values, self.layer: value})

    def _back(self, values: Mapping[fx.Node, Any], value: Tensor) -> Tensor:
        """T^T of a value at the point."""
        with torch.enable_grad():
            zeros = torch.zeros_like(in_double(values[self.layer])).requires_grad_()
            (back,) = torch.autograd.grad(self._behind(values, zeros), zeros, value)
        return back

    def _rows(self, value: Tensor) -> Tensor:
        return value.movedim(self._own_axis, -1).flatten(0, -2)


def layer_of(gm: fx.GraphModule, node: fx.Node, start: LastLayer) -> fx.Node | None:
    """The node that applies a weight that a synthesis makes; None where it is of no kind that tells what it reads."""
    reader = next(user for user in node.users if user.target is operator.getitem and user.args[1] == start.weight[0])
    while True:
        reader = min(reader.users)
        if reader.target is LINEAR or isinstance(called_module(gm, reader), RecomputedBranch | RecomputedAttention):
            return reader
        if reader.target in _CONVOLUTIONS:
            return reader if _can_be_laid_out(reader) else None
        if reader.op == "call_module" or len(reader.all_input_nodes) > 1:
            return None


def _can_be_laid_out(node: fx.Node) -> bool:
    """Tell whether the windows of a convolution can be laid out as rows."""
    weight: Any = node.args[1]
    kernel = tuple(int(size) for size in weight.meta["val"].shape[2:])
    groups: Any = node.args[6] if len(node.args) > 6 else 1
    return bool(groups == 1) and (len(kernel) == 2 or max(kernel) == 1)


def read_by(gm: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Any]) -> Tensor:
    """The values that a layer's weight is applied to, a row of them for each position, in double precision."""
    args: Any = in_double(fx.node.map_arg(node.args, values.__getitem__))
    x: Tensor = args[0]
    module: Any = called_module(gm, node)
    if module is not None:
        _, weight_in, _, bias_in, _, *given = args
        hidden: Tensor = module.hidden(x, weight_in, bias_in, *given)
        return hidden
    if node.target is LINEAR:
        return x
    kernel, settings = args[1].shape[2:], args[3:]
    if max(kernel) == 1:
        return x.movedim(1, -1)
    stride, padding, dilation = (*settings, *(1, 0, 1)[len(settings) :])[:3]
    return F.unfold(x, kernel, dilation, padding, stride).transpose(1, 2)
