"""Calls of the modules of a model while it runs, remembered as shapes, and of their methods.

A graph in the place of a module has no methods that the code around it could call.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.arguments import in_words
from repl_fx.graph.signature import is_writable
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.meanwhile import set_by
from repl_fx.tracing.asking import first_argument, outwards


@dataclass(frozen=True)
class Blank:
    """A tensor without its values: one like it on the meta device, and the device that it was on."""

    like: Tensor
    device: torch.device


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        structure: of (args, kwargs).
        leaves: a `Blank` for each tensor, everything else as it was.
        training: the mode of the run it was made in.
    """

    structure: pytree.TreeSpec
    leaves: tuple[Any, ...]
    training: bool

    @classmethod
    def of(cls, inputs: ExampleInputs, training: bool) -> Call:
        """Describe a call; none of its tensors is kept."""
        blank = inputs.map(lambda t: Blank(torch.empty_like(t.detach(), device="meta"), t.device))
        leaves, structure = pytree.tree_flatten((blank.args, blank.kwargs))
        return cls(structure, tuple(leaves), training)

    def inputs(self) -> ExampleInputs:
        """Arguments of this kind, whose tensors are all zero."""
        leaves = [
            torch.zeros_like(leaf.like, device=leaf.device) if isinstance(leaf, Blank) else leaf for leaf in self.leaves
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return ExampleInputs(tuple(args), dict(kwargs))

    @property
    def kind(self) -> tuple[Any, ...]:
        """All of a call but the sizes of its tensors: one graph may take the calls of one kind."""
        leaves = (
            (leaf.like.ndim, leaf.like.dtype, leaf.device) if isinstance(leaf, Blank) else (type(leaf), leaf)
            for leaf in self.leaves
        )
        return self.structure, *leaves

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors."""
        return tuple(tuple(leaf.like.shape) for leaf in self.leaves if isinstance(leaf, Blank))

    @property
    def degenerate(self) -> int:
        """The number of dimensions of size 0 or 1, which a trace takes for constants."""
        return sum(size < 2 for shape in self.shapes() for size in shape)


def typical(calls: Sequence[Call]) -> Call:
    """The call of a module to trace: the one with the fewest sizes that a trace would take for constants."""
    return min(calls, key=lambda call: call.degenerate)


def obstacle_of(calls: Sequence[Call]) -> str | None:
    """Why no graph can take all these calls of a module, None where one may."""
    for call in calls:
        for leaf in call.leaves:
            if not isinstance(leaf, Blank) and not is_writable(leaf):
                return f"it is called with {in_words(leaf)}"
        if call.kind != calls[0].kind:
            return "its calls differ in more than the sizes of tensors"
    return None


@contextmanager
def calls_seen(modules: Mapping[str, nn.Module], see: Callable[[str, ExampleInputs], None]) -> Iterator[None]:
    """Tell `see` path and inputs before each call of these modules, by path, that is made meanwhile."""

    def hook(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(path, ExampleInputs(args, kwargs))

    with ExitStack() as hooks:
        for path, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(hook, path), with_kwargs=True))
        yield


# Of these a graph has its own: a model of transformers asks for its kernels as it is trained or evaluated.
_OWN = ("forward", "train", "eval")


@contextmanager
def methods_seen(model: nn.Module, found: dict[str, list[str]]) -> Iterator[None]:
    """Note calls, by this thread, of methods on modules of a model that are not being called at that moment.

    Args:
        found: filled with the methods of a module, or of a module in it, that code outside of it called, by its path.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    names = {code: name for module in model.modules() for kind in type(module).__mro__ for name, code in _methods(kind)}

    def profile(frame: FrameType, event: str, _: Any) -> None:
        # Called for every call of a function: what is no method of these modules must be passed over at once.
        if event != "call" or frame.f_code not in names or (path := paths.get(id(first_argument(frame)))) is None:
            return
        replaced = (caller for caller in outwards(frame.f_back) if caller.f_code.co_name in _OWN)
        running = {paths.get(id(first_argument(caller))) for caller in replaced}
        steps = path.split(".") if path else []
        for depth in range(1, len(steps) + 1):
            around = ".".join(steps[:depth])
            called = ".".join([*steps[depth:], names[frame.f_code]])
            # From inside, the graph has what the method did, or need not do it.
            if around not in running and called not in found.setdefault(around, []):
                found[around].append(called)

    with set_by(sys.setprofile, profile, sys.getprofile()):
        yield


def _methods(kind: type) -> Iterator[tuple[str, CodeType]]:
    """The methods and properties of a class that a graph module has not got."""
    if kind is nn.Module or kind is object:
        return
    for name, value in vars(kind).items():
        function = inspect.unwrap(value.fget if isinstance(value, property) and value.fget else value)
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType) and name != "forward" and not hasattr(nn.Module, name):
            yield name, code
