"""Other sizes than the example's to compare a file at: one smaller and one larger for each dynamic dimension."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from math import prod

import torch
from torch import fx, nn

from repl_fx.export.tensors import FlatInputs, batched
from repl_fx.graph.axes import captured_axes, checks_by_name
from repl_fx.tracing.other_sizes import chosen_sizes

Shapes = list[tuple[int, ...]]
# Further than this above the example's no size is looked for: multiples are less than that.
_FURTHEST = 600


def trial_shapes(
    module: nn.Module, file: Mapping[str, Sequence[int | str | None]], inputs: FlatInputs
) -> dict[str, Shapes]:
    """Shapes of inputs of other sizes than the example's, in all dimensions that vary but the batch.

    Args:
        module: where it is a captured graph, its free dimensions count, and its limits.
        file: the shapes of the file, which count for other modules.
        inputs: the example inputs.

    Returns:
        The shapes by the sizes in words; none where nothing varies, or where a size is more than a sum of others.
    """
    examples = dict(zip(inputs.names, inputs.tensors, strict=True))
    free, names = _free_sizes(module, file)
    batches = {free.get((inputs.names[number], 0)) for number in batched(inputs.tensors)}
    own = {
        symbol: examples[name].shape[dim]
        for (name, dim), symbol in free.items()
        if symbol.isidentifier() and name in examples
    }
    varied = [symbol for symbol in own if symbol not in batches]

    def shapes_for(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
        sizes_of = {name: enumerate(tensor.shape) for name, tensor in examples.items()}
        try:
            return {
                name: tuple(_sum(free[name, dim], sizes) if (name, dim) in free else size for dim, size in dims)
                for name, dims in sizes_of.items()
            }
        except ValueError:
            return None

    def taken(sizes: Mapping[str, int]) -> bool:
        shapes = shapes_for(sizes)
        return shapes is not None and _holds(module, shapes)

    found: dict[str, Shapes] = {}
    bounded = isinstance(module, fx.GraphModule)
    for candidates in (_smaller, _larger if bounded else _half_more):
        sizes = chosen_sizes(own, varied, candidates, taken, distinct=True)
        shapes = shapes_for(sizes)
        changed = [symbol for symbol in varied if sizes[symbol] != own[symbol]]
        words = ", ".join(f"{names.get(symbol, symbol)} {sizes[symbol]}" for symbol in changed)
        if words and shapes is not None and all(map(prod, shapes.values())):
            found[words] = list(shapes.values())
    return found


def _free_sizes(
    module: nn.Module, file: Mapping[str, Sequence[int | str | None]]
) -> tuple[dict[tuple[str, int], str], dict[str, str]]:
    """The expression of each free dimension, by input and number, and the names of symbols."""
    if not isinstance(module, fx.GraphModule):
        return {(n, dim): s for n, shape in file.items() for dim, s in enumerate(shape) if isinstance(s, str)}, {}
    axes = [(axis, axis.symbol) for axis in captured_axes(module) if axis.symbol is not None]
    return {(axis.input, axis.number): symbol for axis, symbol in axes}, {symbol: axis.name for axis, symbol in axes}


def _smaller(size: int) -> Iterable[int]:
    half = max(size // 2, 2)
    return chain(range(half, 1, -1), range(half + 1, size))


def _larger(size: int) -> Iterable[int]:
    return range(size + 1, size + _FURTHEST)


def _half_more(size: int) -> Iterable[int]:
    return (size + max(size // 2, 1), 2 * size)


def _sum(expression: str, sizes: Mapping[str, int]) -> int:
    """The value of a size that is another, or a sum of others and numbers.

    Raises:
        ValueError: it is more than that.
    """
    return sum(sizes[term] if term in sizes else int(term) for term in expression.split(" + "))


def _holds(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Tell whether a graph takes inputs of these shapes, by its limits; True for other modules."""
    if not isinstance(module, fx.GraphModule):
        return True
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return all(check.holds(*map(empty.__getitem__, names)) for check, names in checks_by_name(module.graph))
