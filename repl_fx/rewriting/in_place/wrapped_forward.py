"""A forward of a module's own object, around the forward that it had; and activation checkpoints as one of these."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial, update_wrapper
from types import MethodType
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from repl_fx.graph.captured import RefersToModules
from repl_fx.running.meanwhile import set_by


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

    Hooks on the block run once, and buffers such as the statistics of a batch norm are written once. Where nothing is
    learned, the forward runs as it is.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.module.training or not torch.is_grad_enabled():
            return self.run(*args, **kwargs)
        # A compiler computes again by itself, without writing again.
        run = self.run if torch.compiler.is_compiling() else self._repeatable()
        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    def _repeatable(self) -> Callable[..., Any]:
        """The forward, whose runs after the first meet the buffers that the first met, and write none."""
        met: list[tuple[dict[str, Tensor | None], str, Tensor]] | None = None

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal met
            if met is None:
                places = [(m._buffers, name) for m in self.module.modules() for name in m._buffers]
                held = [(of, name, b, b._version) for of, name in places if (b := of[name]) is not None]
                before = {id(b): b.clone() for _, _, b, _ in held}
                result = self.run(*args, **kwargs)
                # torch counts no write into statistics of a batch norm, which are vectors.
                met = [
                    (of, name, before[id(b)])
                    for of, name, b, version in held
                    if b.dim() == 1 or of.get(name) is not b or b._version != version
                ]
                return result
            again = {id(b): b.clone() for _, _, b in met}
            with ExitStack() as stack:
                for of, name, b in met:
                    stack.enter_context(set_by(partial(of.__setitem__, name), again[id(b)], of[name]))
                return self.run(*args, **kwargs)

        return run
