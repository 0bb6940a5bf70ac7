"""The kind of tensor that torch's own layers, norms and views return, without running them.

A layer runs on fake tensors for the shapes of its results. That takes a norm over sizes that are symbols tens of
milliseconds, and its result has the shape of its argument, as is known. Only plain cases are answered here: one
floating-point tensor, of the layer's dtype, and, but for a layer norm, laid out without gaps. A view without gaps has
the sizes that were asked for, which torch would write as quotients of the others (`n // (n // 8)` for 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import (
    OpOverload,
    are_equal,
    empty_beside,
    example_of,
    has_example,
    is_unbacked,
    tidy_size,
    view_by_example,
    view_sizes,
)

# Their result has the sizes and strides of their argument; a kernel that changes in place hands out that itself.
_ELEMENTWISE = frozenset(
    {nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Hardswish}
    | {nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Dropout, nn.Identity}
)
_BATCH_NORMS = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d})
_CONVOLUTIONS = frozenset({nn.Conv1d, nn.Conv2d, nn.Conv3d})
_WHOLE = frozenset({torch.float32, torch.float64})
_CHANNELS_LAST = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


def like(tensor: Tensor) -> Tensor:
    """A tensor of the same sizes, strides, dtype and device."""
    steps = [tidy_size(step) for step in tensor.stride()]
    return empty_beside(tensor, tensor.size(), steps)


def metadata(tensor: Tensor) -> tuple[Any, ...]:
    """Sizes, strides, dtype and device of a tensor, to compare and to hash; nothing is asked of the trace."""
    steps = map(tidy_size, tensor.stride())
    sizes = tuple(size if isinstance(size, int) else size.node.expr for size in (*tensor.shape, *steps))
    return tensor.ndim, sizes, tensor.dtype, tensor.device


def known_result(layer: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The result of a layer for some arguments, as a tensor of which only the kind counts; None where it has to run."""
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        return None
    kind, given = type(layer), args[0]
    if not _of_one_dtype(given, layer._parameters.values()):
        return None
    if kind in _ELEMENTWISE:
        if kind is nn.Identity or getattr(layer, "inplace", False):
            return given
        return elementwise_result(given)
    if kind in _BATCH_NORMS:
        layer._check_input_dim(given)
        state = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        results = batch_norm_results(given, *state, training=False)
        return results and results[0]
    if kind in _CONVOLUTIONS and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        settings = layer.stride, layer.padding, layer.dilation, False, layer.output_padding, layer.groups
        return convolution_result(given, layer.weight, layer.bias, *settings)
    if kind is nn.LayerNorm:
        return layer_norm_result(given, layer.normalized_shape, layer.weight, layer.bias)
    if kind is nn.Linear:
        if not _ends_in(given, (layer.in_features,)) or not _is_packed(given):
            return None
        return empty_beside(given, (*given.shape[:-1], layer.out_features))
    return None


def arithmetic_result(one: Any, other: Any, **settings: Any) -> Tensor | None:
    """The kind of tensor that a sum, a difference, a product or a quotient of floats is; None for ones that ask."""
    if not isinstance(one, Tensor):
        return None
    if isinstance(other, (int, float)):
        return elementwise_result(one)
    if not isinstance(other, Tensor) or not _of_one_dtype(one, [other]) or other.device != one.device:
        return None
    if one.ndim == other.ndim and all(map(_same_size, (*one.shape, *one.stride()), (*other.shape, *other.stride()))):
        return elementwise_result(one)
    is_first = one.ndim > other.ndim or (one.ndim == other.ndim and _is_packed(one))
    large, small = (one, other) if is_first else (other, one)
    pairs = zip(large.shape[large.ndim - small.ndim :], small.shape, strict=True)
    fits = all(_same_size(wide, size) or _same_size(size, 1) for wide, size in pairs)
    return like(large) if fits and _is_packed(large) and (_is_packed(small) or _is_spaced(small)) else None


def elementwise_result(given: Tensor, *settings: Any, **named: Any) -> Tensor | None:
    """The kind of tensor that a function of each element returns."""
    return like(given) if given.is_floating_point() and _is_dense(given) else None


