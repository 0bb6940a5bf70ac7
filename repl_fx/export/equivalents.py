"""Functions equivalent to operators, in operators that the ONNX exporter translates for any sizes and dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from repl_fx._torch import OpOverload


def pieces(tensor: Tensor, size: int, dim: int = 0, *, count: int, equal: bool) -> tuple[Tensor, ...]:
    """Slices of one size, the last as long as what is left; of a computed dimension, ONNX wants the sizes written.

    Where `equal`, `size` is a number of equal pieces, and not their size.
    """
    if equal:
        size = -(-tensor.shape[dim] // size)
    starts = [number * size for number in range(count)]
    ends = [*starts[1:], None]
    return tuple(torch.ops.aten.slice.Tensor(tensor, dim, start, end) for start, end in zip(starts, ends, strict=True))


def subtracted_from(tensor: Tensor, scalar: Any, alpha: Any = 1) -> Tensor:
    """`scalar - alpha * tensor`; the exporter has no overload for a whole tensor and a floating scalar."""
    return torch.add(torch.neg(tensor if alpha == 1 else torch.mul(tensor, alpha)), scalar)


def evenly_spaced(
    start: float, end: float, steps: int, *, dtype: torch.dtype | None = None, device: Any = None
) -> Tensor:
    """`torch.linspace`, whose operator has no symbolic number of steps; both halves are counted from their own end."""
    first, last, behind = (torch.scalar_tensor(n, dtype=torch.float64, device=device) for n in (start, end, steps - 1))
    number = torch.arange(steps, dtype=torch.float64, device=device)
    step = (last - first) / behind.clamp(min=1)
    spaced = torch.where(number < (behind + 1) / 2, first + step * number, last - step * (behind - number))
    return spaced.to(dtype or torch.get_default_dtype())


def listed(*_: Any, values: Sequence[float], dtype: torch.dtype, device: Any = None, **__: Any) -> Tensor:
    """A window of a length that is known, which ONNX has in other numbers (0.543478 for 0.54), or not at all."""
    return torch.tensor(values, dtype=dtype, device=device)


def searched(
    ordered: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """The places of values in ordered ones, counted: a search takes as many steps as the length of the example has."""
    if sorter is not None:
        ordered = ordered.gather(-1, sorter)
    if ordered.ndim > 1:
        ordered = ordered.unsqueeze(-2)
    beyond = torch.gt if right or side == "right" else torch.ge
    # What is no number lies behind all.
    count = torch.logical_not(beyond(ordered, values.unsqueeze(-1))).sum(-1)
    return count.int() if out_int32 else count


def bucketed(values: Tensor, boundaries: Tensor, **settings: Any) -> Tensor:
    """The buckets of values between boundaries of which there are as many as inputs say."""
    return searched(boundaries, values, **settings)


def repeated(tensor: Tensor, repeats: Any, dim: int | None = None, **_: Any) -> Tensor:
    """Each element so many times; the exporter has no symbolic number of them."""
    if dim is None:
        tensor, dim = tensor.flatten(), 0
    dim %= tensor.ndim
    sizes = [-1] * (dim + 1) + [repeats] + [-1] * (tensor.ndim - dim - 1)
    return tensor.unsqueeze(dim + 1).expand(sizes).flatten(dim, dim + 1)


def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """`functional.affine_grid` with the places of pixels counted by `evenly_spaced`; a single one is in the middle."""
    lines = []
    for n in size[2:]:
        end: Any = torch.sym_min(n - 1, 1) if align_corners else (n - 1) / n
        lines.append(evenly_spaced(-end, end, n, dtype=theta.dtype, device=theta.device))
    places = torch.meshgrid(*lines, indexing="ij")
    flat = torch.stack([*reversed(places), torch.ones_like(places[0])], -1).flatten(0, -2)
    return (flat @ theta.mT).view(size[0], *size[2:], len(places))


def mean_of_all(tensor: Tensor, kernel: Sequence[int]) -> Tensor:
    """An average pool over all that there is along the last dimensions."""
    return tensor.mean(list(range(-len(kernel), 0)), keepdim=True)


def largest_of_all(tensor: Tensor, kernel: Sequence[int]) -> Tensor:
    """A max pool over all that there is along the last dimensions."""
    return tensor.amax(list(range(-len(kernel), 0)), keepdim=True)


def of_one_kind(clamp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A clamp between bounds of one kind; the exporter takes no whole bound beside a floating one."""

    def clamped(tensor: Tensor, min: Any = None, max: Any = None) -> Tensor:
        if any(isinstance(bound, float | torch.SymFloat) for bound in (min, max)):
            min, max = (None if bound is None else torch.sym_float(bound) for bound in (min, max))
        return clamp(tensor, min, max)

    return clamped


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """A power of the dtype that torch gives it: ONNX gives it that of the base."""
    return torch.pow(base.to(torch.result_type(base, exponent)), exponent)


