"""Thin branches that keep a single value for the backward pass: their normalised input.

    n = (x - mean) / deviation          layer norm; x / root mean square for RMS norm; x itself where there is no norm
    y = W_out act(W_in n + b_in) + b_out                     RecomputedBranch
    y = W_out map (W_values n + b_values) + b_out            RecomputedAttention

Written as ordinary operators, autograd keeps x for the norm, n for the first product, and the thin values on both sides
of the activation or the map. The backward pass of a norm needs only n and the deviation, and the thin values cost less
to compute again than to keep: r / (4 d) of a transformer block's products. Under autocast n is kept in the lower
precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Normed(nn.Module):
    """A thin branch that begins with a norm over the last axis without parameters.

    Args:
        norm: `layer`, `rms` or `none`.
        eps: the norm's.
    """

    def __init__(self, norm: str, eps: float) -> None:
        super().__init__()
        self.norm = norm
        self.eps = eps

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


class RecomputedBranch(_Normed):
    """Norm without parameters, a product to r features, an activation, and a product back.

    The norm's own scale and shift belong in W_in and b_in. Where no gradient is asked for, and in compiled and exported
    graphs, the same runs as ordinary operators.

    Args:
        norm: `layer`, `rms` or `none`.
        eps: the norm's.
        activation: an elementwise function without parameters, or None.
    """

    def __init__(self, norm: str, eps: float, activation: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__(norm, eps)
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
        untyped: Any = _Recompute
        made: Tensor = untyped.apply(self, x, *cast)
        return made

    def activated(self, thin: Tensor) -> Tensor:
        """Apply the activation."""
        return thin if self.activation is None else self.activation(thin)

    def extra_repr(self) -> str:
        """The branch, in a line."""
        shown = getattr(self.activation, "__name__", type(self.activation).__name__) if self.activation else "none"
        return f"norm={self.norm}, activation={shown}"


@dataclass(frozen=True)
class MapForm:
    """How an attention map is given, and what it is applied to.

    Attributes:
        scaled: whether the map is given by queries and keys, for `scaled_dot_product_attention`; else as itself.
        causal, scale: settings of `scaled_dot_product_attention`.
        batch_first: whether x is (batch, positions, d), or what has the same order; else (positions, batch, d).
        dims: of the result, 2 or 3, where it has not as many as x.
    """

    scaled: bool
    causal: bool = False
    scale: float | None = None
    batch_first: bool = True
    dims: int | None = None


class RecomputedAttention(_Normed):
    """Norm without parameters, a product to the values of a few heads, an attention map made elsewhere, a product back.

        n = norm(x)
        y = W_out concat over heads (map_h (W_values n + b_values)_h) + b_out

    Of what it computes, n alone is kept for the backward pass: the values and what the map makes of them are computed
    again, as they are thin. Where no gradient is asked for, and in compiled and exported graphs, it is plain operators.

    Args:
        norm: `layer`, `rms` or `none`.
        eps: the norm's.
        heads: how many.
        form: how the map is given.
    """

    def __init__(self, norm: str, eps: float, heads: int, form: MapForm) -> None:
        super().__init__(norm, eps)
        self.heads = heads
        self.scaled = form.scaled
        self.causal = form.causal
        self.scale = form.scale
        self.batch_first = form.batch_first
        self.dims = form.dims

    def forward(
        self,
        x: Tensor,
        weight_values: Tensor,
        weight_out: Tensor,
        bias_values: Tensor | None,
        bias_out: Tensor | None,
        *given: Any,
    ) -> Tensor:
        """Map x (…, d) to (…, features).

        Args:
            x: the stream, with batch and positions in as many dimensions as it likes.
            weight_values: (heads * c, d).
            weight_out: (features, heads * c).
            bias_values, bias_out: (heads * c) and (features), or None.
            given: queries, keys (batch, heads, positions, c), a mask or None, and the probability of dropout; or the
                map (batch, heads, positions, positions).
        """
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return self.mixed(self.normalised(x)[0], weight_values, weight_out, bias_values, bias_out, *given)
        kind = _compute_dtype(x)
        *tensors, drop = given if self.scaled else (*given, 0.0)
        weights = (weight_values, weight_out, bias_values, bias_out)
        cast = [t.to(kind) if isinstance(t, Tensor) and t.is_floating_point() else t for t in (*weights, *tensors)]
        untyped: Any = _RecomputeMix
        made: Tensor = untyped.apply(self, drop, x, *cast)
        return made

    def mixed(
        self,
        n: Tensor,
        weight_values: Tensor,
        weight_out: Tensor,
        bias_values: Tensor | None,
        bias_out: Tensor | None,
        *given: Any,
    ) -> Tensor:
        """The computation behind the norm; see `forward`."""
        batch, width = given[0].shape[0], weight_values.shape[0]
        sizes = (batch, -1) if self.batch_first else (-1, batch)
        values = F.linear(n, weight_values, bias_values).reshape(*sizes, self.heads, width // self.heads)
        values = values.transpose(1, 2) if self.batch_first else values.permute(1, 2, 0, 3)
        if self.scaled:
            queries, keys, mask, dropout = given
            out = F.scaled_dot_product_attention(queries, keys, values, mask, dropout, self.causal, scale=self.scale)
        else:
            out = given[0] @ values.to(given[0].dtype)
        out = out.transpose(1, 2) if self.batch_first else out.permute(2, 0, 1, 3)
        if self.dims is None:
            out = out.reshape(*n.shape[:-1], width)
        else:
            out = out.flatten(-2) if self.dims == 3 else out.reshape(-1, width)
        return F.linear(out, weight_out, bias_out)

    def extra_repr(self) -> str:
        """The branch, in a line."""
        return f"norm={self.norm}, heads={self.heads}"


class _RecomputeMix(torch.autograd.Function):
    """Keeps the normalised input, the weights, and what makes the map; computes the rest again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, layer: RecomputedAttention, drop: float, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        normalised, rescale = layer.normalised(x)
        kept = normalised.to(weight.dtype)
        ctx.save_for_backward(kept, rescale, weight, *rest)
        ctx.layer, ctx.drop, ctx.dtype = layer, drop, x.dtype
        # The dropped elements are drawn again.
        ctx.drawn = _generator_state(x.device) if drop > 0 else None
        return _no_view(layer.mixed(kept, weight, *rest, *([drop] if layer.scaled else [])))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, rescale, *rest = ctx.saved_tensors
        layer: RecomputedAttention = ctx.layer
        needs = ctx.needs_input_grad[2:]
        leaves = [
            t.detach().requires_grad_(need) if isinstance(t, Tensor) and t.is_floating_point() else t
            for t, need in zip((kept, *rest), needs, strict=True)
        ]
        with torch.enable_grad(), _drawing_from(ctx.drawn, kept.device):
            made = layer.mixed(*leaves, *([ctx.drop] if layer.scaled else []))
        wanted = [t for t, need in zip(leaves, needs, strict=True) if need]
        found = iter(torch.autograd.grad(made, wanted, gradient))
        toward, *others = (next(found) if need else None for need in needs)
        if toward is not None:
            if rescale is not None:
                toward = _without_norm(layer, toward * rescale.to(toward.dtype), kept)
            toward = toward.to(ctx.dtype)
        return None, None, toward, *others


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _drawing_from(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """Draw as from a state that was kept, and leave the generator as it is."""
    if state is None:
        yield
        return
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        if cuda:
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield


class _Recompute(torch.autograd.Function):
    """Keeps the normalised input and the weights; computes the thin values again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        branch: RecomputedBranch,
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
        return _no_view(F.linear(branch.activated(F.linear(kept, weight_in, bias_in)), weight_out, bias_out))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, rescale, weight_in, weight_out, bias_in = ctx.saved_tensors
        branch: RecomputedBranch = ctx.branch
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


def _no_view(made: Tensor) -> Tensor:
    """A result as autograd takes it from a function that other code may write into.

    A product on more than two dimensions is a view of one on two, and what follows (`y += x`) may write into no view
    that was made inside a function of autograd's.
    """
    owned: Tensor = torch.ops.aten._unsafe_view.default(made, made.shape)
    return owned


def _through_norm(
    branch: RecomputedBranch, to_thin: Tensor, weight_in: Tensor, kept: Tensor, rescale: Tensor | None
) -> Tensor:
    """The gradient of x.

    The gradient of a norm at x is that at n, where mean and deviation are 0 and 1, times one over the deviation at x;
    which is cheaper to multiply into the thin rows.
    """
    if rescale is None:
        return to_thin @ weight_in
    return _without_norm(branch, (to_thin * rescale.to(to_thin.dtype)) @ weight_in, kept)


def _without_norm(branch: _Normed, toward: Tensor, kept: Tensor) -> Tensor:
    """A gradient, over the deviation already, less what the norm takes from it; in at least single precision."""
    if kept.dtype != torch.float64:
        toward, kept = toward.float(), kept.float()
    if branch.norm == "rms":
        return toward - kept * (toward * kept).mean(-1, keepdim=True)
    # The kept value has a mean of 0 and a deviation of 1.
    mean, rescale = kept.new_zeros((*kept.shape[:-1], 1)), kept.new_ones((*kept.shape[:-1], 1))
    made: Tensor = torch.ops.aten.native_layer_norm_backward(
        toward, kept, (kept.shape[-1],), mean, rescale, None, None, (True, False, False)
    )[0]
    return made


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The precision that autocast gives a product here."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.is_floating_point() else x.dtype