def softmax_result(given: Tensor, dim: int, *settings: Any, **named: Any) -> Tensor | None:
    """The kind of tensor that `aten._softmax` returns without another dtype."""
    is_other = any(setting not in (None, False) for setting in (*settings, *named.values()))
    return None if is_other or not _has_dim(given, dim) or not _is_packed(given) else elementwise_result(given)


def product_result(one: Tensor, other: Tensor, *, dims: int = 2) -> Tensor | None:
    """The kind of tensor that a product of matrices is, or with three dimensions products of as many."""
    fits = _of_one_dtype(one, [other]) and one.ndim == other.ndim == dims
    if not fits or not all(map(_same_size, (*one.shape[:-2], one.shape[-1]), other.shape[:-1])):
        return None
    return empty_beside(one, (*one.shape[:-1], other.shape[-1]))


def affine_result(bias: Tensor, one: Tensor, other: Tensor, **settings: Any) -> Tensor | None:
    """The kind of tensor that `aten.addmm` returns."""
    fits = bias.ndim == 1 and _of_one_dtype(bias, [one]) and _ends_in(other, bias.shape)
    return product_result(one, other) if fits else None


def joined_result(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    """The kind of tensor that `aten.cat` returns."""
    first = tensors[0]
    if not _has_dim(first, dim):
        return None
    dim %= first.ndim
    for given in tensors:
        others = zip(given.shape, first.shape, strict=False)
        alike = all(at == dim or _same_size(*sizes) for at, sizes in enumerate(others))
        if given.ndim != first.ndim or given.dtype is not first.dtype or given.device != first.device or not alike:
            return None
        if given.ndim < 2 or not _is_packed(given):
            return None
    length: Any = sum(given.shape[dim] for given in tensors)
    sizes = (*first.shape[:dim], length, *first.shape[dim + 1 :])
    return empty_beside(first, sizes)


def convolution_result(
    given: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    out_padding: Any, groups: int,
) -> Tensor | None:  # fmt: skip
    """The kind of tensor that `aten.convolution` returns."""
    plain = not transposed and given.ndim == weight.ndim and _of_one_dtype(given, (weight, bias))
    layout = _layout_of_convolved(given) if plain and _is_packed(weight) else None
    if layout is None or not _has_channels(given, weight, bias, groups):
        return None
    strides, paddings, dilations = (
        list(values) * (given.ndim - 2 if len(values) == 1 else 1) for values in (stride, padding, dilation)
    )
    spatial = zip(given.shape[2:], weight.shape[2:], strides, paddings, dilations, strict=True)
    lengths = [
        (size + 2 * padded - apart * (kernel - 1) - 1) // step + 1 for size, kernel, step, padded, apart in spatial
    ]
    # As torch asks.
    for length in lengths:
        torch._check(length > 0)
    sizes = (given.shape[0], weight.shape[0], *lengths)
    return empty_beside(given, sizes, layout=layout)


def _layout_of_convolved(given: Tensor) -> torch.memory_format | None:
    """The memory format of the result of a convolution; None where it is not known."""
    if _is_packed(given):
        return torch.contiguous_format
    # Where channels come last, other devices, dtypes and numbers of dimensions have kernels of either kind.
    known = given.ndim == 4 and given.dtype is torch.float32 and given.device.type == "cpu"
    return torch.channels_last if known and _is_packed(given, _CHANNELS_LAST[4]) else None


def _has_channels(given: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> bool:
    """Tell whether a convolution's weight and bias are for the channels of its argument, all of them numbers."""
    if not all(isinstance(size, int) and size for size in (given.shape[1], *weight.shape)):
        return False
    fits = given.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
    return fits and (bias is None or bias.shape == weight.shape[:1])


def layer_norm_result(
    given: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, *settings: Any
) -> Tensor | None:
    """The kind of tensor that `aten.layer_norm` returns: for any layout, a contiguous one."""
    parameters = [tensor for tensor in (weight, bias) if tensor is not None]
    fits = _ends_in(given, shape) and all(tuple(tensor.shape) == tuple(shape) for tensor in parameters)
    if not fits or not _of_one_dtype(given, parameters):
        return None
    return empty_beside(given, given.shape)


def batch_norm_results(
    given: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The kinds of tensors that `aten.native_batch_norm` returns."""
    state = [tensor for tensor in (weight, bias, mean, variance) if tensor is not None]
    # In half precision the dtypes of the results differ.
    if given.dtype not in _WHOLE or not _of_one_dtype(given, state) or given.ndim < 2 or not _is_dense(given):
        return None
    if not all(tensor.ndim == 1 and _same_size(tensor.shape[0], given.shape[1]) for tensor in state):
        return None
    size = given.shape[1] if training else 0
    return like(given), empty_beside(given, (size,)), empty_beside(given, (size,))


def layer_norm_results(
    given: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The kinds of tensors that `aten.native_layer_norm` returns."""
    result = layer_norm_result(given, shape, weight, bias) if given.dtype in _WHOLE else None
    if result is None:
        return None
    sizes = (*given.shape[: given.ndim - len(shape)], *(1 for _ in shape))
    return result, empty_beside(given, sizes), empty_beside(given, sizes)


def _inference_norm_results(
    given: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor] | None:
    return batch_norm_results(given, weight, bias, mean, variance, training=False)


def group_norm_results(
    given: Tensor, weight: Tensor | None, bias: Tensor | None, n: Any, channels: Any, area: Any, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The kinds of tensors that `aten.native_group_norm` returns."""
    state = [tensor for tensor in (weight, bias) if tensor is not None]
    if given.dtype not in _WHOLE or not _of_one_dtype(given, state):
        return None
    if not _is_dense(given) or isinstance(channels, torch.SymInt):
        return None
    if channels % groups or any(tuple(tensor.shape) != (channels,) for tensor in state):
        return None
    return like(given), empty_beside(given, (n, groups)), empty_beside(given, (n, groups))


def grid_result(theta: Tensor, size: Sequence[int | torch.SymInt], align_corners: bool) -> Tensor | None:
    """The result of `aten.affine_grid_generator`, which torch makes by operators that fix the sizes."""
    batch, _, *sizes = size
    fits = theta.shape == (batch, len(sizes), len(sizes) + 1)
    return empty_beside(theta, (batch, *sizes, len(sizes))) if fits else None


def view_result(given: Tensor, shape: Sequence[int | torch.SymInt]) -> Tensor | None:
    """The kind of tensor that `aten.view` returns."""
    if any(is_unbacked(size) or _same_size(size, 0) for size in (*shape, *given.shape)):
        return None
    sizes = view_sizes(shape, given.numel())
    steps = _view_steps(given, sizes)
    if steps is None and any(isinstance(size, torch.SymInt) for size in sizes):
        # Torch takes dimensions that are equal in the example for each other, and has the sizes of one for the other's.
        steps = list(view_by_example(given, sizes).stride())
    return None if steps is None else given.as_strided(sizes, steps, given.storage_offset())


def _view_steps(given: Tensor, sizes: Sequence[Any]) -> list[Any] | None:
    """The steps between the elements of a view; None where no expressions tell.

    As torch does for numbers: dimensions that lie side by side are one, which sizes of the view divide, from the last.
    """
    known = [tidy_size(step) for step in given.stride()]
    steps: list[Any] = []
    left = list(sizes)
    step, length = known[-1] if known else 1, 1
    for dim in reversed(range(given.ndim)):
        length = length * given.shape[dim]
        if dim and (_same_size(given.shape[dim - 1], 1) or _same_size(known[dim - 1], step * length)):
            continue
        taken: Any = 1
        # All of the view's elements are known to be as many as there are.
        while left and (not dim or not _same_size(taken, length) or _same_size(left[-1], 1)):
            steps.append(step * taken)
            taken = taken * left.pop()
        if dim:
            if not _same_size(taken, length):
                return None
            step, length = known[dim - 1], 1
    return None if left else steps[::-1]


_ATEN = torch.ops.aten
# By operator, for `lean_tracing` and `known_or_run`.
FAKES: Mapping[OpOverload, Callable[..., Any]] = {
    _ATEN.affine_grid_generator.default: grid_result,
    _ATEN.view.default: view_result,
    _ATEN._unsafe_view.default: view_result,
    _ATEN.layer_norm.default: layer_norm_result,
    _ATEN.native_layer_norm.default: layer_norm_results,
    _ATEN.native_batch_norm.default: batch_norm_results,
    _ATEN._native_batch_norm_legit.default: batch_norm_results,
    _ATEN._native_batch_norm_legit_no_training.default: _inference_norm_results,
    _ATEN.native_group_norm.default: group_norm_results,
    _ATEN.convolution.default: convolution_result,
    _ATEN.cat.default: joined_result,
    _ATEN.addmm.default: affine_result,
    _ATEN._softmax.default: softmax_result,
    _ATEN._safe_softmax.default: softmax_result,
    _ATEN.mm.default: product_result,
    _ATEN.bmm.default: partial(product_result, dims=3),
    **{getattr(_ATEN, name).Tensor: arithmetic_result for name in ("add", "sub", "mul", "div")},
    **{getattr(_ATEN, name).default: elementwise_result for name in ("relu", "gelu", "silu", "sigmoid", "tanh")},
}


def known_or_run(operator: OpOverload, args: Any, kwargs: Any) -> Any:
    """The result of an operator for fake arguments, which runs where its result is not known."""
    rule = FAKES.get(operator)
    known = None if rule is None else rule(*args, **kwargs)
    return operator(*args, **kwargs) if known is None else known


def _of_one_dtype(given: Tensor, others: Iterable[Tensor | None]) -> bool:
    """Tell whether a tensor is of floating point, and the others that there are have its dtype."""
    return given.is_floating_point() and all(other is None or other.dtype is given.dtype for other in others)


def _has_dim(tensor: Tensor, dim: int) -> bool:
    return -tensor.ndim <= dim < tensor.ndim


def _ends_in(tensor: Tensor, shape: Sequence[int]) -> bool:
    return tensor.ndim >= len(shape) and all(map(_same_size, tensor.shape[tensor.ndim - len(shape) :], shape))


def _is_dense(tensor: Tensor) -> bool:
    orders = [range(tensor.ndim), _CHANNELS_LAST.get(tensor.ndim, range(0))]
    return any(len(order) == tensor.ndim and _is_packed(tensor, order) for order in orders)


def is_contiguous(tensor: Tensor) -> bool:
    """Tell whether a tensor is contiguous whatever its sizes are; nothing is asked of the trace."""
    return _is_packed(tensor, [dim for dim in range(tensor.ndim) if not _same_size(tensor.shape[dim], 1)])


def _is_packed(tensor: Tensor, order: Sequence[int] | None = None) -> bool:
    """Tell whether the elements lie side by side, in an order of the dimensions, outermost first; their own if None."""
    step: Any = 1
    for dim in reversed(range(tensor.ndim) if order is None else order):
        if not _same_size(tidy_size(tensor.stride(dim)), step):
            return False
        step = step * tensor.shape[dim]
    return True


def _is_spaced(tensor: Tensor) -> bool:
    """Tell whether the elements lie side by side but for gaps along the first dimension, as in some of the channels."""
    if tensor.ndim < 2 or not _is_packed(tensor, range(1, tensor.ndim)):
        return False
    row, step = math.prod(tensor.shape[1:]), tidy_size(tensor.stride(0))
    if not has_example(row) or not has_example(step) or not example_of(row):
        return False
    return _same_size(step, example_of(step) // example_of(row) * row)


def _same_size(one: Any, other: Any) -> bool:
    """Tell whether two sizes are one number or one expression; nothing is asked of the trace."""
    if isinstance(one, int) or isinstance(other, int):
        return isinstance(one, int) and isinstance(other, int) and one == other
    return are_equal(one, other)
