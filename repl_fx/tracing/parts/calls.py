"""Calls of the modules of a model while it runs, remembered as shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.graph.signature import is_writable
from repl_fx.running.example_inputs import ExampleInputs


@dataclass(frozen=True)
class Blank:
    """A tensor without its values.

    Attributes:
        like: on the meta device, with the shape, strides and dtype of the tensor.
        device: where the tensor was.
    """

    like: Tensor
    device: torch.device

    @property
    def key(self) -> tuple[Any, ...]:
        """The key of a tensor in calls that may differ in its sizes alone."""
        return (self.like.ndim, self.like.dtype, self.device)


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
        blank = inputs.map(_blank)
        leaves, structure = pytree.tree_flatten((blank.args, blank.kwargs))
        return cls(structure, tuple(leaves), training)

    def inputs(self) -> ExampleInputs:
        """Arguments of this kind, whose tensors are all zero."""
        leaves = [
            torch.zeros_like(leaf.like, device=leaf.device) if isinstance(leaf, Blank) else leaf for leaf in self.leaves
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return ExampleInputs(tuple(args), dict(kwargs))

    def fits(self, other: Call) -> bool:
        """Whether one graph may take both calls: they differ in sizes at most."""
        return self.structure == other.structure and all(
            ours.key == theirs.key
            if isinstance(ours, Blank) and isinstance(theirs, Blank)
            else type(ours) is type(theirs) and bool(ours == theirs)
            for ours, theirs in zip(self.leaves, other.leaves, strict=True)
        )

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors."""
        return tuple(tuple(leaf.like.shape) for leaf in self.leaves if isinstance(leaf, Blank))

    @property
    def degenerate(self) -> int:
        """How many dimensions have size 0 or 1, which a trace takes for constants."""
        return sum(size < 2 for shape in self.shapes() for size in shape)


def typical(calls: Sequence[Call]) -> Call:
    """The call of a module to trace: the one with the fewest sizes that a trace would take for constants."""
    return min(calls, key=lambda call: call.degenerate)


def obstacle_of(calls: Sequence[Call]) -> str | None:
    """Why no graph can take all these calls of a module, None where one may."""
    for call in calls:
        for leaf in call.leaves:
            if not isinstance(leaf, Blank) and not is_writable(leaf):
                return f"it is called with {_a(type(leaf).__name__)}"
        if not calls[0].fits(call):
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


def _blank(tensor: Tensor) -> Blank:
    return Blank(torch.empty_like(tensor.detach(), device="meta"), tensor.device)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
