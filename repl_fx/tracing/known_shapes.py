"""The kind of tensor that torch's own layers, norms and views return, without running them.

A layer runs on fake tensors for the shapes of its results. That takes a norm over sizes that are symbols tens of
milliseconds, and its result has the shape of its argument, as is known. Only plain cases are answered here: one
floating-point tensor, of the layer's dtype, and, but for a layer norm, laid out without gaps. A view without gaps has
the sizes that were asked for, which torch would write as quotients of the others (`n // (n // 8)` for 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import OpOverload, are_equal, is_unbacked, tidy_size, view_sizes

# Their result has the sizes and strides of their argument; a kernel that changes in place hands out that itself.
_ELEMENTWISE = frozenset(
    {nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Hardswish}
    | {nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Dropout, nn.Identity}
)
_BATCH_NORMS = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d})
_WHOLE = frozenset({torch.float32, torch.float64})
_CHANNELS_LAST = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


def like(tensor: Tensor) -> Tensor:
    """A tensor of the same sizes, strides, dtype and device."""
    steps = [tidy_size(step) for step in tensor.stride()]
    return torch.empty_strided(tensor.size(), steps, dtype=tensor.dtype, device=tensor.device)


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
        return like(given) if _is_dense(given) else None
    if kind in _BATCH_NORMS:
        layer._check_input_dim(given)
        state = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        results = batch_norm_results(given, *state, training=False)
        return results and results[0]
    if kind is nn.LayerNorm:
        return layer_norm_result(given, layer.normalized_shape, layer.weight, layer.bias)
    if kind is nn.Linear:
        if not _ends_in(given, (layer.in_features,)) or not _is_packed(given, range(given.ndim)):
            return None
        return torch.empty((*given.shape[:-1], layer.out_features), dtype=given.dtype, device=given.device)
    return None


def layer_norm_result(
    given: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, *settings: Any
) -> Tensor | None:
    """The kind of tensor that `aten.layer_norm` returns: for any layout, a contiguous one."""
    parameters = [tensor for tensor in (weight, bias) if tensor is not None]
    fits = _ends_in(given, shape) and all(tuple(tensor.shape) == tuple(shape) for tensor in parameters)
    if not fits or not _of_one_dtype(given, parameters):
        return None
    return torch.empty(given.shape, dtype=given.dtype, device=given.device)


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
    return like(given), given.new_empty(size), given.new_empty(size)


def group_norm_results(
    given: Tensor, weight: Tensor | None, bias: Tensor | None, n: Any, channels: Any, area: Any, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The kinds of tensors that `aten.native_group_norm` returns."""
    state = [tensor for tensor in (weight, bias) if tensor is not None]
    if given.dtype not in _WHOLE or not _of_one_dtype(given, state):
        return None
    if not _is_packed(given, range(given.ndim)) or isinstance(channels, torch.SymInt):
        return None
    if channels % groups or any(tuple(tensor.shape) != (channels,) for tensor in state):
        return None
    return like(given), given.new_empty((n, groups)), given.new_empty((n, groups))


def view_result(given: Tensor, shape: Sequence[int | torch.SymInt]) -> Tensor | None:
    """The kind of tensor that `aten.view` returns."""
    if any(is_unbacked(size) or _same_size(size, 0) for size in (*shape, *given.shape)):
        return None
    sizes = view_sizes(shape, given.numel())
    steps = _view_steps(given, sizes)
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


# By operator, for `lean_tracing`.
FAKES: Mapping[OpOverload, Callable[..., Any]] = {
    torch.ops.aten.view.default: view_result,
    torch.ops.aten._unsafe_view.default: view_result,
    torch.ops.aten.layer_norm.default: layer_norm_result,
    torch.ops.aten.native_batch_norm.default: batch_norm_results,
    torch.ops.aten.native_group_norm.default: group_norm_results,
}


def _of_one_dtype(given: Tensor, others: Iterable[Tensor | None]) -> bool:
    """Tell whether a tensor is of floating point, and the others that there are have its dtype."""
    return given.is_floating_point() and all(other is None or other.dtype is given.dtype for other in others)


def _ends_in(tensor: Tensor, shape: Sequence[int]) -> bool:
    return tensor.ndim >= len(shape) and all(map(_same_size, tensor.shape[tensor.ndim - len(shape) :], shape))


def _is_dense(tensor: Tensor) -> bool:
    orders = [range(tensor.ndim), _CHANNELS_LAST.get(tensor.ndim, range(0))]
    return any(len(order) == tensor.ndim and _is_packed(tensor, order) for order in orders)


def _is_packed(tensor: Tensor, order: Sequence[int]) -> bool:
    """Tell whether the elements lie side by side, in an order of the dimensions, outermost first."""
    step: Any = 1
    for dim in reversed(order):
        if not _same_size(tidy_size(tensor.stride(dim)), step):
            return False
        step = step * tensor.shape[dim]
    return True


def _same_size(one: Any, other: Any) -> bool:
    """Tell whether two sizes are one number or one expression; nothing is asked of the trace."""
    if isinstance(one, int) or isinstance(other, int):
        return isinstance(one, int) and isinstance(other, int) and one == other
    return are_equal(one, other)
