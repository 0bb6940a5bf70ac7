"""`.data`, which a trace does not see by itself: it takes what is read for a constant, and drops what is set.

before   weight.data.clamp_(-1, 1)      clamps a constant
after    aten.clamp_(aten.detach(weight), -1, 1)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from repl_fx._torch import has_no_value
from repl_fx.errors import Untraceable
from repl_fx.tracing.asking import asking_code, line_of
from repl_fx.tracing.functions_watched import Run

_DATA: Any = Tensor.data
_GET, _SET = _DATA.__get__, _DATA.__set__


class DataAttributes:
    """Lets a trace see what a forward reads as `.data`.

    Args:
        in_leaf: whether a leaf is running, which reads and sets for itself.
    """

    def __init__(self, in_leaf: Callable[[], bool]) -> None:
        self._in_leaf = in_leaf

    def watch(self, func: Any, args: Any, kwargs: Any, run: Run) -> Any:
        """Run the function, or what a trace sees in its place."""
        if func in (_GET, _SET) and has_no_value(args[0]) and not self._in_leaf():
            if func == _GET:
                return run(Tensor.detach, args, kwargs)
            if frame := asking_code():
                raise Untraceable(f"the forward sets `.data` of a tensor, which a graph does not (at {line_of(frame)})")
        return run(func, args, kwargs)
