"""Sizes that a forward computes through tensors: `x.view(n, torch.div(x.shape[1], 4, rounding_mode="trunc"), …)`.

A trace takes a number that comes out of a tensor for one it cannot know, and stops where a shape depends on it. Where
the tensor was made from sizes by whole-number arithmetic, its number is the same arithmetic on the sizes, and the
trace is told so.

    before   div = aten.div(size, 4, trunc) -> item -> view(x, [n, item, 4])       of unknown size
    after    floordiv = size // 4 -> view(x, [n, floordiv, 4])
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from repl_fx._torch import fixed_size, has_no_value, know_values, set_item
from repl_fx.errors import Untraceable
from repl_fx.tracing.functions_watched import Run

_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
_DIVISIONS = frozenset({"div", "divide", "floor_divide", "floordiv"})
_NBYTES = vars(torch._C.TensorBase)["nbytes"].__get__
_MADE_FROM_ONE = frozenset({"tensor", "scalar_tensor", "as_tensor"})


class SizeTensors:
    """Tells a trace the numbers in small ranges, and in tensors of one whole number made from sizes alone."""

    def __init__(self) -> None:
        # Each tensor with its version and number. They are kept, so that no other tensor gets their identity.
        self._known: dict[int, tuple[Tensor, int, Any]] = {}

    def watch(self, func: Any, args: Any, kwargs: Any, run: Run) -> Any:
        """Run the function, and note the number of its result where that is known."""
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            # Python would ask the tensors in a slice for numbers that do not vary.
            args = (args[0], self._index(args[1]), *args[2:])
        elif func == _NBYTES:
            # torch's own has to return a number.
            return args[0].numel() * args[0].element_size()
        result = run(func, args, kwargs)
        # What has just become a number of Python's, unless the trace has fixed the sizes it came from.
        number = self._operand(args[0]) if func in (Tensor.__int__, Tensor.__index__) else None
        if number is not None and fixed_size(number) is None:
            raise Untraceable(
                "a size that went through a tensor becomes a plain number, and a graph would repeat that of the trace"
            )
        if not isinstance(result, Tensor) or result.dtype is not torch.int64 or not has_no_value(result):
            return result
        if func is torch.arange and all(type(bound) is int for bound in args):
            know_values(result, partial(torch.arange, *args, dtype=torch.int64))
        number = None if result.ndim else self._number(getattr(func, "__name__", ""), args, kwargs)
        if number is not None:
            set_item(result, number)
            self._known[id(result)] = result, result._version, number
        return result

    def _number(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of a function on known numbers; None where it is another function or a number is not known."""
        operands = [self._operand(value) for value in args]
        if not operands or any(value is None for value in operands):
            return None
        settings = {key: value for key, value in kwargs.items() if key not in ("dtype", "device")}
        if len(operands) == 1:
            return operands[0] if name in _MADE_FROM_ONE and not settings else None
        if len(operands) != 2:
            return None
        # The operator of a number and the method of a tensor are one computation.
        name = name.removeprefix("__").removesuffix("__")
        if name in ("radd", "rsub", "rmul"):
            name, operands = name[1:], operands[::-1]
        if name in _ARITHMETIC and not settings:
            return _ARITHMETIC[name](*operands)
        rounds = settings.pop("rounding_mode", None) if name in ("div", "divide") else "floor"
        if name not in _DIVISIONS or rounds is None or settings:
            return None
        # Rounding down and rounding to zero are the same then.
        positive = statically_known_true(operands[0] >= 0) and statically_known_true(operands[1] > 0)
        return operands[0] // operands[1] if positive else None

    def _index(self, index: Any) -> Any:
        if isinstance(index, tuple):
            return tuple(self._index(item) for item in index)
        if not isinstance(index, slice):
            return index
        numbers = [(end, self._operand(end)) for end in (index.start, index.stop, index.step)]
        return slice(*(end if number is None else number for end, number in numbers))

    def _operand(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            known, version, number = self._known.get(id(value), (None, 0, None))
            return number if known is value and known._version == version else None
        return value if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool) else None
