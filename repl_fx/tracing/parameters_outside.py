"""Parameters that a forward does not take from its modules, but from a global, a closure or a list.

before   linear(x, self.tied[0])      a constant of the graph: no gradient reaches it, and what it learns is not seen
after    refused, so that torch.fx finds the parameter, or the code around parts of the model stays eager
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.errors import Untraceable
from repl_fx.graph.state import named_tensors
from repl_fx.tracing.functions_watched import Run


class ParametersOutside:
    """Refuses functions on parameters that torch.export takes for constants, where gradients flow.

    Args:
        in_leaf: whether a leaf is running, which computes with what it holds.
    """

    def __init__(self, in_leaf: Callable[[], bool]) -> None:
        self._in_leaf = in_leaf

    def watch(self, func: Any, args: Any, kwargs: Any, run: Run) -> Any:
        """Run the function, or refuse it."""
        # Parameters of the model have no values in a trace, and are of another class.
        read = (v for some in chain(args, kwargs.values()) for v in (some if type(some) in (list, tuple) else (some,)))
        held = [v for v in read if type(v) in (Tensor, nn.Parameter) and v.requires_grad]
        passed = not held or getattr(func, "__name__", "") in ("__get__", "detach") or not torch.is_grad_enabled()
        found = run(func, args, kwargs)
        if isinstance(found, Tensor) and not passed and not self._in_leaf():
            raise Untraceable(
                f"the forward computes with a parameter {list(held[0].shape)} that no module of its model gives it, "
                "and a graph would keep it as it is now; assign it to a module, or read it under torch.no_grad()"
            )
        return found


def require_own(name: str, tensor: Tensor, model: nn.Module) -> None:
    """Refuse a constant that begins in the memory of a parameter or buffer of the model, whose values change.

    Raises:
        Untraceable: names both.
    """
    begin = _address(tensor)
    for path, held in named_tensors(model).items():
        if begin and 0 <= begin - _address(held) < held.nbytes:
            raise Untraceable(
                f"the forward reads {name}, a view of {path} that was made before, and a graph would keep it as it is "
                "now; make it in the forward"
            )


def _address(tensor: Tensor) -> int:
    """The address of the first element of a tensor; 0 where it has none of its own."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return tensor.data_ptr() if plain else 0
