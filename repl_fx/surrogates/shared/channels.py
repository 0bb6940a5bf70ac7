"""The first channels of a value, and the same value with others in their place, without a second value of full size.

    total, part = take_channels(total, r)          part = total[:, :r]
    …                                              part -> part
    total = put_channels(total, part)              total[:, :r] = part

With `relu`, what is taken has passed a ReLU, relu(total)[:, :r], and so does what is put, relu of total with part in
it: one ReLU over the whole value does for the blocks on both sides. The total is written to, so it has to be a value
that nothing else reads and that no operator keeps for its backward pass, such as a sum; `repl_fx.passes.write_in_place`
sees to that. As ordinary operators, the same would copy the total in the forward pass, keep the copy, and add a
gradient of full size, mostly zeros, in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repl_fx._torch import applied, runs_plainly

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def take_channels(total: Tensor, count: int, relu: bool) -> tuple[Tensor, Tensor]:
    """The total, for `put_channels` alone, and its first channels.

    Args:
        total: (batch, channels, …).
        count: how many are taken.
        relu: whether the channels that are taken pass a ReLU.
    """
    if _written(total):
        taken: tuple[Tensor, Tensor] = applied(_Take, total, count, relu)
        return taken
    part = total.narrow(1, 0, count)
    return total, F.relu(part) if relu else part


def put_channels(total: Tensor, part: Tensor, relu: bool) -> Tensor:
    """The total with other first channels.

    Args:
        total: from `take_channels`.
        part: (batch, count, …), in a precision of its own.
        relu: whether all of it passes a ReLU.
    """
    if _written(total):
        put: Tensor = applied(_Put, total, part, relu)
        return put
    count, part = part.shape[1], part.to(total.dtype)
    if torch.compiler.is_dynamo_compiling():
        # A part of the kernel before; Inductor writes a concatenation channels first, whatever the total's layout.
        whole = torch.slice_scatter(total, part, 1, 0, count)
    else:
        whole = torch.cat([part, total.narrow(1, count, total.shape[1] - count)], 1)
    return F.relu(whole) if relu else whole


def _written(total: Tensor) -> bool:
    """Tell whether a value may be written to: in eager mode, where it is no more than a tensor."""
    return runs_plainly() and type(total) is Tensor


def _layout(total: Tensor) -> torch.memory_format:
    """The layout of a few channels of a value.

    Channels last on a GPU: channels first, a batch norm's kernel gives each channel to a single group of threads, and
    of 4 channels most of the device is idle. (4 channels of 256 pictures of 56 x 56 in bfloat16 on an H200, both
    passes: 1.21 ms, channels last 0.29 ms.)
    """
    return _LAST.get(total.ndim, torch.preserve_format) if total.is_cuda else torch.preserve_format


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, count: int, relu: bool) -> tuple[Tensor, Tensor]:
        part = total.narrow(1, 0, count).clone(memory_format=_layout(total))
        if relu:
            part.relu_()
            ctx.save_for_backward(part)
        ctx.count, ctx.relu = count, relu
        # As it is written to later; returned as it is, it would count as a view of itself.
        ctx.mark_dirty(total)
        return total, part

    @staticmethod
    def backward(ctx: Any, toward: Tensor, toward_part: Tensor) -> tuple[Tensor, None, None]:
        # `_Put` made this gradient for here alone. What it has for the channels that were taken counts no more.
        if ctx.relu:
            (part,) = ctx.saved_tensors
            toward_part = torch.ops.aten.threshold_backward(toward_part, part, 0)
        if torch.is_grad_enabled():
            rest = toward.narrow(1, ctx.count, toward.shape[1] - ctx.count)
            return torch.cat([toward_part, rest], 1), None, None
        toward.narrow(1, 0, ctx.count).copy_(toward_part)
        return toward, None, None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, part: Tensor, relu: bool) -> Tensor:
        ctx.count, ctx.relu, ctx.dtype, ctx.layout = part.shape[1], relu, part.dtype, _layout(total)
        total.narrow(1, 0, ctx.count).copy_(part)
        if relu:
            total.relu_()
            ctx.save_for_backward(total)
        ctx.mark_dirty(total)
        return total

    @staticmethod
    def backward(ctx: Any, toward: Tensor) -> tuple[Tensor, Tensor, None]:
        if ctx.relu:
            (total,) = ctx.saved_tensors
            toward = torch.ops.aten.threshold_backward(toward, total, 0)
        else:
            # This tensor may be another value's gradient too.
            toward = toward.clone()
        return toward, toward.narrow(1, 0, ctx.count).to(ctx.dtype, copy=True, memory_format=ctx.layout), None
