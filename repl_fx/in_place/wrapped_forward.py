"""A forward of a module's own object, around the forward that it had."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Self

from torch import nn

from repl_fx.graph.captured import RefersToModules


class WrappedForward(RefersToModules):
    """Base of the objects that stand in the attribute `forward` of a module; hooks on the module are outside of them.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        # A forward that someone else has put there goes on.
        self.own: Callable[..., Any] | None = vars(module).get("forward")
        self.module = module

    @classmethod
    def put_on(cls, module: nn.Module) -> Self:
        """Let a module have such a forward from now on."""
        forward = cls(module)
        # The signature is that of the module's own forward.
        update_wrapper(forward, module.forward, updated=())
        module.__dict__["forward"] = forward
        return forward

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward that the module had."""
        return self.own(*args, **kwargs) if self.own else type(self.module).forward(self.module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, with more around it."""
        raise NotImplementedError
