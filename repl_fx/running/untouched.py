"""Run or trace a model so that it, its modes and the random generators are afterwards as they were."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.errors import ForeignError, foreign_code
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.meanwhile import set_by
from repl_fx.running.opaque_outputs import equal_leaves, same_value
from repl_fx.running.python_state import PythonState

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_CPU = torch.device("cpu")
# Parameters that a forward is known to write into; most write into none, and copies of all take memory.
_written: ContextVar[list[Tensor]] = ContextVar("written")


def writes_restored() -> AbstractContextManager[None]:
    """Give parameters that `note_written` has named their values back behind each run inside, as buffers get theirs."""
    return set_by(_written.set, [], _written.get([]))


def note_written(parameters: Iterable[Tensor]) -> None:
    """Name parameters that a forward writes into, to those around."""
    _written.get([]).extend(parameters)


class KeptTensors:
    """The values that tensors have, to be given back."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._kept = [(tensor, tensor.detach().clone()) for tensor in tensors if not tensor.is_meta]
        self._versions = [_version(tensor) for tensor, _ in self._kept]

    @torch.no_grad()
    def restore(self, *, compared: bool = False) -> None:
        """Give back the values to those that operators have changed in place.

        Args:
            compared: to those too whose values differ: a change through `.data` counts no version up, and comparing
                takes longer than small models.
        """
        for number, (tensor, value) in enumerate(self._kept):
            written = _version(tensor) != self._versions[number] and not torch.equal(tensor, value)
            if written or (compared and not equal_leaves(tensor, value)):
                if tensor.shape != value.shape:
                    # An observer's, say, which is empty until its layer has run.
                    tensor.resize_(value.shape)
                tensor.copy_(value)
                self._versions[number] = _version(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put a model in one mode for a while; afterwards each of its modules has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def untouched(model: nn.Module, *, buffers: bool = False, parameters: bool = False) -> Iterator[None]:
    """Give every module back the attributes it had, whatever a trace or a forward leaves there.

    Args:
        buffers: restore the values of buffers too, for a forward on real tensors, and of parameters that
            `note_written` has named.
        parameters: likewise of parameters.
    """
    changing = (*model.buffers(), *_written.get(())) if buffers else ()
    tensors = KeptTensors(dict.fromkeys([*changing, *(model.parameters() if parameters else ())]))
    restore = as_now(model)
    try:
        yield
    finally:
        restore()
        tensors.restore(compared=True)


def as_now(model: nn.Module) -> Callable[[], None]:
    """A function that gives every module the attributes that it has now."""
    state = PythonState(model, hooks_of(model))
    kept = [(module, dict(vars(module)), _registries(module)) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        state.restore()
        for parameter, required in trained:
            parameter.requires_grad = required
        for module, attributes, registries in kept:
            vars(module).clear()
            vars(module).update(attributes)
            for registry, content in registries:
                if registry or content:
                    registry.clear()
                    registry.update(content)

    return restore


def hooks_of(model: nn.Module) -> dict[str, Any]:
    """The hooks on modules and parameters, by any names."""
    held = [
        *(getattr(module, name, None) for module in model.modules() for name in _HOOKS),
        *(getattr(parameter, name, None) for parameter in model.parameters() for name in _TENSOR_HOOKS),
    ]
    hooks = dict.fromkeys(hook for registry in held if registry for hook in registry.values())
    return {f"hook {number}": hook for number, hook in enumerate(hooks)}


def _registries(module: nn.Module) -> list[tuple[Any, Any]]:
    """The dictionaries of every module (state, children, hooks), each with a copy."""
    own = (value for name, value in vars(module).items() if name.startswith("_"))
    # These very types: a library's frozen dict, say, cannot be filled again.
    kept = (registry for registry in own if type(registry) in (dict, OrderedDict, set))
    # Most are of hooks, and empty.
    return [(registry, registry.copy() if registry else ()) for registry in kept]


def own_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Leave the caller's random generators of torch as they are."""
    if device.type in ("cpu", "meta"):
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute in the precision that tensors have, inside of autocast too."""
    # The meta device knows no autocast, and refuses to say so.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the generators of torch, Python and numpy for a while; afterwards they are as they were."""
    state, array_state = random.getstate(), np.random.get_state()
    try:
        with own_randomness(device):
            seed_everything(seed, device)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(array_state)


def ordinary_attention() -> AbstractContextManager[None]:
    """Run torch's attention layers by their own code, as graphs do, and not by the one operator for inference.

    It is taken in evaluation where nothing needs gradients, as in a frozen encoder, and its last digits are others.
    """
    fast_path = torch.backends.mha
    return set_by(fast_path.set_fastpath_enabled, False, fast_path.get_fastpath_enabled())


def seed_everything(seed: int, device: torch.device = _CPU) -> None:
    """Seed the generators that a forward on a device may draw from: torch's, Python's and numpy's.

    Not by `torch.manual_seed`, which seeds every accelerator there is, and takes some milliseconds where there is none.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def device_of(model: nn.Module, inputs: ExampleInputs | None = None) -> torch.device:
    """The device of a model: that of its first parameter or buffer, or of the first input."""
    tensors = (*model.parameters(), *model.buffers(), *(inputs.tensors if inputs else ()))
    return tensors[0].device if tensors else torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """One run of a model in one mode.

    Attributes:
        outputs: the results, step by step; none where a step failed.
        problem: the error of the step that failed.
        buffers: the values of the module's buffers afterwards, by name, where these were asked for.
    """

    outputs: Sequence[Any]
    problem: Exception | None = None
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def equals(self, other: Outcome) -> bool:
        """Tell whether both returned the same, bit for bit."""
        return self.problem is None and other.problem is None and same_value(self.outputs, other.outputs)


def outcome_of(
    model: nn.Module,
    inputs: ExampleInputs,
    training: bool,
    *,
    steps: int = 1,
    within: Callable[[], AbstractContextManager[object]] = torch.enable_grad,
    buffers: bool = False,
) -> Outcome:
    """Run a model for its outputs alone, under one seed in each step; it and the inputs stay as they are.

    State that a forward changes shows in the second step.

    Args:
        within: makes the context in which the model runs.
        buffers: tell what these hold afterwards.
    """
    outputs = []
    device = device_of(model, inputs)
    with untouched(model, buffers=True), in_mode(model, training), seeded(device, 0):
        for _ in range(steps):
            seed_everything(0, device)
            try:
                with within(), ordinary_attention(), foreign_code():
                    made = inputs.fresh().passed_to(model)
            except ForeignError as failed:
                return Outcome((), failed.problem)
            outputs.append(pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), made))
        held = {name: buffer.detach().clone() for name, buffer in model.named_buffers() if buffers}
    return Outcome(outputs, buffers=held)
