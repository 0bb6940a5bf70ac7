"""Layouts, as the source asks for them and about them, and not as they were in one trace.

torch leaves `.contiguous()` out of a trace where the tensor of the example happens to be contiguous already, as what an
attention kernel returned may be. Another kernel, or inputs of other strides, would leave the graph with a `view` that
does not fit. A forward that asks for strides takes the way that those of the example lead to; others are refused.

    before   q.contiguous()                   nothing, in the trace
    after    aten.contiguous(q)
    before   if x.is_contiguous(): …          a branch, taken in the trace
    after    check_layout(x, torch.contiguous_format, [1], "at …")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import has_side_effect
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from repl_fx._torch import define_operator, has_no_value
from repl_fx.errors import Untraceable
from repl_fx.tracing.data_dependent import asking_code

aten = torch.ops.aten

_library = define_operator(
    "repl_fx",
    "layout_asked(Tensor tensor, MemoryFormat? layout, SymInt[] found, str place) -> Tensor",
    lambda tensor, layout, found, place: torch.empty(()),
)


def layout_operator() -> Any:
    """The operator that marks a question about strides in a traced graph; no finished graph has it."""
    return torch.ops.repl_fx.layout_asked.default


# Nothing uses its result.
has_side_effect(layout_operator())


class Layouts(TorchFunctionMode):
    """Keeps each call of `.contiguous()` in a trace, and marks what the model's own code asks about strides.

    Args:
        aside: whether the trace is inside a leaf call, which asks for itself each time it runs.
    """

    def __init__(self, aside: Callable[[], bool]) -> None:
        super().__init__()
        self.aside = aside
        self._kernels = attention_kernels()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, and write down what it means for other strides."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and self._kernels != attention_kernels():
            raise Untraceable("the forward chooses kernels of attention (sdpa_kernel), which a graph would drop")
        if func is Tensor.contiguous and not self.aside() and has_no_value(args[0]):
            # The operator hands out its argument, which must not stand for the copy that it may be another time.
            return aten.contiguous.default(aten.alias.default(args[0]), **_layout(args, kwargs))
        result = func(*args, **kwargs)
        if func in (Tensor.is_contiguous, Tensor.stride) and not self.aside() and has_no_value(args[0]):
            self._note(func, args, kwargs)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any) -> None:
        frame = asking_code()
        if frame is None:
            return
        place = f" at {frame.f_code.co_filename}, line {frame.f_lineno}"
        if func is Tensor.stride:
            layout, found = None, args[0].stride()
        else:
            layout = _layout(args, kwargs)["memory_format"]
            found = [args[0].is_contiguous(memory_format=layout)]
        layout_operator()(args[0], layout, found, place)


def attention_kernels() -> tuple[bool, ...]:
    """The kinds of kernels that attention may take now, on any device."""
    kinds = torch.backends.cuda
    return (
        kinds.flash_sdp_enabled(),
        kinds.mem_efficient_sdp_enabled(),
        kinds.math_sdp_enabled(),
        kinds.cudnn_sdp_enabled(),
    )


def _layout(args: Any, kwargs: Any) -> dict[str, Any]:
    return {"memory_format": kwargs.get("memory_format", args[1] if len(args) > 1 else torch.contiguous_format)}
