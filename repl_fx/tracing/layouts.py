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

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import has_side_effect
from torch.nn import functional

from repl_fx._torch import OpOverload, call_instead, define_operator, example_of, has_example, has_no_value
from repl_fx.graph.known_shapes import is_contiguous
from repl_fx.tracing.asking import asking_code, line_of
from repl_fx.tracing.functions_watched import Run
from repl_fx.tracing.leaf_calls import LeafCalls

aten = torch.ops.aten

# The operator that marks a question about strides in a traced graph; no finished graph has it.
LAYOUT_ASKED = define_operator(
    "layout_asked(Tensor tensor, MemoryFormat? layout, SymInt[] found, str place) -> Tensor",
    lambda tensor, layout, found, place: torch.empty(()),
)
# Nothing uses its result.
has_side_effect(LAYOUT_ASKED)

_ATTENTION = frozenset({functional.scaled_dot_product_attention, functional.multi_head_attention_forward})
_QUESTIONS = frozenset({Tensor.is_contiguous, Tensor.stride})
# As `to`, they return their argument itself where it is in that precision.
_PRECISIONS = frozenset({Tensor.type, Tensor.type_as, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16})
# The operators that may return their argument, or a view of it, and what torch.export asserts of arguments of some.
_SHARING = (
    *(aten.contiguous, aten.to, aten.type_as, aten.reshape, aten.reshape_as, aten.flatten, aten.ravel),
    aten._assert_tensor_metadata,
)
# Operators that make views where they can, and copies elsewhere.
_SHAPED = frozenset(
    {Tensor.reshape, torch.reshape, Tensor.reshape_as, Tensor.flatten, torch.flatten, Tensor.ravel, torch.ravel}
)
_WATCHED = _ATTENTION | _QUESTIONS | _PRECISIONS | _SHAPED | {Tensor.contiguous, Tensor.to}


def is_stand_in(node: fx.Node) -> bool:
    """Tell whether a node of a trace is its argument, made by `Layouts` for what is a copy of that another time."""
    packets = (getattr(user.target, "overloadpacket", None) for user in node.users)
    return node.target is aten.alias.default and all(one in _SHARING for one in packets)


class Layouts:
    """Keeps each call of `.contiguous()` in a trace, and marks what the model's own code asks about strides.

    Args:
        calls: of leaves, which ask for themselves each time they run.
    """

    def __init__(self, calls: LeafCalls) -> None:
        self.calls = calls

    def watch(self, func: Any, args: Any, kwargs: Any, run: Run) -> Any:
        """Run the function, and write down what it means for other strides."""
        if func not in _WATCHED:
            return run(func, args, kwargs)
        if func in _SHAPED and not args:
            args, kwargs = (kwargs["input"],), {name: value for name, value in kwargs.items() if name != "input"}
        if func in _ATTENTION:
            self.calls.require_kernels()
        if func in _ATTENTION or self.calls.running or not has_no_value(args[0]):
            return run(func, args, kwargs)
        tensor, *others = args
        if func in _QUESTIONS:
            self._note(func, args, kwargs)
        elif func in _SHAPED:
            tensor = _contiguous(tensor, aten.alias.default) if _is_by_chance(tensor) else tensor
        elif func is Tensor.contiguous or "memory_format" in kwargs or asking_code() is not None:
            # Operators may hand out their argument, which must not stand for the copy that it is another time.
            # `torch.tensor` detaches what it converts in place, which no alias takes.
            tensor = aten.alias.default(tensor)
        if func is not Tensor.contiguous:
            return run(func, (tensor, *others), kwargs)
        layout = _layout(args, kwargs)
        by_chance = layout["memory_format"] == torch.contiguous_format and _is_by_chance(tensor)
        return _contiguous(tensor, aten.contiguous.default) if by_chance else aten.contiguous.default(tensor, **layout)

    def _note(self, func: Any, args: Any, kwargs: Any) -> None:
        frame = asking_code()
        if frame is None:
            return
        if func is Tensor.stride:
            layout, found = None, args[0].stride()
        else:
            layout = _layout(args, kwargs)["memory_format"]
            found = [args[0].is_contiguous(memory_format=layout)]
        LAYOUT_ASKED(args[0], layout, found, f" at {line_of(frame)}")


def _contiguous(tensor: Tensor, operator: OpOverload) -> Tensor:
    """A tensor as `contiguous` returns it, of its strides at other sizes, too; the trace calls the operator for it.

    Torch hands out a tensor that only the sizes of the example make contiguous, and has the sizes of its views wrong.
    """
    return call_instead(aten.clone.default(tensor, memory_format=torch.contiguous_format), operator)


def _is_by_chance(tensor: Tensor) -> bool:
    """Tell whether a tensor is contiguous at the sizes of the example, and need not be at others."""
    numbers = (*tensor.shape, *tensor.stride())
    if all(isinstance(size, int) for size in tensor.shape) or not all(map(has_example, numbers)):
        return False
    step = 1
    for size, own in zip(map(example_of, tensor.shape[::-1]), map(example_of, tensor.stride()[::-1]), strict=True):
        if size != 1 and own != step:
            return False
        step *= size
    return not is_contiguous(tensor)


def _layout(args: Any, kwargs: Any) -> dict[str, Any]:
    return {"memory_format": kwargs.get("memory_format", args[1] if len(args) > 1 else torch.contiguous_format)}
