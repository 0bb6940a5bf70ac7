"""What a forward changes of a model's Python state: noted in a trace, refused where a graph would have to follow it.

step 1, step 2                  what the second step leaves behind must be what the first one left
step 1, step 2 as if no step 1  with the Python state of before the first, the second must compute the same, also where
                                its inputs are of a smaller size
"""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from types import FunctionType
from typing import Any, Self

import torch
from torch import Tensor, nn

from repl_fx.errors import CaptureError, ForeignError, foreign_code, listed
from repl_fx.running.code_names import codes_in, is_foreign
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.meanwhile import forward_replaced
from repl_fx.running.opaque_outputs import same_value
from repl_fx.running.python_state import PythonChange, PythonState
from repl_fx.running.untouched import device_of, in_mode, outcome_of, seed_everything, seeded, untouched
from repl_fx.tracing.leaves import is_leaf


@dataclass
class StateChanges:
    """The changes that a trace made to a model's Python state.

    Attributes:
        changes: differences after the trace, or after the model's forward in it.
        unseen: paths of the state of which nothing can be said, such as unseen.
        replaced: paths of the parameters and modules in whose place there were others.
    """

    changes: list[PythonChange] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changes or self.unseen)


@contextmanager
def changes_noted(model: nn.Module) -> Iterator[StateChanges]:
    """Note what a trace of a model changes of its Python state, leaf calls apart.

    torch.export puts attributes back when it is done, so the state is looked at in the forward as well.
    """
    noted = StateChanges()
    own = model.forward

    @contextmanager
    def compared() -> Iterator[None]:
        before, tree = PythonState(model), _tree(model)
        yield
        noted.changes += before.changes(PythonState(model))
        noted.unseen = before.unseen
        after = _tree(model)
        noted.replaced += [path for path in {**tree, **after} if tree.get(path) != after.get(path)]

    # Not the module: it is no function of the user's, and its closure no state.
    @wraps(own, assigned=("__name__", "__qualname__", "__doc__"))
    def forward(*args: Any, **kwargs: Any) -> Any:
        with compared():
            return own(*args, **kwargs)

    with compared(), forward_replaced(model, forward):
        yield noted


def _tree(model: nn.Module) -> dict[str, int]:
    """The identities of all modules and parameters, by path."""
    modules = {path: id(module) for path, module in model.named_modules(remove_duplicate=False)}
    return modules | {path: id(parameter) for path, parameter in model.named_parameters(remove_duplicate=False)}


def require_settled(model: nn.Module, changes: StateChanges, inputs: ExampleInputs, training: bool) -> None:
    """Refuse a model if Python state has a part in its second step, or moves with every step.

    An activation that is kept for the user has no part; a table that is made when it is first needed does not move.

    The model is run four times on copies of the inputs, and not at all where a trace made no changes.

    Raises:
        CaptureError: names the state, with the line of the model that changes it.
    """
    if not changes:
        return
    inputs = inputs.map(_valued)
    device = device_of(model, inputs)
    other = inputs.map(_other_values)
    if outcome_of(model, other, training).problem is not None:
        other = inputs.map(_scaled)
    with untouched(model, buffers=True, parameters=True), in_mode(model, training), seeded(device, 0):
        # Other inputs: what they leave behind may be right for them alone, or for the last ones before this.
        second = _SecondStep.after(model, other, inputs)
        moving = [change.path for change in second.moved if not change.is_tensor]
        if moving:
            raise _refusal(model, moving, "moves with every forward")
        if not same_value(second.outcome, second.as_if_first(model, inputs)):
            raise _refusal(model, _paths(changes, second), "changes in one forward and has a part in the next")


def require_sizes_forgotten(
    model: nn.Module, changes: StateChanges, inputs: ExampleInputs, other: ExampleInputs, training: bool
) -> None:
    """Refuse a model if Python state that a step leaves behind has a part in one at smaller sizes.

    A table that grows has none; frequencies that are those of the longest text so far have one. Nothing is said where
    the model does not take the other sizes.

    Args:
        other: inputs of other sizes than the example's.

    Raises:
        CaptureError: names the state, with the line of the model that changes it.
    """
    smaller, larger = sorted((inputs, other), key=lambda given: sum(tensor.numel() for tensor in given.tensors))
    device = device_of(model, inputs)
    with (
        suppress(ForeignError),
        untouched(model, buffers=True, parameters=True),
        in_mode(model, training),
        seeded(device, 0),
    ):
        second = _SecondStep.after(model, larger, smaller)
        # Not what it leaves: a table may stay as long as it was.
        if not same_value(second.outcome[0], second.as_if_first(model, smaller)[0]):
            part = "has a part in the next where sizes differ (`fixed` names sizes to keep)"
            raise _refusal(model, _paths(changes, second), f"changes in one forward and {part}")


