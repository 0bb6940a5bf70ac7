"""Run a module on shapes alone, and tell by the operators that it calls whether another returns the same.

    model   y = linear(x, w)      out = dropout(y)      term of `out`: dropout(linear(input 1, w)), draw 1
    graph   y = linear(x, w)      out = dropout(y)      the same term: the same result, on any values

What operators return follows from what they are, what they are given and which random numbers come next. Where two
runs get their results from the same operators on the same inputs and state, values would tell no more; where they do
not, or where the code asks for values, only these tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repl_fx._torch import (
    FakeTensor,
    FakeTensorMode,
    OperatorsRun,
    forget_tensors,
    memory_of,
    outside_of_trace,
    pytree,
    quiet_tracing,
)
from repl_fx.errors import BadInput, ForeignError, foreign_code
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.holders import bytes_of
from repl_fx.running.opaque_outputs import equal_leaves, open_objects
from repl_fx.running.untouched import device_of, in_mode, seeded, untouched

# Constants of a forward up to this many bytes are what they hold; others, such as weights, are where they are.
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class ShapeRun:
    """One run on shapes alone.

    Attributes:
        outputs: the leaves of the results, with what it holds in place of each tensor; None where the run stopped.
        open: it cannot be told so whether, or with what, a run on values ends.
        buffers: what the module's buffers hold afterwards, by name.
    """

    outputs: Sequence[Any] | None
    open: bool = False
    buffers: Mapping[str, Contents] = field(default_factory=dict)

    @property
    def stopped(self) -> bool:
        """A run on values stops as well."""
        return self.outputs is None and not self.open


class Contents(NamedTuple):
    """The contents of a tensor: the term of its memory, and the place in that."""

    term: int | None
    shape: torch.Size
    offset: int
    layout: tuple[Any, ...]


class WithoutValues:
    """Runs of modules on shapes alone, so that their results can be compared.

    Args:
        within: makes the context in which a module runs.
    """

    def __init__(self, within: Callable[[], AbstractContextManager[object]] = torch.enable_grad) -> None:
        self._within = within
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        # Terms by number: an operator or a tensor, with the numbers of what it takes.
        self._terms: dict[Any, int] = {}
        self._fakes: dict[int, tuple[Tensor, Tensor]] = {}

    def run(self, module: nn.Module, inputs: ExampleInputs, training: bool) -> ShapeRun:
        """Run a module in a mode; it and the random generators stay as they are."""
        terms = _Terms(self._mode, self._terms, self._fakes)
        try:
            with untouched(module), in_mode(module, training), seeded(device_of(module, inputs), 0), foreign_code():
                given = inputs.map(terms.input)
                # torch logs an operator that stops at a size, which is what a trial may be for.
                with quiet_tracing(), self._mode, terms, self._within():
                    made = given.passed_to(module)
                leaves = [
                    terms.read(terms.fake(leaf)) if isinstance(leaf, Tensor) else leaf
                    for leaf in pytree.tree_leaves(open_objects(made))
                ]
                buffers = {name: terms.read(terms.fake(buffer)) for name, buffer in module.named_buffers()}
        except ForeignError as failed:
            return ShapeRun(None, open=terms.unsure or not _is_of_sizes(failed.problem))
        finally:
            # Casts of weights, which autocast keeps, have no values.
            torch.clear_autocast_cache()
            forget_tensors(self._mode)
        return ShapeRun(leaves, terms.unsure, buffers)

    def returned(self, model: nn.Module, graph: nn.Module, inputs: ExampleInputs, training: bool) -> bool | None:
        """Tell whether two modules both return, and the same, or both stop; None where only values can tell."""
        ours = self.run(model, inputs, training)
        if ours.open or not same_results(ours, self.run(graph, inputs, training)):
            return None
        return not ours.stopped


def same_results(ours: ShapeRun, theirs: ShapeRun) -> bool | None:
    """Tell whether two runs end alike on values; None where only values can tell."""
    if ours.open or theirs.open:
        return None
    if ours.outputs is None or theirs.outputs is None:
        return ours.stopped and theirs.stopped
    if len(ours.outputs) != len(theirs.outputs):
        return False
    pairs = list(zip(ours.outputs, theirs.outputs, strict=True))
    if all(a == b if isinstance(a, Contents) else equal_leaves(a, b) for a, b in pairs):
        return all(a == b for a, b in buffers_of_both(ours.buffers, theirs.buffers)) or None
    told = all(a.shape == b.shape for a, b in pairs if isinstance(a, Contents) and isinstance(b, Contents))
    return None if told else False


def buffers_of_both(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Pairs of the contents of buffers of one name; tables that grow with the inputs are the source's own business."""
    both = ((ours[name], theirs[name]) for name in ours.keys() & theirs.keys())
    return [(a, b) for a, b in both if a.shape == b.shape]


