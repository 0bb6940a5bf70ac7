"""Statistics of channels: those of batch norms of a surrogate's own, and the distance of values from the original's.

Such a norm is fresh: in evaluation mode it would compute with a mean of 0 and a variance of 1, in training mode with
those of the batch, and what is fitted in one mode would be wrong in the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from repl_fx.graph.captured import called_module


class ChannelStatistics:
    """Mean and variance of each channel of values.

    Args:
        axis: of the channels.
    """

    def __init__(self, axis: int = 1) -> None:
        self._axis, self._count, self._batches = axis, 0, 0
        self._sum, self._squares = torch.zeros(()), torch.zeros(())

    def add(self, value: Tensor) -> None:
        """Add a batch."""
        rows = value.double().movedim(self._axis, -1).flatten(0, -2)
        self._count, self._batches = self._count + len(rows), self._batches + 1
        self._sum = self._sum.to(rows) + rows.sum(0)
        self._squares = self._squares.to(rows) + rows.square().sum(0)

    @property
    def scatter(self) -> Tensor:
        """The sum of squares of each channel, less its mean."""
        return self._squares - self._sum.square() / self._count

    def set_(self, norm: nn.Module) -> None:
        """Set the running statistics of a batch norm, with the variance of a sample, as in training."""
        mean = self._sum / self._count
        spread = self.scatter / max(1, self._count - 1)
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(spread.clamp(min=0))
        # An average of all batches goes on from it.
        norm.get_buffer("num_batches_tracked").fill_(self._batches)


def is_batch_norm(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node calls a batch norm that has running statistics."""
    module = called_module(gm, node)
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


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
