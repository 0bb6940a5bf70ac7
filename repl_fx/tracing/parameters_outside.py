"""Parameters that a forward does not take from its modules, but from a global, a closure or a list.

before   linear(x, self.tied[0])      a constant of the graph: no gradient reaches it, and what it learns is not seen
after    linear(x, tied_weight)        where it is a parameter of the model's own; others are refused
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.errors import Untraceable
from repl_fx.graph.state import named_tensors
from repl_fx.tracing.functions_watched import Run


class ParametersOutside:
    """Gives functions the model's parameters, and refuses others that torch.export takes for constants with gradients.

    Args:
        model: the one to trace, before its trace.
        in_leaf: whether a leaf is running, which computes with what it holds.
    """

    def __init__(self, model: nn.Module, in_leaf: Callable[[], bool]) -> None:
        self._model = model
        self._paths = {parameter: path for path, parameter in model.named_parameters()}
        self._in_leaf = in_leaf

    def watch(self, func: Any, args: Any, kwargs: Any, run: Run) -> Any:
        """Run the function, or refuse it."""
        # Parameters of the model have no values in a trace, and are of another class.
        read = (v for some in chain(args, kwargs.values()) for v in (some if type(some) in (list, tuple) else (some,)))
        held = [v for v in read if type(v) in (Tensor, nn.Parameter) and v.requires_grad]
        if any(v in self._paths for v in held) and not self._in_leaf():
            args, kwargs = pytree.tree_map_only(nn.Parameter, self._of_model, (args, kwargs))
            held = [v for v in held if v not in self._paths]
        passed = not held or getattr(func, "__name__", "") in ("__get__", "detach") or not torch.is_grad_enabled()
        found = run(func, args, kwargs)
        if isinstance(found, Tensor) and not passed and not self._in_leaf():
            raise Untraceable(
                f"the forward computes with a parameter {list(held[0].shape)} that no module of its model gives it, "
                "and a graph would keep it as it is now; assign it to a module, or read it under torch.no_grad()"
            )
        return found

    def _of_model(self, parameter: nn.Parameter) -> nn.Parameter:
        """The parameter as the trace sees it, where it is one of the model's."""
        path = self._paths.get(parameter)
        return parameter if path is None else self._model.get_parameter(path)


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
