"""One thin branch that keeps a single value for the backward pass: its normalised input.

    n = (x - mean) / deviation          layer norm; x / root mean square for RMS norm; x itself where there is no norm
    y = W_out act(W_in n + b_in) + b_out

Written as ordinary operators, autograd keeps x for the norm, n for the first product, and the thin values on both sides
of the activation. The backward pass of a norm needs only n and the deviation, and the thin values cost less to compute
again than to keep: r / (4 d) of a transformer block's products. Under autocast n is kept in the lower precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LeanBranch(nn.Module):
    """Norm without parameters, a product to r features, an activation, and a product back.

    The norm's own scale and shift belong in W_in and b_in. Where no gradient is asked for, and in compiled and exported
    graphs, the same runs as ordinary operators.

    Args:
        norm: `layer`, `rms` or `none`.
        eps: the norm's.
        activation: an elementwise function without parameters, or None.
    """

    def __init__(self, norm: str, eps: float, activation: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.norm = norm
        self.eps = eps
        self.activation = activation

    def forward(
        self, x: Tensor, weight_in: Tensor, weight_out: Tensor, bias_in: Tensor | None, bias_out: Tensor | None
    ) -> Tensor:
        """Map x (…, d) to the same shape, by W_in (r, d) and W_out (d, r)."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            thin = self.activated(F.linear(self.normalised(x)[0], weight_in, bias_in))
            return F.linear(thin, weight_out, bias_out)
        kind = _compute_dtype(x)
        cast = [None if tensor is None else tensor.to(kind) for tensor in (weight_in, weight_out, bias_in, bias_out)]
        made: Tensor = _Lean.apply(self, x, *cast)  # type: ignore[no-untyped-call]
        return made

    def normalised(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The normalised input, and one over the deviation of each row."""
        if self.norm == "layer":
            normalised, _, rescale = torch.ops.aten.native_layer_norm(x, (x.shape[-1],), None, None, self.eps)
            return normalised, rescale
        if self.norm == "rms":
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            rescale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
            return (wide * rescale).to(x.dtype), rescale
        return x, None

    def activated(self, thin: Tensor) -> Tensor:
        """Apply the activation."""
        return thin if self.activation is None else self.activation(thin)

    def extra_repr(self) -> str:
        """What it does, in a line."""
        shown = getattr(self.activation, "__name__", type(self.activation).__name__) if self.activation else "none"
        return f"norm={self.norm}, activation={shown}"


class _Lean(torch.autograd.Function):
    """Keeps the normalised input and the weights; computes the thin values again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        branch: LeanBranch,
        x: Tensor,
        weight_in: Tensor,
        weight_out: Tensor,
        bias_in: Tensor | None,
        bias_out: Tensor | None,
    ) -> Tensor:
        normalised, rescale = branch.normalised(x)
        kept = normalised.to(weight_in.dtype)
        ctx.save_for_backward(kept, rescale, weight_in, weight_out, bias_in)
        ctx.branch, ctx.dtype = branch, x.dtype
        return F.linear(branch.activated(F.linear(kept, weight_in, bias_in)), weight_out, bias_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, rescale, weight_in, weight_out, bias_in = ctx.saved_tensors
        branch: LeanBranch = ctx.branch
        with torch.enable_grad():
            thin = F.linear(kept, weight_in, bias_in).detach().requires_grad_()
            # Activations that write to their argument must not write to a leaf.
            activated = branch.activated(thin.clone())
        rows = gradient.reshape(-1, gradient.shape[-1])
        (to_thin,) = torch.autograd.grad(activated, thin, gradient @ weight_out)
        thin_rows = to_thin.reshape(-1, to_thin.shape[-1])
        needs = ctx.needs_input_grad
        return (
            None,
            _through_norm(branch, to_thin, weight_in, kept, rescale).to(ctx.dtype) if needs[1] else None,
            thin_rows.t() @ kept.reshape(-1, kept.shape[-1]) if needs[2] else None,
            rows.t() @ activated.detach().reshape(-1, activated.shape[-1]) if needs[3] else None,
            thin_rows.sum(0) if needs[4] else None,
            rows.sum(0) if needs[5] else None,
        )


def _through_norm(
    branch: LeanBranch, to_thin: Tensor, weight_in: Tensor, kept: Tensor, rescale: Tensor | None
) -> Tensor:
    """The gradient of x.

    The gradient of a norm at x is that at n, where mean and deviation are 0 and 1, times one over the deviation at x;
    which is cheaper to multiply into the thin rows.
    """
    if rescale is None:
        return to_thin @ weight_in
    toward = (to_thin * rescale.to(to_thin.dtype)) @ weight_in
    if branch.norm == "rms":
        wide, n = toward.float(), kept.float()
        if kept.dtype == torch.float64:
            wide, n = toward, kept
        return wide - n * (wide * n).mean(-1, keepdim=True)
    toward, n = (toward, kept) if kept.dtype == torch.float64 else (toward.float(), kept.float())
    return toward - toward.mean(-1, keepdim=True) - n * (toward * n).mean(-1, keepdim=True)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The precision that autocast gives a product here."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.is_floating_point() else x.dtype
