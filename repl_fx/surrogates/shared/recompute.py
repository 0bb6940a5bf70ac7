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

from repl_fx._torch import applied, runs_plainly
from repl_fx.running.untouched import own_randomness


class _Recomputed(nn.Module):
    """y = W_out between(W_in n + b_in) + b_out, where n is x behind a norm over the last axis without parameters.

    The norm's own scale and shift belong in W_in and b_in. Where no gradient is asked for, in compiled and exported
    graphs, and of complex values the same runs as ordinary operators.

    Args:
        norm: `layer`, `rms` or `none`.
        eps: the norm's.

    Attributes:
        draws: whether the values between are random ones, by more than a dropout that is given.
    """

    draws = False

    def __init__(self, norm: str, eps: float) -> None:
        super().__init__()
        self.norm = norm
        self.eps = eps

    def forward(self, x: Tensor, *read: Any) -> Tensor:
        """Map x (…, d) to (…, features).

        Args:
            x: the stream, with batch and positions in as many dimensions as it likes.
            read: W_in (r, d), W_out (features, r), b_in (r) and b_out (features), each a tensor or None, and then what
                `between` takes besides the thin values.
        """
        return self.with_normalised(x, *read)[0]

    def with_normalised(self, x: Tensor, *read: Any) -> tuple[Tensor, Tensor]:
        """Map x as `forward` does; also the normalised input, which is the one value that the backward pass keeps."""
        kind = _compute_dtype(x)
        # A model that was converted after its trace may hand x on in the precision of the trace.
        cast = [t.to(kind) if isinstance(t, Tensor) and t.is_floating_point() else t for t in read]
        # The function knows neither conjugates, nor an activation that would draw anew in the backward pass.
        if not runs_plainly() or not torch.is_grad_enabled() or x.is_complex() or self.draws:
            n = self._plainly_normalised(x)
            return self.mixed(n, *cast), n
        # Of no norm the function keeps its input, which is then in the precision of the product.
        taken = x.to(kind) if self.norm == "none" else x
        made: tuple[Tensor, ...] = applied(_Recompute, self, taken, *cast)
        return made[0], made[1] if len(made) > 1 else taken

    def _plainly_normalised(self, x: Tensor) -> Tensor:
        """The normalised input by the operator that converters of traces know."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) if self.norm == "layer" else self.normalised(x)[0]

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

    def mixed(self, n: Tensor, weight_in: Tensor, weight_out: Tensor, *rest: Any) -> Tensor:
        """The computation behind the norm; see `forward`."""
        bias_in, bias_out, *given = rest
        return F.linear(self.between(F.linear(n, weight_in, bias_in), *given), weight_out, bias_out)

    def hidden(self, x: Tensor, weight_in: Tensor, bias_in: Tensor | None, *given: Any) -> Tensor:
        """The values (…, r) that W_out reads; see `forward`."""
        return self.between(F.linear(self._plainly_normalised(x), weight_in, bias_in), *given)

    def between(self, thin: Tensor, *given: Any) -> Tensor:
        """The values (…, r) that W_out reads, from those that W_in makes."""
        raise NotImplementedError


class RecomputedBranch(_Recomputed):
    """Norm without parameters, a product to r features, an activation, and a product back.

    Args:
        norm, eps: of the norm: `layer`, `rms` or `none`.
        activation: an elementwise function without parameters, or None.
    """

    def __init__(self, norm: str, eps: float, activation: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__(norm, eps)
        self.activation = activation
        # Of torch's activations the one that does.
        self.draws = isinstance(activation, nn.RReLU)

    def between(self, thin: Tensor, *given: Any) -> Tensor:
        """Apply the activation."""
        return thin if self.activation is None else self.activation(thin)

    def extra_repr(self) -> str:
        """The branch, in a line."""
        shown = getattr(self.activation, "__name__", type(self.activation).__name__) if self.activation else "none"
        return f"norm={self.norm}, activation={shown}"


@dataclass(frozen=True)
class MapForm:
    """The form of an attention map, and the values it is applied to.

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


