"""Between a module's nested arguments and results and the flat, named tensors of an ONNX graph."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import chain, count, filterfalse, pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.errors import BadInput
from repl_fx.running.example_inputs import ExampleInputs

# What may be baked into an exported graph. Anything else could hide a tensor, which would be frozen without a word.
_CONSTANTS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    enum.Enum,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)

# Dimensions of one size, each with the number of the input.
Alike: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FlatInputs:
    """The example inputs of a module with names for their tensors.

    Attributes:
        given: the inputs, as the module takes them.
        names: one for each tensor: the argument's name, with the path below it where the argument is nested.
    """

    given: ExampleInputs
    names: tuple[str, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors, in the order of their names; a tensor passed twice is two entries."""
        return tuple(self.given.tensors)

    def map(self, change: Callable[[Tensor], Tensor]) -> FlatInputs:
        """Return the same arguments with other tensors."""
        return replace(self, given=self.given.map(change))

    def holding(self, tensors: Iterable[Tensor]) -> FlatInputs:
        """Return the same arguments with these tensors, one for each name."""
        following = iter(tensors)
        return self.map(lambda _: next(following))


def flatten_inputs(module: nn.Module, given: ExampleInputs) -> FlatInputs:
    """Name the tensors among a module's arguments, as its `forward` does.

    Raises:
        BadInput: the arguments do not fit the signature, hold no tensor, or hold an object of unknown structure.
    """
    leaves, spec = pytree.tree_flatten((given.args, given.kwargs))
    numbered_args, numbered_kwargs = pytree.tree_unflatten(list(range(len(leaves))), spec)
    try:
        bound = inspect.signature(module.forward).bind(*numbered_args, **numbered_kwargs)
    except TypeError as error:
        raise BadInput(f"the example inputs do not fit forward of {type(module).__name__}: {error}") from error

    named: dict[int, str] = {}
    for name, value in bound.arguments.items():
        # The keywords of **kwargs are arguments in their own right; "kwargs_" in front of each would only be noise.
        starred = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        for path, index in walk(value, () if starred else (name,)):
            named[index] = "_".join(path)

    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, (Tensor, *_CONSTANTS)):
            raise BadInput(
                f"argument {named[index]!r} is a {type(leaf).__name__}, whose tensors cannot be seen; pass tensors, or "
                "register the type with torch.export.register_dataclass"
            )
    positions = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if not positions:
        raise BadInput(f"the example inputs of {type(module).__name__} hold no tensor")
    return FlatInputs(given, unique(named[index] for index in positions))


