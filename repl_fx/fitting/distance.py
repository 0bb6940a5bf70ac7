"""The distance of values from those of the original, as a share of their variance."""

from __future__ import annotations

import torch
from torch import Tensor

from repl_fx.fitting.norm_statistics import ChannelStatistics


class Distance:
    """Sums over values and those of the original.

    Args:
        axis: of the channels, whose means are taken apart.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._squares = 0.0
        # By the number of channels, as several streams may have several.
        self._channels: dict[int, ChannelStatistics] = {}

    def add(self, ours: Tensor, wanted: Tensor) -> None:
        """Add a batch; both are of one shape."""
        self._squares += float((ours.double() - wanted.double()).square().sum())
        self._channels.setdefault(wanted.shape[self.axis], ChannelStatistics(self.axis)).add(wanted)

    @property
    def variance(self) -> float:
        """The sum of squares of the original's values, less the means of channels."""
        return float(sum((one.scatter.sum() for one in self._channels.values()), torch.zeros(())))

    @property
    def share(self) -> float:
        """The mean squared distance by the variance."""
        return self._squares / self.variance if self.variance > 0 else 0.0
