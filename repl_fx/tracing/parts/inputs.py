"""Example inputs as plain data: shapes, dtypes and, for integers, the range; no values of tensors."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from repl_fx.errors import ArtifactError
from repl_fx.graph.kinds import dtype_name, of_torch
from repl_fx.running.example_inputs import ExampleInputs

Scalar = bool | int | float | str | None
_SCALARS = frozenset({bool, int, float, str, type(None)})


class InputValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """A value of example inputs; each class of values has a subclass."""


class OneTensor(InputValue, frozen=True, tag="tensor"):
    """A tensor; `range` is that of the values of an integer one."""

    shape: tuple[int, ...]
    dtype: str
    range: tuple[int, int] | None = None


class Again(InputValue, frozen=True, tag="again"):
    """A tensor that was among the inputs before, such as labels that are the tokens; `number` counts the others."""

    number: int


class Sequence(InputValue, frozen=True, tag="sequence"):
    """A tuple or a list."""

    type: Literal["tuple", "list"]
    items: tuple[AnyDescribed, ...]


class Named(InputValue, frozen=True, tag="named tuple"):
    """A named tuple and where its class is found."""

    module: str
    name: str
    items: tuple[tuple[str, AnyDescribed], ...]


class Dict(InputValue, frozen=True, tag="dict"):
    """A dict, whose keys need not be words."""

    ordered: bool
    items: tuple[tuple[Scalar, AnyDescribed], ...]


class OfTorch(InputValue, frozen=True, tag="torch"):
    """A dtype or a device."""

    type: Literal["dtype", "device"]
    name: str


class PlainValue(InputValue, frozen=True, tag="constant"):
    """A number, a word, a truth or None."""

    value: Scalar


class NotFinite(InputValue, frozen=True, tag="float"):
    """An infinite number or NaN, which JSON has not."""

    text: Literal["nan", "inf", "-inf"]


class Opaque(InputValue, frozen=True, tag="opaque"):
    """A value of which plain data says nothing but its class."""

    type: str


AnyDescribed = OneTensor | Again | Sequence | Named | Dict | OfTorch | PlainValue | NotFinite | Opaque


class Inputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Positional and keyword arguments."""

    args: tuple[AnyDescribed, ...]
    kwargs: dict[str, AnyDescribed]

    @classmethod
    def of(cls, inputs: ExampleInputs) -> Inputs:
        seen: list[Tensor] = []
        args = tuple(describe(value, seen) for value in inputs.args)
        return cls(args, {name: describe(value, seen) for name, value in inputs.kwargs.items()})

    def make(self) -> ExampleInputs:
        """Arguments of the same kind; the same each time. Some kinds cannot be made: an `ArtifactError` says which."""
        made: list[Tensor] = []
        args = tuple(make(value, made) for value in self.args)
        return ExampleInputs(args, {name: make(value, made) for name, value in self.kwargs.items()})


def describe(value: Any, seen: list[Tensor]) -> AnyDescribed:
    """A value as plain data; `seen` are the tensors before, to which it adds."""
    kind: Any = type(value)
    if isinstance(value, Tensor):
        return _described(value, seen)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return Named(kind.__module__, kind.__qualname__, _items(zip(value._fields, value, strict=True), seen))
    if kind in (tuple, list):
        return Sequence(kind.__name__, tuple(describe(item, seen) for item in value))
    if kind in (dict, OrderedDict) and all(isinstance(key, Scalar) for key in value):
        return Dict(kind is OrderedDict, _items(value.items(), seen))
    if kind in (torch.dtype, torch.device):
        return OfTorch(kind.__name__, str(value).removeprefix("torch."))
    if kind is float and not math.isfinite(value):
        return NotFinite(repr(value))  # type: ignore[arg-type]
    return PlainValue(value) if kind in _SCALARS else Opaque(f"{kind.__module__}.{kind.__qualname__}")


def _items(items: Iterable[tuple[Any, Any]], seen: list[Tensor]) -> tuple[tuple[Any, AnyDescribed], ...]:
    return tuple((name, describe(item, seen)) for name, item in items)


def _described(tensor: Tensor, seen: list[Tensor]) -> AnyDescribed:
    number = next((i for i, other in enumerate(seen) if other is tensor), None)
    if number is not None:
        return Again(number)
    seen.append(tensor)
    whole = not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel() > 0 and not tensor.is_meta
    least_and_most = (int(tensor.min()), int(tensor.max())) if whole else None
    return OneTensor(tuple(tensor.shape), dtype_name(tensor.dtype), least_and_most)


def make(described: AnyDescribed, tensors: list[Tensor]) -> Any:
    """A value of the kind that was described; `tensors` are those before, to which it adds."""
    match described:
        case OneTensor():
            tensors.append(_tensor(described))
            return tensors[-1]
        case Again(number=number):
            if not 0 <= number < len(tensors):
                raise ArtifactError(f"an example input is tensor {number} of those before it, which are {len(tensors)}")
            return tensors[number]
        case Sequence(type=kind, items=items):
            made = [make(item, tensors) for item in items]
            return made if kind == "list" else tuple(made)
        case Named(module=module, name=name, items=items):
            fields = {field: make(item, tensors) for field, item in items}
            return _named_tuple(module, name, tuple(fields))(**fields)
        case Dict(ordered=ordered, items=items):
            return (OrderedDict if ordered else dict)((key, make(item, tensors)) for key, item in items)
        case OfTorch(type=kind, name=name):
            return _of_torch(kind, name)
        case PlainValue(value=value):
            return value
        case NotFinite(text=text):
            return float(text)
        case Opaque(type=kind):
            raise ArtifactError(
                f"an example input is a {kind}, which an artifact does not hold; give the inputs: "
                "load(directory, args=…, kwargs=…)"
            )


def _tensor(described: OneTensor) -> Tensor:
    dtype = _of_torch("dtype", described.dtype)
    generator = torch.Generator().manual_seed(0)
    try:
        if described.range is None:
            return torch.randn(described.shape, generator=generator, device="cpu").to(dtype)
        low, high = described.range
        return torch.randint(low, high + 1, described.shape, generator=generator, device="cpu").to(dtype)
    except (RuntimeError, TypeError, ValueError, OverflowError) as problem:
        wanted = f"{described.dtype}{list(described.shape)}"
        raise ArtifactError(f"no example input can be made like {wanted}: {str(problem).splitlines()[0]}") from problem


def _of_torch(kind: str, name: str) -> Any:
    try:
        return torch.device(name) if kind == "device" else of_torch("dtype", name)
    except (RuntimeError, ValueError):
        why = f"which torch {torch.__version__} has not"
        raise ArtifactError(f"an example input is of the {kind} {name!r}, {why}") from None


def _named_tuple(module: str, name: str, fields: tuple[str, ...]) -> type[Any]:
    """The class of a named tuple where its module is loaded, else one like it: an artifact imports nothing."""
    found: Any = sys.modules.get(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    if isinstance(found, type) and getattr(found, "_fields", None) == fields:
        return found
    try:
        return namedtuple(name.rpartition(".")[2], fields)
    except ValueError as problem:
        raise ArtifactError(f"an example input is of the named tuple {name!r}, which cannot be: {problem}") from problem