def _is_of_sizes(problem: BaseException) -> bool:
    """Tell whether sizes alone stop a run, and not that there are no values."""
    return type(problem) in (BadInput, RuntimeError, ValueError, IndexError, AssertionError) and not re.search(
        "fake|subclass|storage|data pointer", str(problem), re.IGNORECASE
    )


class _Terms(OperatorsRun):  # type: ignore[no-untyped-call]
    """Runs operators on fakes, and knows the terms of the memories of tensors: what they held first, and all writes.

    Attributes:
        unsure: a tensor has none.
    """

    def __init__(self, mode: FakeTensorMode, numbers: dict[Any, int], fakes: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.unsure = False
        self._mode = mode
        self._numbers = numbers
        # By memory: its term, and a tensor in it, so that no other memory gets its place.
        self._held: dict[int, tuple[int, Tensor]] = {}
        self._fakes = fakes
        self._begun: set[int] = set()
        self._drawn = 0
        self._inputs = 0

    def input(self, tensor: Tensor) -> Tensor:
        """The fake of a copy of the next input."""
        self._inputs += 1
        with self._mode:
            fake = self._mode.from_tensor(tensor.detach()).clone()
        self._begin(fake, tensor, "input", self._inputs)
        return fake

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on fakes, and note the terms of what it returns and writes."""
        if function is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        read: list[Any] = [function]
        args = [self._given(value, read) for value in args]
        read += kwargs
        kwargs = {name: self._given(value, read) for name, value in kwargs.items()}
        result = function(*args, **kwargs)
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        drawn = torch.Tag.nondeterministic_seeded in function.tags
        if not made and not drawn:
            return result
        called = self._number(*read, self._drawn if drawn else None)
        if drawn:
            self._drawn = called
        for leaf in _written(function, args, kwargs):
            self._hold(leaf, "write", called, self.read(leaf))
        for index, leaf in enumerate(made):
            if memory_of(leaf) not in self._held:
                self._hold(leaf, "result", called, index)
        return result

    def _given(self, value: Any, read: list[Any]) -> Any:
        """An argument of an operator on fakes; what it holds is added to what the operator reads."""
        if isinstance(value, Tensor):
            value = self.fake(value)
            read.append(self.read(value))
        elif isinstance(value, (list, tuple)):
            read.append(len(value))
            value = [self._given(item, read) for item in value]
        else:
            read.append((type(value), repr(value)))
        return value

    def _number(self, *term: Any) -> int:
        return self._numbers.setdefault(term, len(self._numbers) + 1)

    def _hold(self, tensor: Tensor, *term: Any) -> None:
        self._held[memory_of(tensor)] = self._number(*term), tensor

    def read(self, tensor: Tensor) -> Contents:
        """The contents of a tensor now."""
        known = self._held.get(memory_of(tensor))
        self.unsure |= known is None
        return Contents(known and known[0], tensor.shape, int(tensor.storage_offset()), _layout(tensor))

    def fake(self, tensor: Tensor) -> Tensor:
        """A tensor of the run as it is, and one of the module's as a fake."""
        if isinstance(tensor, FakeTensor):
            return tensor
        with outside_of_trace():
            known = self._fakes.get(id(tensor))
            # A run may have turned it.
            if known is None or _layout(known[1]) != _layout(tensor):
                known = self._fakes[id(tensor)] = tensor, self._mode.from_tensor(tensor.detach())
            if id(tensor) not in self._begun:
                self._begun.add(id(tensor))
                small = tensor.numel() * tensor.element_size() <= _MOST_BYTES
                by_values = small and not isinstance(tensor, nn.Parameter) and not tensor.is_meta
                held = (bytes_of(tensor), *_layout(tensor)) if by_values else memory_of(tensor)
                self._begin(known[1], tensor, "state", held)
        return known[1]

    def _begin(self, fake: Tensor, tensor: Tensor, *term: Any) -> None:
        """Note what the memory of a tensor holds when the run begins."""
        known = self._held.get(memory_of(fake))
        if known is None:
            self._hold(fake, *term)
        # Two tensors in one memory, which their values do not tell; or such as have none.
        if (known and known[0] != self._number(*term)) or tensor.layout is not torch.strided or tensor.is_quantized:
            self.unsure = True


def _written(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among the arguments of an operator that it changes in place."""
    if not function._schema.is_mutable:
        return []
    arguments = function._schema.arguments
    given = dict(zip((argument.name for argument in arguments), args, strict=False)) | dict(kwargs)
    changed = (a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
    return [leaf for leaf in pytree.tree_leaves([given.get(name) for name in changed]) if isinstance(leaf, Tensor)]


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg()
