"""The distance of values from those of the original, as a share of their variance."""

from __future__ import annotations

import torch
from torch import Tensor


class Distance:
    """Sums over values and those of the original.

    Args:
        axis: of the channels, whose means are taken apart.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._squares = 0.0
        # By the number of channels, as several streams may have several.
        self._moments: dict[int, tuple[int, Tensor, Tensor]] = {}

    def add(self, ours: Tensor, wanted: Tensor) -> None:
        """Add a batch; both are of one shape."""
        rows = wanted.double().movedim(self.axis, -1).flatten(0, -2)
        self._squares += float((ours.double() - wanted.double()).square().sum())
        zeros = rows.new_zeros(rows.shape[1])
        count, total, squares = self._moments.get(rows.shape[1], (0, zeros, zeros))
        self._moments[rows.shape[1]] = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)

    @property
    def variance(self) -> float:
        """The sum of squares of the original's values, less the means of channels."""
        found = (squares - total.square() / count for count, total, squares in self._moments.values())
        return float(sum((one.sum() for one in found), torch.zeros(())))

    @property
    def share(self) -> float:
        """The mean squared distance by the variance."""
        return self._squares / self.variance if self.variance > 0 else 0.0
