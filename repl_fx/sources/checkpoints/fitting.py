"""Give a model the weights of a checkpoint, strictly by name.

Each name of the model's `state_dict` has to be in the checkpoint and each of the checkpoint in the model, of the same
shape and of the same kind of number. Two things are no misfit: a name that is left out where the checkpoint has the
same tensor under another (safetensors keep tied weights once), and a buffer that is in the checkpoint, and that the
model computes itself, with the very values (masks and tables of older versions).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.display.numbers import several
from repl_fx.errors import BadInput, ForeignError, first_line, foreign_code, listed
from repl_fx.graph.captured import copy_model
from repl_fx.graph.grouping import grouped
from repl_fx.graph.kinds import dtype_name
from repl_fx.graph.state import address
from repl_fx.sources.checkpoints.names import state_for
from repl_fx.sources.checkpoints.weight_files import Weights, describe_weights, read_weights
from repl_fx.tracing.model_checks import without_values


def with_weights(model: nn.Module, weights: Weights) -> nn.Module:
    """A copy of a model, which shares nothing with it, with the weights of a checkpoint.

    Raises:
        BadInput: see `load_weights_`; or the model cannot be copied.
    """
    state = read_weights(weights)
    why = ", and weights= changes a copy of it; give it the weights yourself, and leave weights= out"
    copied = copy_model(model, why)
    _load(copied, state, describe_weights(weights))
    return copied


def load_weights_(model: nn.Module, weights: Weights) -> tuple[str, ...]:
    """Give a model the weights of a checkpoint, in its own precision; where that fails, it may have some of them.

    Args:
        weights: a file, a directory or a state dict, see `repl_fx.sources.checkpoints.weight_files`.

    Returns:
        Notes on the weights, a line each.

    Raises:
        BadInput: the checkpoint cannot be read, or is that of another model.
    """
    where = describe_weights(weights)
    state = _load(model, read_weights(weights), where)
    own = model.state_dict()
    notes = [f"weights are those of {where}, {several(len(state), 'tensor')}"]
    changed = [name for name, value in state.items() if name in own and _dtype(own[name]) != _dtype(value)]
    if changed:
        there, here = (listed(sorted({dtype_name(s[n].dtype) for n in changed})) for s in (state, own))
        notes.append(f"{len(changed)} of these are {there} there and {here} here, as the model is built")
    return tuple(notes)


def _load(model: nn.Module, checkpoint: Mapping[str, Any], where: str) -> dict[str, Any]:
    own, kind = model.state_dict(keep_vars=True), type(model).__name__
    require_values(model, own)
    state = state_for(own.keys(), checkpoint, where)
    for name in _computed_alike(model, state, own):
        del state[name]
    require_same_kinds(model, state, own, where)
    ties = tied_names(own)
    require_equal_ties(model, state, ties, where)
    try:
        # By torch, as the classes of the model may read names and layouts of their older versions.
        with foreign_code():
            missing, unexpected = model.load_state_dict(state, strict=False)
    except ForeignError as failed:
        shapes = {name: tensor.shape for name, tensor in own.items() if isinstance(tensor, Tensor)}
        misfit = Misfit(
            [name for name in own if not is_given(name, state, ties)],
            [name for name in state if name not in own],
            other_shapes(shapes, state),
        )
        if misfit:
            raise misfit.error(kind, where) from failed.problem
        raise BadInput(f"{where} cannot be loaded into {kind}: {first_line(failed.problem)}") from failed.problem
    misfit = Misfit([name for name in missing if not is_given(name, state, ties)], unexpected)
    if misfit:
        raise misfit.error(kind, where)
    return state


@dataclass(frozen=True)
class Misfit:
    """The differences between the names and shapes of a model and those of a checkpoint.

    Attributes:
        missing: names of the model that the checkpoint has not.
        unexpected: names of the checkpoint that the model has not.
        shapes: what has another shape, in words.
    """

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    shapes: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def error(self, kind: str, where: str) -> BadInput:
        """The error that names the first few; `kind` is the class of the model."""
        words = (
            (self.missing, f"of {kind} {_are(self.missing)} missing in it"),
            (self.unexpected, f"in it {_are(self.unexpected)} not in {kind}"),
            (self.shapes, f"{_are(self.shapes)} of another shape"),
        )
        found = "; ".join(f"{several(len(names), 'key')} {what} ({listed(names)})" for names, what in words if names)
        return BadInput(
            f"{where} does not fit {kind}: {found}; build the model that it is the checkpoint of, or rename its keys"
        )


def other_shapes(own: Mapping[str, Sequence[int]], state: Mapping[str, Any]) -> list[str]:
    """Tensors whose shape is another than that of the model, in words."""
    tensors = ((name, shape, state.get(name)) for name, shape in own.items())
    both = ((name, tuple(shape), tuple(there.shape)) for name, shape, there in tensors if isinstance(there, Tensor))
    return [f"{name} {size_of(there)} there and {size_of(here)} here" for name, here, there in both if here != there]


def require_values(model: nn.Module, own: Mapping[str, Any]) -> None:
    """Refuse a model whose tensors cannot be given values: on the meta device, or sharded."""
    tensors = {name: tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}
    if valueless := without_values(tensors.items()):
        raise BadInput(f"{type(model).__name__} {valueless}")
    sharded = next((name for name, t in tensors.items() if type(t).__module__.startswith("torch.distributed")), None)
    if sharded is not None:
        raise BadInput(
            f"{type(model).__name__} is sharded ({sharded}); load the weights first, and shard it afterwards"
        )


def require_same_kinds(model: nn.Module, state: Mapping[str, Any], own: Mapping[str, Any], where: str) -> None:
    """Refuse values that are no plain tensors, and numbers that would be converted to other values.

    Quantised weights are bytes, which torch would copy into floating parameters as if they were the values.
    """
    for name, value in state.items():
        here = own.get(name)
        if not isinstance(here, Tensor):
            continue
        if type(value) not in (Tensor, nn.Parameter):
            raise BadInput(f"{name} of {where} is of class {type(value).__name__}, no plain tensor; save full tensors")
        if _number(value.dtype) != _number(here.dtype):
            there, kind = dtype_name(value.dtype), type(model).__name__
            raise BadInput(
                f"{name} is {there} in {where} and {dtype_name(here.dtype)} in {kind}, which is another kind of "
                "number; give weights that are not quantised"
            )


def tied_names(own: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names that lead to the same tensor, for each name that is not the only one."""
    tensors = ((name, tensor) for name, tensor in own.items() if isinstance(tensor, Tensor) and tensor.numel())
    groups = grouped((address(tensor), name) for name, tensor in tensors)
    return {name: tuple(names) for names in groups.values() if len(names) > 1 for name in names}