class RecomputedAttention(_Recomputed):
    """Norm without parameters, a product to the values of a few heads, an attention map made elsewhere, a product back.

    Args:
        norm, eps: of the norm: `layer`, `rms` or `none`.
        heads: how many.
        form: how the map is given.
    """

    def __init__(self, norm: str, eps: float, heads: int, form: MapForm) -> None:
        super().__init__(norm, eps)
        self.heads = heads
        self.form = form

    def between(self, thin: Tensor, *given: Any) -> Tensor:
        """Mix the values by the map.

        Args:
            thin: (…, heads * c).
            given: queries, keys (batch, heads, positions, c), a mask or None, and the probability of dropout; or the
                map (batch, heads, positions, positions).
        """
        positions = given[1].shape[-2] if self.form.scaled else given[0].shape[-1]
        return self.mix(self.values(thin, given[0].shape[0], positions), thin.shape, *given)

    def values(self, thin: Tensor, batch: int, positions: int) -> Tensor:
        """Thin values (…, heads * c) as (batch, heads, positions, c).

        Args:
            thin: the values.
            batch: its size.
            positions: how many there are in an empty batch, which does not tell; in another the values do.
        """
        each = -1 if thin.numel() else positions
        sizes = (batch, each) if self.form.batch_first else (each, batch)
        values = thin.reshape(*sizes, self.heads, thin.shape[-1] // self.heads)
        return values.transpose(1, 2) if self.form.batch_first else values.permute(1, 2, 0, 3)

    def mix(self, values: Tensor, shape: torch.Size, *given: Any) -> Tensor:
        """The values mixed by the map, in the shape of the thin ones, or with as many dimensions as the form says."""
        form = self.form
        if form.scaled:
            queries, keys, mask, dropout = given
            out = F.scaled_dot_product_attention(queries, keys, values, mask, dropout, form.causal, scale=form.scale)
        else:
            out = given[0] @ values.to(given[0].dtype)
        out = out.transpose(1, 2) if form.batch_first else out.permute(2, 0, 1, 3)
        if form.dims is None:
            return out.reshape(shape)
        return out.flatten(-2) if form.dims == 3 else out.reshape(-1, shape[-1])

    def extra_repr(self) -> str:
        """The branch, in a line."""
        return f"norm={self.norm}, heads={self.heads}"


class _Recompute(torch.autograd.Function):
    """Keeps the normalised input, the weights and what is given; the backward pass computes the thin values again.

    The normalised input and one over the deviation are results too: so a second derivative finds its way from them, by
    the first, to the input of the norm, which is not kept.
    """

    @staticmethod
    def forward(
        ctx: Any, layer: _Recomputed, x: Tensor, weight_in: Tensor, weight_out: Tensor, *rest: Any
    ) -> tuple[Tensor, ...]:
        bias_in, _, *given = rest
        ctx.set_materialize_grads(False)
        normalised, rescale = layer.normalised(x)
        kept = normalised.to(weight_in.dtype)
        tensors = [t for t in given if t is None or isinstance(t, Tensor)]
        ctx.save_for_backward(kept, rescale, weight_in, weight_out, bias_in, *tensors)
        # The probability of dropout, where there is one; the dropped elements are drawn again.
        ctx.drop = given[len(tensors) :]
        ctx.drawn = None
        if any(p > 0 for p in ctx.drop):
            ctx.drawn = torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()
        ctx.layer, ctx.dtype = layer, x.dtype
        made = layer.mixed(kept, weight_in, weight_out, *rest)
        # A product on more than two dimensions is a view of one on two, and what follows (`y += x`) may write into no
        # view that was made inside a function of autograd's.
        made = torch.ops.aten._unsafe_view.default(made, made.shape)
        return (made,) if rescale is None else (made, kept, rescale)

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor | None, to_kept: Tensor | None = None, to_rescale: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        # Read once: what is checkpointed is computed again for the first reader.
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad
        to_thin, *to_read = [None] * (len(needs) - 1) if gradient is None else _through_products(ctx, saved, gradient)
        return (None, _through_norm(ctx, saved, to_thin, to_kept, to_rescale) if needs[1] else None, *to_read)


def _through_products(ctx: Any, saved: tuple[Any, ...], gradient: Tensor) -> list[Tensor | None]:
    """The gradients of the thin values, and of all that was read; where they are to be differentiated, as functions."""
    kept, _, weight_in, weight_out, bias_in, *given = saved
    needs, needed = ctx.needs_input_grad[2:6], ctx.needs_input_grad[6:]
    again = torch.is_grad_enabled()

    def alone(read: Any, need: bool) -> Any:
        """A value by itself: where one is made of another, its gradient goes on without this function."""
        if not isinstance(read, Tensor) or not read.is_floating_point():
            return read
        return read.view_as(read) if again else read.detach().requires_grad_(need)

    leaves = [alone(*pair) for pair in zip((*given, *ctx.drop), needed, strict=True)]
    with torch.enable_grad(), _drawing_from(ctx.drawn, kept.device):
        thin = F.linear(kept, weight_in, bias_in)
        thin = thin if again and thin.requires_grad else thin.detach().requires_grad_()
        # Activations that write to their argument must not write to a leaf.
        between = ctx.layer.between(thin.clone(), *leaves)
    wanted = [thin, *(leaf for leaf, need in zip(leaves, needed, strict=True) if need)]
    to_thin, *found = torch.autograd.grad(between, wanted, gradient @ weight_out, create_graph=again)
    to_given = iter(found)
    rows, thin_rows = (t.reshape(-1, t.shape[-1]) for t in (gradient, to_thin))
    return [
        to_thin,
        thin_rows.t() @ kept.reshape(-1, kept.shape[-1]) if needs[0] else None,
        rows.t() @ between.reshape(-1, between.shape[-1]) if needs[1] else None,
        thin_rows.sum(0) if needs[2] else None,
        rows.sum(0) if needs[3] else None,
        *(next(to_given) if need else None for need in needed),
    ]


def _through_norm(
    ctx: Any, saved: tuple[Any, ...], to_thin: Tensor | None, to_kept: Tensor | None, to_rescale: Tensor | None
) -> Tensor | None:
    """The gradient of x, from those of the thin values and of the norm's results.

    n = (x - mean) r,   r = 1 / deviation        dn/dx: r (t - mean(t) - n mean(n t)),   dr/dx: -r² n / d

    The factor r is cheaper to multiply into the thin rows.
    """
    n, rescale, weight_in, *_ = saved
    toward: Tensor
    if rescale is None:
        return None if to_thin is None else (to_thin @ weight_in).to(ctx.dtype)
    toward = torch.zeros_like(n) if to_thin is None else (to_thin * rescale.to(to_thin.dtype)) @ weight_in
    # Less what the norm takes from it, in at least single precision.
    if n.dtype != torch.float64:
        toward, n = toward.float(), n.float()
    if to_kept is not None:
        toward = toward + to_kept * rescale
    if ctx.layer.norm == "layer" and not torch.is_grad_enabled():
        # As of a norm at n, where the mean is 0 and the deviation 1; which holds for no derivative of it.
        mean, one = n.new_zeros((*n.shape[:-1], 1)), n.new_ones((*n.shape[:-1], 1))
        toward = torch.ops.aten.native_layer_norm_backward(
            toward, n, (n.shape[-1],), mean, one, None, None, (True, False, False)
        )[0]
    else:
        centred = toward - toward.mean(-1, keepdim=True) if ctx.layer.norm == "layer" else toward
        toward = centred - n * (toward * n).mean(-1, keepdim=True)
    if to_rescale is not None:
        toward = toward - to_rescale * rescale.square() * n / n.shape[-1]
    return toward.to(ctx.dtype)


@contextmanager
def _drawing_from(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """Draw as from a state that was kept, and leave the generator as it is."""
    if state is None:
        yield
        return
    with own_randomness(device):
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The precision that autocast gives a product here."""
    kind = x.device.type
    # The meta device knows no autocast, and refuses to say so.
    lowers = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if lowers and x.is_floating_point() else x.dtype
