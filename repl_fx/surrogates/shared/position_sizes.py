"""Sizes among the arguments of an operator: which of them mean the number of positions of a stream.

    x (B, N, C), reshape(x, [B, N, 3, H, D])           of these sizes the second, though H or D may be N too

An integer can only be one where the operator's schema takes a size (SymInt); a dimension, say, cannot. Of those that
equal N, as few mean positions as let the operator work at any other number of them, one that is no other size here.
Where several choices of as few do, the places of the values tell: they must come out where they do with N positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx._torch import example_of, pytree
from repl_fx.surrogates.shared.site import Site, Unfit

# Stands for any other number of positions: a prime, and larger than sizes are, so that it divides none.
_ANY = 1_000_003
_NUMBERS = ("NumberType", "TensorType")
_FAILS = (RuntimeError, TypeError, ValueError, IndexError, AssertionError)
# Where an integer is among the arguments of a node: key of the argument, and place in it where it is a list.
Place = tuple[int | str, int | None]


def with_positions(site: Site, node: fx.Node, values: Mapping[fx.Node, Any], positions: int, count: int) -> Any:
    """The arguments of an operator for `count` instead of `positions`; refuses a number that may mean something else.

    Args:
        site: of the block.
        node: the operator.
        values: fake values of the stream, and of what was made of it, at the other number.
    """
    places = [place for place, kind in _equal(node, positions) if kind == "SymIntType"]
    if any(kind in _NUMBERS for _, kind in _equal(node, positions)):
        raise Unfit(f"{node.name} calculates with {positions}, which is the number of positions too", node)
    if not places:
        return node.args, node.kwargs
    stretched = partial(_at_any, site, positions)
    streamed = [given for given in node.all_input_nodes if given in values]
    anywhere = {given: pytree.tree_map(stretched, given.meta["val"], values[given]) for given in streamed}
    for size in range(len(places) + 1):
        fits = [some for some in combinations(places, size) if _works(site, node, anywhere, some, positions)]
        if len(fits) > 1:
            fits = [some for some in fits if _keeps_places(node, values, some, count)]
            if len(fits) != 1:
                raise Unfit(f"which sizes of {node.name} are its {positions} positions cannot be told", node)
        if fits:
            return _replaced(node, fits[0], count)
    raise Unfit(f"{node.name} does not work at a lower resolution", node)


def _equal(node: fx.Node, positions: int) -> Iterator[tuple[Place, str]]:
    """The integers among a node's arguments that equal the number of positions, and what the schema takes them for."""
    schema = getattr(node.target, "_schema", None)
    for number, argument in enumerate(() if schema is None else schema.arguments):
        key: int | str = number if number < len(node.args) else argument.name
        given = node.args[number] if number < len(node.args) else node.kwargs.get(argument.name)
        kind = argument.real_type
        while hasattr(kind, "getElementType"):
            kind = kind.getElementType()
        for at, value in enumerate(given) if isinstance(given, list | tuple) else [(None, given)]:
            size = value.meta["val"] if isinstance(value, fx.Node) else value
            symbolic = isinstance(size, torch.SymInt) and str(size // positions * positions) == str(size)
            if symbolic or (type(size) is int and size == positions):
                yield (key, at), kind.kind()


def _replaced(node: fx.Node, places: Sequence[Place], size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a node with another size at some places; what was calculated there follows from the others."""
    args, kwargs = list(node.args), dict(node.kwargs)
    for key, at in places:
        holder: Any = args if isinstance(key, int) else kwargs
        if at is None:
            holder[key] = size
        else:
            holder[key] = [
                value if i != at else -1 if isinstance(value, fx.Node) else size for i, value in enumerate(holder[key])
            ]
    return tuple(args), kwargs


def _at_any(site: Site, positions: int, own: Any, other: Any) -> Any:
    """A fake value at `_ANY` positions, from the same at the block's own number and at another one."""
    if not isinstance(own, Tensor):
        return own
    pairs = zip(own.shape, other.shape, strict=True)
    sizes = [one if str(one) == str(fewer) else one // positions * _ANY for one, fewer in pairs]
    return site.value_of(torch.Tensor.new_empty, other, sizes)


def _works(site: Site, node: fx.Node, anywhere: Mapping[fx.Node, Any], places: Sequence[Place], positions: int) -> bool:
    """Tell whether an operator gives at `_ANY` positions the same as at the block's own number, but for that."""
    args, kwargs = _replaced(node, places, _ANY)
    try:
        given = fx.node.map_arg((args, kwargs), lambda n: anywhere.get(n, n.meta["val"]))
        made = pytree.tree_leaves(site.computed(node, *given))
    except _FAILS:
        return False
    wanted = pytree.tree_leaves(node.meta["val"])
    return len(made) == len(wanted) and all(_alike(*pair, positions) for pair in zip(made, wanted, strict=True))


def _alike(made: Any, wanted: Any, positions: int) -> bool:
    """Tell whether a value at `_ANY` positions has the sizes of another at the block's own number, but for that."""
    if not isinstance(made, Tensor) or not isinstance(wanted, Tensor) or made.ndim != wanted.ndim:
        return False
    pairs = zip(made.shape, wanted.shape, strict=True)
    return all(str(one) in (str(own), str(own // positions * _ANY)) for one, own in pairs)


def _keeps_places(node: fx.Node, values: Mapping[fx.Node, Any], places: Sequence[Place], count: int) -> bool:
    """Tell whether values of the first positions come out of an operator where they do when more positions follow."""
    tensors = [given for given in node.all_input_nodes if isinstance(given.meta["val"], Tensor)]
    if len(tensors) != 1 or tensors[0] not in values:
        return False
    sizes, fewer = (
        [example_of(size) for size in value.shape] for value in (tensors[0].meta["val"], values[tensors[0]])
    )
    whole = torch.arange(torch.Size(sizes).numel(), device="cpu").reshape(sizes)
    part = whole[tuple(slice(size) for size in fewer)].contiguous()
    function: Any = node.target

    def made(numbers: Tensor, arguments: Any) -> list[Any]:
        given = fx.node.map_arg(arguments, lambda n: numbers if n is tensors[0] else example_of(n.meta["val"]))
        return pytree.tree_leaves(function(*given[0], **given[1]))

    try:
        all_of_it, some = made(whole, (node.args, node.kwargs)), made(part, _replaced(node, places, count))
    except _FAILS:
        return False
    return all(
        torch.equal(one[tuple(slice(size) for size in other.shape)], other)
        for one, other in zip(all_of_it, some, strict=True)
    )
