"""Functions to which a forward hands sizes, and whose operators take plain numbers alone, which a trace would fix.

The trace has operators of its own for them, and the graph calls the functions.

    before   torch.linspace(-1, 1, x.shape[1])         aten.linspace(-1, 1, 7)
    after                                              torch.linspace(-1, 1, sym_size)
    before   F.max_pool1d(x, x.shape[2])               aten.max_pool1d(x, [7])
    after                                              torch.max_pool1d(x, [sym_size])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional

from repl_fx._torch import define_operator, fixed_size
from repl_fx.tracing.functions_watched import Run

aten = torch.ops.aten
_LINSPACE = define_operator(
    "linspace(Scalar start, Scalar end, SymInt steps, *, ScalarType? dtype=None, Device? device=None) -> Tensor",
    lambda start, end, steps, dtype=None, device=None: torch.empty(steps, dtype=dtype, device=device),
)
_WHOLE_POOL = define_operator(
    "whole_pool(Tensor tensor, SymInt[] kernel, str name) -> Tensor",
    lambda tensor, kernel, name: tensor.new_empty((*tensor.shape[: -len(kernel)], *[1] * len(kernel))),
)
_SPACED = frozenset({"start", "end", "steps", "dtype", "device"})
# By the function that a forward calls, the one in the graph, and how many dimensions it pools.
_POOLS: Mapping[Callable[..., Any], tuple[Callable[..., Any], int]] = {
    functional.avg_pool1d: (torch.avg_pool1d, 1),
    functional.avg_pool2d: (functional.avg_pool2d, 2),
    functional.avg_pool3d: (functional.avg_pool3d, 3),
    functional.max_pool1d: (torch.max_pool1d, 1),
    functional.max_pool2d: (torch.max_pool2d, 2),
    functional.max_pool3d: (torch.max_pool3d, 3),
}
_SECTIONS = frozenset({torch.tensor_split, Tensor.tensor_split})
# The settings under which a pool over all that there is has one result, whatever its steps.
_PLAIN = {"padding": 0, "dilation": 1, "return_indices": False, "divisor_override": None}
_FREE = frozenset({"kernel_size", "stride", "ceil_mode", "count_include_pad"})
_BY_NAME = {function.__name__: function for function, _ in _POOLS.values()}


def called(node: fx.Node) -> tuple[Any, Any, Any]:
    """The function that the graph calls for a node of a trace, with its arguments and keyword arguments."""
    if node.target is _LINSPACE:
        return torch.linspace, node.args, node.kwargs
    if node.target is _WHOLE_POOL:
        return _BY_NAME[str(node.args[2])], node.args[:2], {}
    return node.target, node.args, node.kwargs


class SizesKept:
    """Calls the operators of the trace where the numbers are sizes that stay free."""

    def watch(self, func: Any, args: Any, kwargs: Any, run: Run) -> Any:
        """Run the function, or the operator for it."""
        if func is torch.linspace and _is_of_free_steps(args, kwargs):
            return run(_LINSPACE, args, kwargs)
        if func in _POOLS and (kernel := _whole_kernel(_POOLS[func][1], *args, **kwargs)):
            return run(_WHOLE_POOL, (args[0], kernel, _POOLS[func][0].__name__), {})
        if func in _SECTIONS and (cut := _sections(*args, **kwargs)):
            return cut
        return run(func, args, kwargs)


def _is_free(number: Any) -> bool:
    return isinstance(number, torch.SymInt) and fixed_size(number) is None


def _is_of_free_steps(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    given = {**dict(zip(("start", "end", "steps"), args, strict=False)), **kwargs}
    return (
        _is_free(given["steps"]) and given.keys() <= _SPACED and not any(isinstance(v, Tensor) for v in given.values())
    )


def _whole_kernel(dims: int, tensor: Tensor, *args: Any, **settings: Any) -> list[Any] | None:
    """The sizes that a call pools over, where these are all that there are and some are free."""
    kernel = args[0] if args else settings["kernel_size"]
    sizes = list(kernel) if isinstance(kernel, Sequence) else [kernel] * dims
    plain = len(args) < 3 and all(key in _FREE or value == _PLAIN.get(key, ...) for key, value in settings.items())
    if not plain or not any(map(_is_free, sizes)):
        return None
    whole = all(statically_known_true(one == all_) for one, all_ in zip(sizes, tensor.shape[-dims:], strict=True))
    return sizes if whole else None


def _sections(tensor: Tensor, number: Any, dim: int = 0) -> tuple[Tensor, ...] | None:
    """Slices of a free size, of which the first are longer by one where there is a rest; None of another one.

    Torch's operator has the lengths of the example in a trace.
    """
    if not isinstance(number, int) or not _is_free(size := tensor.shape[dim]):
        return None
    ends = [size // number * (piece + 1) + torch.sym_min(piece + 1, size % number) for piece in range(number)]
    return tuple(aten.slice.Tensor(tensor, dim, *one) for one in zip([0, *ends], ends, strict=False))