@dataclass(frozen=True)
class _SecondStep:
    """A step after another one.

    Attributes:
        moved: what it changed of the Python state.
        outcome: its outputs, with the parameters and buffers as it left them.
        tensors: the parameters and buffers of each module as the first step left them.
    """

    moved: list[PythonChange]
    outcome: tuple[Any, list[Tensor]]
    tensors: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]]

    @classmethod
    def after(cls, model: nn.Module, first: ExampleInputs, second: ExampleInputs) -> Self:
        # Modes and hooks are as before the first step too; tensors stay as that left them.
        with untouched(model):
            _step(model, first)
            tensors = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
            with untouched(model, buffers=True, parameters=True):
                between = PythonState(model)
                outputs = _step(model, second)
                moved = between.changes(PythonState(model))
                return cls(moved, (outputs, _values(model)), tensors)

    def as_if_first(self, model: nn.Module, inputs: ExampleInputs) -> tuple[Any, list[Tensor]]:
        """The outcome of the step with the Python state of before the first one."""
        for module, parameters, buffers in self.tensors:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        return _step(model, inputs), _values(model)


def _paths(changes: StateChanges, second: _SecondStep) -> list[str]:
    return [*dict.fromkeys(change.path for change in (*second.moved, *changes.changes)), *changes.unseen]


def buffer_settles(model: nn.Module, path: str, inputs: ExampleInputs) -> bool:
    """Tell whether a buffer is after a second forward, on other inputs, what it was after the first.

    A table that is made when it is first needed settles: a graph may make it anew each time. The model is run on copies
    of the inputs, in its mode, and is not changed.
    """
    with untouched(model, buffers=True, parameters=True), seeded(device_of(model, inputs), 0):
        _step(model, inputs)
        first = model.get_buffer(path).detach().clone()
        _step(model, inputs.map(_scaled))
        return same_value(first, model.get_buffer(path).detach())


def require_leaves_left(model: nn.Module, changes: StateChanges) -> None:
    """Refuse a model whose forward sets attributes of modules that the graph calls, such as the rate of a dropout.

    Raises:
        CaptureError: names the attribute.
    """
    if changes.replaced:
        raise _refusal(model, changes.replaced, "as the forward leaves it has other parameters or modules")
    leaves = [path for path, module in model.named_modules() if path and is_leaf(module)]
    for change in changes.changes:
        if any(change.path.removeprefix("len(").startswith(f"{path}.") for path in leaves):
            raise _refusal(model, [change.path], "of a module that the graph calls is set by the forward around it")


def _step(model: nn.Module, inputs: ExampleInputs) -> Any:
    seed_everything(0, device_of(model, inputs))
    with torch.enable_grad(), foreign_code():
        return inputs.fresh().passed_to(model)


def _values(model: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]


def _valued(tensor: Tensor) -> Tensor:
    """An input with other values where it is all zero: a running mean of zeros would not move."""
    floats = tensor.is_floating_point() and not tensor.is_meta and tensor.numel()
    if not floats or tensor.any():
        return tensor
    return torch.linspace(-1, 1, tensor.numel()).to(tensor).view(tensor.shape)


def _scaled(tensor: Tensor) -> Tensor:
    return tensor * 0.9 if tensor.is_floating_point() else tensor


def _other_values(tensor: Tensor) -> Tensor:
    """An input of the same kind with other values; flags and masks are as they are."""
    numbers = not (tensor.is_meta or tensor.dtype is torch.bool or tensor.is_floating_point() or tensor.is_complex())
    if numbers and tensor.numel() and bool(tensor.max() > 1):
        # One of its own values, such as a number of a word, in all places.
        return torch.full_like(tensor, int(tensor.flatten()[0]))
    return _scaled(tensor)


def _refusal(model: nn.Module, paths: Sequence[str], what: str) -> CaptureError:
    # A container that grew is named, and not its items.
    grown = [path[4:-1] for path in paths if path.startswith("len(")]
    paths = [*grown, *(p for p in paths if not p.startswith(("len(", *(f"{path}[" for path in grown))))]
    return CaptureError(
        type(model).__name__,
        [
            f"Python state {what}: {listed(paths)}{_place_of(model, paths[0])}; a graph has no Python state: "
            "keep it in a buffer, or outside the forward"
        ],
    )


def _place_of(model: nn.Module, path: str) -> str:
    """File and line where a model's code names the attribute at a `Change.path`, behind a comma; empty if nowhere."""
    found = ""
    for module_path, module in model.named_modules():
        if not path.removeprefix("len(").startswith(module_path):
            continue
        name = re.split(r"[.\[(){}]", path.removeprefix("len(").removeprefix(module_path).lstrip("."))[0]
        for kind in type(module).__mro__:
            if not is_foreign(kind):
                found = _line_of(kind, name) or found
    return found


def _line_of(kind: type, name: str) -> str | None:
    methods = [inspect.unwrap(getattr(value, "fget", value)) for key, value in vars(kind).items() if key != "__init__"]
    codes = [code for method in methods if isinstance(method, FunctionType) for code in codes_in(method.__code__)]
    steps = [(step, code) for code in codes for step in dis.get_instructions(code) if step.argval == name]
    places = [
        (step.opname, f", {code.co_filename}, line {getattr(step.positions, 'lineno', 0)}")
        for step, code in steps
        if step.opname in ("LOAD_ATTR", "STORE_ATTR", "LOAD_METHOD")
    ]
    return next((place for way, place in places if way == "STORE_ATTR"), places[0][1] if places else None)
