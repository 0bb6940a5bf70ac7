"""One mode that sees each function of torch that a trace calls, for all that watch.

Each mode of torch's costs microseconds for each function and each attribute of a tensor, tens of thousands in a trace;
so there is one, and it lets pass at once what nobody watches: the attributes that tell what a tensor is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor
from torch.overrides import TorchFunctionMode

Run = Callable[[Any, Any, Any], Any]
_PASSED = frozenset(
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "is_cuda", "is_cpu")
) | {Tensor.size, Tensor.dim, Tensor.is_floating_point, Tensor.numel}


class Watcher(Protocol):
    """Sees functions that a trace calls."""

    def watch(self, func: Any, args: Any, kwargs: Any, run: Run) -> Any:
        """The result of a function, which `run` calls."""


class FunctionsWatched(TorchFunctionMode):
    """Shows each call of a function of torch's to watchers, to the first one first."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        super().__init__()
        self._run: Run = lambda func, args, kwargs: func(*args, **kwargs)
        for watcher in reversed(watchers):
            self._run = partial(watcher.watch, run=self._run)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function under the eyes of the watchers."""
        if func in _PASSED:
            return func(*args, **(kwargs or {}))
        return self._run(func, args, kwargs or {})