def is_given(name: str, state: Mapping[str, Any], ties: Mapping[str, Iterable[str]]) -> bool:
    """Tell whether a state dict has the tensor of this name, be it under another that is tied to it."""
    return name in state or any(other in state for other in ties.get(name, ()))


def require_equal_ties(
    model: nn.Module, state: Mapping[str, Any], ties: Mapping[str, Collection[str]], where: str
) -> None:
    """Refuse several values for one tensor of the model."""
    for names in dict.fromkeys(tuple(names) for names in ties.values()):
        first, *others = [name for name in names if name in state] or [""]
        differs = next((name for name in others if not _equal(state[first], state[name])), None)
        if differs is not None:
            raise BadInput(
                f"{first} and {differs} are one tensor in {type(model).__name__} and differ in {where}; build the "
                "model with the two untied"
            )


def _computed_alike(model: nn.Module, state: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Names of buffers that the model computes itself, outside its `state_dict`, and of which the values are given."""
    buffers = {name: b for name, b in model.named_buffers(remove_duplicate=False) if name not in own and not b.is_meta}
    given = [name for name in state if name in buffers and isinstance(state[name], Tensor)]
    return [name for name in given if _equal(state[name], buffers[name])]


def _equal(first: Tensor, second: Tensor) -> bool:
    return first is second or (first.dtype == second.dtype and torch.equal(first.cpu(), second.cpu()))


def _number(dtype: torch.dtype) -> object:
    """The kind of number: numbers of one kind are converted to one another, with rounding at most."""
    quantised = dtype.is_floating_point and dtype.itemsize == 1
    return dtype if quantised else (dtype.is_floating_point, dtype.is_complex, dtype == torch.bool)


def _dtype(value: Any) -> Any:
    return getattr(value, "dtype", None)


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def size_of(shape: Sequence[int]) -> str:
    """A shape in words."""
    return "x".join(map(str, shape)) or "a number"