def shift_in_one_dtype(shift: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A shift of bits in the dtype that torch gives it; ONNX shifts by numbers of the same one."""

    def shift_alike(value: Tensor, by: Tensor) -> Tensor:
        dtype = torch.result_type(value, by)
        return shift(value.to(dtype), by.to(dtype))

    return shift_alike


# Of more rows than these torch has distances by a product of matrices.
_FEW_ROWS = 25


def distances(ours: Tensor, theirs: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Distances of all rows from all others, in the way that torch takes: the exporter has none.

    Args:
        ours: (…, rows, features).
        theirs: (…, other rows, features).
        p: the norm.
        compute_mode: of `torch.cdist`: 1 for a product of matrices, 2 for none, else one of many rows.
    """
    many = any(isinstance(size, int) and size > _FEW_ROWS for size in (ours.shape[-2], theirs.shape[-2]))
    if p == 2 and (compute_mode == 1 or (many and compute_mode != 2)):
        squares = ours.square().sum(-1, keepdim=True) + theirs.square().sum(-1).unsqueeze(-2)
        return (squares - 2 * ours @ theirs.mT).clamp(min=0).sqrt()
    apart = (ours.unsqueeze(-2) - theirs.unsqueeze(-3)).abs()
    if p == math.inf:
        return apart.amax(-1)
    return (apart > 0).to(apart.dtype).sum(-1) if p == 0 else apart.pow(p).sum(-1).pow(1 / p)


def of_one_dtype(stack: OpOverload, dtype: torch.dtype) -> Callable[..., Tensor]:
    """An operator that stacks tensors, for any of them: ONNX stacks those of one dtype."""

    def stacked(tensors: Sequence[Tensor], *args: Any) -> Tensor:
        result: Tensor = stack([tensor.to(dtype) for tensor in tensors], *args)
        return result

    return stacked


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *settings: Any, **named: Any
) -> Tensor:
    """Attention over other than four dimensions; the exporter translates (batch, heads, positions, features) alone."""
    lead = query.shape[:-2]

    def four(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, -4) if tensor.ndim > 4 else tensor[(None,) * (4 - tensor.ndim)]

    if attn_mask is not None and len(lead) > 2:
        # A mask that broadcasts over dimensions that become one has to be spelled out there.
        attn_mask = attn_mask.expand(*lead, *attn_mask.shape[-2:])
    attend = torch.nn.functional.scaled_dot_product_attention
    mask = None if attn_mask is None else four(attn_mask)
    result = attend(four(query), four(key), four(value), mask, *settings, **named)
    return result.reshape(*lead, *result.shape[-2:])


def strided(tensor: Tensor, size: Any, stride: Any, offset: None = None, *, order: Sequence[int]) -> Tensor:
    """Elements of a tensor's memory; the exporter takes that for the memory of a contiguous tensor.

    A transposed one is turned back first, so that it is: `order` has its dimensions, the largest stride first.
    """
    return torch.as_strided(tensor.permute(*order).contiguous(), size, stride)


def grouped_matmul(rows: Tensor, weights: Tensor, ends: Tensor, *_: Any) -> Tensor:
    """Rows of consecutive groups, each times the matrix of its group.

    ONNX has no such operator. Every row is multiplied with every matrix and the product of its group is taken: so many
    times the work, but no more memory than one product.

    Args:
        rows: (rows, in features), those of one group after those of another.
        weights: (groups, in features, out features).
        ends: the row behind the last of each group.
    """
    number = torch.arange(rows.shape[0], device=rows.device)
    group = (number[:, None] >= ends[None, :]).sum(dim=1)
    result = torch.zeros_like(rows[:, :1]).expand(-1, weights.shape[2])
    for index in range(weights.shape[0]):
        result = torch.where((group == index)[:, None], rows @ weights[index], result)
    return result