def name_outputs(result: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Name the tensors in what a module returned.

    Returns:
        Tensors by name: "output" for a bare tensor, keys or field names where there are any, else "output_0",
        "output_1"; and the types, by name, of what is no tensor (None, numbers, caches), which no ONNX graph can
        return.
    """
    found = list(walk(result, ()))
    labels = unique("_".join(path if path and not path[0].isdigit() else ("output", *path)) for path, _ in found)
    leaves = {label: leaf for label, (_, leaf) in zip(labels, found, strict=True)}
    tensors = {label: leaf for label, leaf in leaves.items() if isinstance(leaf, Tensor)}
    return tensors, {label: type(leaf).__name__ for label, leaf in leaves.items() if label not in tensors}


def walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every leaf below a value with its path.

    Containers are mappings, dataclasses, tuples, lists and whatever else is registered as a pytree node.
    """
    children = _children(value)
    if children is None:
        yield path, value
    else:
        for key, child in children:
            yield from walk(child, (*path, str(key)))


def _children(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """The names, keys or numbers of what a container holds, and that itself; None for a leaf."""
    if isinstance(value, (Tensor, *_CONSTANTS)):
        return None
    if isinstance(value, Mapping):
        return value.items()
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    held = value if isinstance(value, (tuple, list)) else pytree.tree_leaves(value)
    return None if len(held) == 1 and held[0] is value else enumerate(held)


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Number the names that come again: x, x_1, x_2."""
    taken: dict[str, None] = {}
    for name in names:
        candidates = chain([name], (f"{name}_{number}" for number in count(1)))
        taken[next(filterfalse(taken.__contains__, candidates))] = None
    return tuple(taken)


def file_names(outputs: Iterable[str], inputs: Sequence[str]) -> list[str]:
    """The names that outputs have in a file, which has one namespace; a module may call an input and an output "x"."""
    wanted = (f"{name}_out" if name in inputs else name for name in outputs)
    return list(unique((*inputs, *wanted))[len(inputs) :])


class FlatModule(nn.Module):
    """A module that takes the tensors of `FlatInputs` and returns a tuple of tensors.

    The exporter then meets no nested structure, no constant argument and no aliased result, whatever the module has. It
    shares the children, parameters and buffers of its source under the same names, so that the weights in the ONNX file
    are called what `state_dict` calls them.

    Args:
        source: the module.
        inputs: its example inputs.
        alike: dimensions that a trace is to know are of one size.
    """

    def __init__(self, source: nn.Module, inputs: FlatInputs, alike: Sequence[Alike] = ()) -> None:
        super().__init__()
        self.training = source.training
        for shared in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[shared] = source.__dict__[shared]
        # Past nn.Module.__setattr__, which would register the source as a child and prefix every name.
        self.__dict__["_source"] = source
        self.__dict__["_inputs"] = inputs
        self.__dict__["_alike"] = alike

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the source; every result is a tensor of its own, since an ONNX value can have but one name."""
        source, inputs = self.__dict__["_source"], self.__dict__["_inputs"]
        require: Any = torch._check
        for (one, dim), (other, at) in chain.from_iterable(map(pairwise, self.__dict__["_alike"])):
            require(tensors[one].shape[dim] == tensors[other].shape[at])
        returned = inputs.holding(tensors).given.passed_to(source)
        named = {id(t) for t in (*tensors, *source.parameters(), *source.buffers())}
        results = []
        for tensor in name_outputs(returned)[0].values():
            results.append(tensor.clone() if id(tensor) in named else tensor)
            named.add(id(tensor))
        return tuple(results)


def batch_size(tensors: Sequence[Tensor]) -> int:
    """Return dimension 0 of the first tensor that has one; 0 when none has."""
    return next((tensor.shape[0] for tensor in tensors if tensor.ndim), 0)


def batched(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Return which tensors have the batch in dimension 0, as far as sizes tell."""
    batch = batch_size(tensors)
    return tuple(number for number, tensor in enumerate(tensors) if tensor.ndim and tensor.shape[0] == batch)


def default_batches(traced: int) -> tuple[int, ...]:
    """Return 1, the batch size of the example inputs, and one that is larger; (0,) where no input has a batch."""
    return tuple(dict.fromkeys((1, traced, traced + 3))) if traced else (0,)


def at_batch(inputs: FlatInputs, batch: int, seed: int) -> FlatInputs:
    """Return inputs of this batch size: the example's own at its own size, drawn with `seed` at any other.

    Inputs whose dimension 0 is not the batch stay as they are.
    """
    traced = batch_size(inputs.tensors)
    if batch == traced:
        return inputs
    found = batched(inputs.tensors)
    shapes = [(batch, *t.shape[1:]) if i in found else tuple(t.shape) for i, t in enumerate(inputs.tensors)]
    return at_shapes(inputs, shapes, seed)


def at_shapes(inputs: FlatInputs, shapes: Sequence[Sequence[int]], seed: int) -> FlatInputs:
    """Return inputs of these shapes, drawn with `seed`; those that have their shape already stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(inputs.tensors, shapes, strict=True)
    return inputs.holding(t if tuple(t.shape) == tuple(shape) else draw(t, shape, generator) for t, shape in pairs)


def half_changed(inputs: FlatInputs) -> dict[str, FlatInputs]:
    """The inputs with one that is all ones (or zeros) half zeros (or ones), for each such input, by what is changed.

    A mask that hides nothing does not show whether a file reads it. The end changes: a causal row sees what is before.
    """
    found = {}
    for number, (name, tensor) in enumerate(zip(inputs.names, inputs.tensors, strict=True)):
        if tensor.ndim < 2 or tensor.numel() == 0 or tensor.shape[-1] < 2:
            continue
        for value in (0, 1):
            if bool((tensor == 1 - value).all()):
                changed = tensor.clone()
                changed[..., tensor.shape[-1] // 2 :] = value
                tensors = (*inputs.tensors[:number], changed, *inputs.tensors[number + 1 :])
                found[f"{name} half {value}"] = inputs.holding(tensors)
    return found


def draw(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw values like the example's for another shape; what looks like a mask is repeated: its pattern matters."""
    repeated = example
    for dim, size in enumerate(shape):
        if size != example.shape[dim]:
            repeated = repeated.index_select(dim, torch.arange(size, device="cpu") % max(example.shape[dim], 1))
    if example.dtype == torch.bool or not example.numel():
        return repeated
    if example.is_floating_point():
        finite = example[torch.isfinite(example)].double()
        if finite.numel() < example.numel() or bool(((finite == finite.min()) | (finite == finite.max())).all()):
            return repeated
        noise = torch.randn(repeated.shape, generator=generator, dtype=torch.float64, device="cpu")
        return (noise * finite.std() + finite.mean()).to(example.dtype)
    if example.is_complex() or bool(((example == 0) | (example == 1)).all()):
        return repeated
    # Only values that were seen: an id, a position or an index out of range has no meaning.
    seen = example.flatten()
    return seen[torch.randint(seen.numel(), repeated.shape, generator=generator, device="cpu")]
