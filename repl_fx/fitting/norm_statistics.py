"""Give batch norms of a surrogate's own the statistics of calibration data.

Such a norm is fresh: in evaluation mode it would compute with a mean of 0 and a variance of 1, in training mode with
those of the batch, and what is fitted in one mode would be wrong in the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn


class ChannelStatistics:
    """Mean and variance of each channel of values.

    Args:
        axis: of the channels.
    """

    def __init__(self, axis: int = 1) -> None:
        self._axis, self._count = axis, 0
        self._sum, self._squares = torch.zeros(()), torch.zeros(())

    def add(self, value: Tensor) -> None:
        """Add a batch."""
        rows = value.double().movedim(self._axis, -1).flatten(0, -2)
        self._count += len(rows)
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


def is_batch_norm(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node calls a batch norm that has running statistics."""
    if node.op != "call_module":
        return False
    module = gm.get_submodule(str(node.target))
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
