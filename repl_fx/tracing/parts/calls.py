"""Calls of the modules of a model while it runs, remembered as shapes, and runs that can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.errors import ForeignError, foreign_code
from repl_fx.graph.signature import is_writable
from repl_fx.running.equality import same_value
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import device_of, in_mode, seed_everything, seeded, untouched

SEED = 0
# State that a forward changes shows in the second.
STEPS = 2


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
        leaves: the flattened arguments; a `Blank` for each tensor, everything else as it was.
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

    def inputs(self, make: Callable[[Tensor, torch.device], Tensor] | None = None) -> ExampleInputs:
        """Arguments of this kind; zeros unless `make` makes other tensors of the meta tensor and the device it gets."""
        make = make or (lambda like, device: torch.zeros_like(like, device=device))
        leaves = [make(leaf.like, leaf.device) if isinstance(leaf, Blank) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return ExampleInputs(tuple(args), dict(kwargs))

    def obstacle(self) -> str | None:
        """Why no graph can take such a call, None where one may."""
        for leaf in self.leaves:
            if not isinstance(leaf, Blank) and not is_writable(leaf):
                return f"it is called with {_a(type(leaf).__name__)}"
        return None

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


@dataclass
class Calls:
    """All calls of one module, in the order they were made."""

    calls: list[Call] = field(default_factory=list)

    def typical(self) -> Call:
        """The call to trace: the one with the fewest sizes that a trace would take for constants."""
        return min(self.calls, key=lambda call: call.degenerate)

    def obstacle(self) -> str | None:
        """Why no graph can take all these calls, None where one may."""
        first = self.calls[0]
        for call in self.calls:
            reason = call.obstacle()
            if reason is not None:
                return reason
            if not first.fits(call):
                return "its calls differ in more than the sizes of tensors"
        return None


@dataclass(frozen=True)
class Outcome:
    """One run of a model in one mode.

    Attributes:
        outputs: the results, step by step; None where a step failed.
        problem: the error of the step that failed.
    """

    outputs: Any
    problem: Exception | None

    def equals(self, other: Outcome) -> bool:
        """Whether both returned the same, bit for bit."""
        return self.problem is None and other.problem is None and same_value(self.outputs, other.outputs)


class Watch:
    """Sees calls of some modules of a model while it runs.

    Args:
        modules: the modules, by path.
        see: called before each call with path and inputs.
    """

    def __init__(self, modules: Mapping[str, nn.Module], see: Callable[[str, ExampleInputs], None]) -> None:
        self.modules = modules
        self.see = see

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the calls made meanwhile."""
        handles = []
        try:
            for path, module in self.modules.items():
                handles.append(module.register_forward_pre_hook(self._hook(path), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.see(path, ExampleInputs(args, kwargs))

        return hook


def run(model: nn.Module, inputs: ExampleInputs, training: bool, watch: Watch | None = None) -> Outcome:
    """Run a model a few steps for its outputs alone: it, the inputs and the random generators stay as they are.

    Args:
        model: any module.
        inputs: the model gets copies, which it may change.
        training: the mode to run it in.
        watch: sees calls while it runs.

    Returns:
        Outputs, or what the model raised.
    """
    device = device_of(model, inputs)
    outputs = []
    with untouched(model, buffers=True), in_mode(model, training), seeded(device, SEED):
        for _ in range(STEPS):
            seed_everything(SEED)
            try:
                with torch.enable_grad(), watch.watching() if watch else nullcontext(), foreign_code():
                    made = inputs.fresh().passed_to(model)
            except ForeignError as failed:
                return Outcome(None, failed.problem)
            outputs.append(pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), made))
    return Outcome(outputs, None)


def _blank(tensor: Tensor) -> Blank:
    return Blank(torch.empty_like(tensor.detach(), device="meta"), tensor.device)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
