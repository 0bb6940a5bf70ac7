"""A forward of a module's own object, around the forward that it had; and activation checkpoints as one of these."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import update_wrapper
from types import MethodType
from typing import Any, Self

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from repl_fx.graph.captured import RefersToModules


def as_leaf(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> fx.Proxy | None:
    """The call of a module as one node of the symbolic trace of its arguments, as feature extractors make; else None.

    What a surrogate or the module before it reads besides its arguments would not be in such a trace.
    """
    for given in (*args, *kwargs.values()):
        if isinstance(given, fx.Proxy):
            tracer: Any = given.tracer
            made: fx.Proxy = tracer.create_proxy(
                "call_module", tracer.path_of_module(module), tuple(args), dict(kwargs)
            )
            return made
    return None


class WrappedForward(RefersToModules):
    """Base of the objects whose method stands in the attribute `forward` of a module; hooks on it are outside of them.

    A method, for torch.compile tells one from another by its code, and an object by its identity: blocks with forwards
    of one kind are compiled once.

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
        made = cls(module)
        module.__dict__["forward"] = made.forward
        return made

    @classmethod
    def on(cls, module: nn.Module) -> Self | None:
        """The forward of this kind that a module has, None where it has none."""
        found = getattr(vars(module).get("forward"), "__self__", None)
        return found if isinstance(found, cls) else None

    @property
    def forward(self) -> MethodType:
        """The method for the module, with the name and the signature of the forward that the module had."""

        def forward(self: WrappedForward, *args: Any, **kwargs: Any) -> Any:
            return self(*args, **kwargs)

        # An object that is being unpickled may not know its module yet.
        if "module" in vars(self):
            had = MethodType(type(self.module).forward, self.module) if self.own is None else self.own
            update_wrapper(forward, had, updated=())
            # By which a pickled method is found again.
            forward.__name__ = "forward"
            with suppress(ValueError):
                of = inspect.signature(had)
                first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
                forward.__signature__ = of.replace(parameters=[first, *of.parameters.values()])  # type: ignore[attr-defined]
        return MethodType(forward, self)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward that the module had."""
        return self.own(*args, **kwargs) if self.own else type(self.module).forward(self.module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, with more around it."""
        raise NotImplementedError


class CheckpointedForward(WrappedForward):
    """The forward of a block that is computed again in the backward pass, in place of keeping its inner values.

    Hooks on the block run once. Where nothing is learned, the forward runs as it is.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.module.training or not torch.is_grad_enabled():
            return self.run(*args, **kwargs)
        return checkpoint(self.run, *args, use_reentrant=False, **kwargs)
