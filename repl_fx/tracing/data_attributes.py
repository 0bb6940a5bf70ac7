"""`.data`, which a trace does not see by itself: it takes what is read for a constant, and drops what is set.

before   weight.data.clamp_(-1, 1)      clamps a constant
after    aten.clamp_(aten.detach(weight), -1, 1)

Nor does it see whether a parameter is frozen, or thawed, meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from repl_fx._torch import has_no_value
from repl_fx.errors import Untraceable
from repl_fx.tracing.asking import asking_code
from repl_fx.tracing.functions_watched import Run

_DATA: Any = Tensor.data
_GET, _SET = _DATA.__get__, _DATA.__set__
_FREEZE: Any = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]


class DataAttributes:
    """Lets a trace see what a forward reads as `.data`, and refuses what a graph would drop.

    Args:
        in_leaf: whether a leaf is running, which reads and sets for itself.
    """

    def __init__(self, in_leaf: Callable[[], bool]) -> None:
        self._in_leaf = in_leaf

    def watch(self, func: Any, args: Any, kwargs: Any, run: Run) -> Any:
        """Run the function, or what a trace sees in its place."""
        if func == _GET and has_no_value(args[0]) and not self._in_leaf():
            return run(Tensor.detach, args, kwargs)
        if func == _SET and has_no_value(args[0]) and not self._in_leaf() and asking_code():
            raise Untraceable("the forward sets `.data` of a tensor, which a graph does not")
        if func in _FREEZE and isinstance(args[0], nn.Parameter) and not self._in_leaf():
            wanted = (*args[1:], *kwargs.values(), True)[0]
            if args[0].requires_grad is not bool(wanted):
                raise Untraceable("the forward sets whether a parameter requires a gradient, which a graph does not")
        return run(func, args, kwargs)
