"""Children whose forward changes state: buffers in every manner, and Python attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Stateful(nn.Module):
    """What all of them share: a mean for each channel.

    Args:
        width: number of channels.
        channel: the dimension that holds them.
    """

    m: Tensor

    def __init__(self, width: int, channel: int) -> None:
        super().__init__()
        self.channel = channel
        self.register_buffer("m", torch.zeros(width))

    def stats(self, x: Tensor) -> Tensor:
        """The mean of each channel, (width,), cut off from the gradient."""
        others = [d for d in range(x.ndim) if d != self.channel % x.ndim]
        return x.detach().to(self.m.dtype).mean(others)

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        """Values of the channels, in a shape that adds to `x`."""
        shape = [1] * x.ndim
        shape[self.channel] = -1
        return values.view(shape).to(x.dtype)


class EmaAlways(Stateful):
    """A mean that moves in both modes, by reassigning the buffer."""

    def forward(self, x: Tensor) -> Tensor:
        self.m = 0.9 * self.m + 0.1 * self.stats(x)
        return x - self.spread(self.m, x)


class EmaTraining(Stateful):
    """A mean that moves in training alone, without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.m = 0.9 * self.m + 0.1 * self.stats(x)
        return x - self.spread(self.m, x)


class EmaUnused(Stateful):
    """A mean that nobody reads in the forward."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.m = torch.lerp(self.m, self.stats(x), 0.1)
        return x


class BufferInPlace(Stateful):
    """A mean that is changed in place."""

    def forward(self, x: Tensor) -> Tensor:
        self.m.mul_(0.9).add_(self.stats(x), alpha=0.1)
        return x + 0.5 * self.spread(self.m, x)


class BufferCopied(Stateful):
    """A buffer that is read, then overwritten, then read again."""

    def forward(self, x: Tensor) -> Tensor:
        before = self.m.clone()
        self.m.copy_(self.stats(x))
        return x + self.spread(self.m - before, x)


class BufferWindow(Stateful):
    """A ring of the last means, written by index."""

    ring: Tensor

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.register_buffer("ring", torch.zeros(3, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.ring = torch.cat([self.ring[1:], self.stats(x)[None]])
        self.m[:1] = self.ring[0, :1]
        return x - self.spread(self.ring.mean(0) + self.m, x)


class CounterBuffer(Stateful):
    """An integer buffer that counts batches and sets a scale."""

    num_batches: Tensor

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.register_buffer("num_batches", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches += 1
        return x / (1 + self.num_batches)


class Centred(nn.Module):
    """A child that holds a buffer which its grandparent assigns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))


class GrandchildBuffer(Stateful):
    """A forward that assigns a buffer of another module's."""

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.child = nn.ModuleDict({"inner": Centred(width)})

    def forward(self, x: Tensor) -> Tensor:
        inner: Any = self.child["inner"]
        inner.centre = 0.5 * inner.centre + 0.5 * self.stats(x)
        return x - self.spread(inner.centre, x)


class QueueBuffer(Stateful):
    """A mean that is assigned twice in one forward."""

    def forward(self, x: Tensor) -> Tensor:
        self.m = self.m + self.stats(x)
        y = x - self.spread(self.m, x)
        self.m = self.m * 0.5
        return y + self.spread(self.m, x)


class CountUsed(Stateful):
    """A Python number that changes the result."""

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.k = 0

    def forward(self, x: Tensor) -> Tensor:
        self.k += 1
        return x / self.k


class CountUnused(Stateful):
    """A Python number that changes nothing."""

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class ListGrows(Stateful):
    """A list whose length changes the result."""

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.ndim)
        return x + 0.1 * len(self.seen)


class DictRemembers(Stateful):
    """A dict of tensors that the next forward reads."""

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.memory: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        last = self.memory.get("last")
        self.memory["last"] = self.stats(x)
        return x if last is None else x - self.spread(last, x)


class PlainTensor(Stateful):
    """A tensor in a plain attribute, which the next forward reads."""

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.last = torch.zeros(width)

    def forward(self, x: Tensor) -> Tensor:
        y = x - self.spread(self.last, x)
        self.last = self.stats(x)
        return y


class PlainTensorInPlace(Stateful):
    """A tensor in a plain attribute, changed in place."""

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.last = torch.zeros(width)

    def forward(self, x: Tensor) -> Tensor:
        self.last.mul_(0.5).add_(self.stats(x))
        return x - self.spread(self.last, x)


class Toggle(Stateful):
    """A flag that turns at each call."""

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.on = False

    def forward(self, x: Tensor) -> Tensor:
        self.on = not self.on
        return 2 * x if self.on else x


class CachedShape(Stateful):
    """A shape and a table that are kept, and give the same result as without."""

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.shape: tuple[int, ...] | None = None
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != tuple(x.shape[1:]):
            self.shape = tuple(x.shape[1:])
            self.table = torch.arange(x.shape[self.channel], dtype=x.dtype, device=x.device) / 10
        assert self.table is not None
        return x + self.spread(self.table, x)


class KeepsActivation(Stateful):
    """The last activation, kept for people to look at."""

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.activation: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.activation = x.detach()
        return x


class FrozenScale(Stateful):
    """A scale that the first training step fixes, by a flag in a buffer."""

    started: Tensor

    def __init__(self, width: int, channel: int) -> None:
        super().__init__(width, channel)
        self.register_buffer("started", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.m.copy_(torch.where(self.started, self.m, self.stats(x)))
                self.started.fill_(True)
        return x - self.spread(self.m, x)


KINDS: dict[str, type[Stateful]] = {
    "ema_always": EmaAlways,
    "ema_training": EmaTraining,
    "ema_unused": EmaUnused,
    "buffer_in_place": BufferInPlace,
    "buffer_copied": BufferCopied,
    "buffer_window": BufferWindow,
    "counter_buffer": CounterBuffer,
    "grandchild_buffer": GrandchildBuffer,
    "buffer_twice": QueueBuffer,
    "count_used": CountUsed,
    "count_unused": CountUnused,
    "list_grows": ListGrows,
    "dict_remembers": DictRemembers,
    "plain_tensor": PlainTensor,
    "plain_tensor_in_place": PlainTensorInPlace,
    "toggle": Toggle,
    "cached_shape": CachedShape,
    "keeps_activation": KeepsActivation,
    "frozen_scale": FrozenScale,
}
