"""Find where a branch mixes positions by an attention map, and which units of a weight make each head's values.

    values = linear(n)            moved into (batch, heads, positions, c) by views alone
    core   = map @ values         or scaled_dot_product_attention(queries, keys, values)

The names of modules are not asked. Where the units of a head lie in the weight (query, key and value side by side, or
head by head) is found by sending the numbers of the units through the views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx._torch import example_of, has_example
from repl_fx.finding.branches import Branch
from repl_fx.finding.linear_operators import LinearOperator
from repl_fx.graph.captured import tensors_in
from repl_fx.graph.roles import CASTS, SCALED_PRODUCT, SOFTMAX, is_view

_PRODUCT = torch.ops.aten.matmul.default
# Operators, besides views, that may lie between a softmax and the product with the values.
_KEEP_MAP = CASTS | {torch.ops.aten.dropout.default}


@dataclass(frozen=True)
class Attention:
    """One mixing of positions in a branch.

    Attributes:
        core: the product of a map (batch, heads, positions, positions) with values.
        linear: the linear layer that makes the values (batch, heads, positions, c).
        units: for each head of the values, which of the layer's output units they are.
        batch_first: whether positions follow each other in the layer's result, example by example, and not the examples
            of a batch, position by position.
    """

    core: fx.Node
    linear: LinearOperator
    units: tuple[tuple[int, ...], ...]
    batch_first: bool

    @property
    def scaled(self) -> bool:
        """Tell whether the core computes the map too."""
        return self.core.target is SCALED_PRODUCT


def find_attention(branch: Branch) -> Attention | str:
    """The attention of a branch over the positions of its input; a reason where it has none that is understood."""
    found = [(core, values) for core in branch.nodes if (values := _values(core)) is not None]
    if len(found) != 1:
        return f"the branch that ends in {branch.root.name} has {len(found)} products with an attention map, not one"
    core, values = found[0]
    makers = {
        linear.node: linear for linear in branch.operators if linear.kind == "linear" and linear.weight is not None
    }
    path = _views_back(values, set(makers))
    if path is None:
        return f"the values of {core.name} are no view of what one linear layer makes"
    linear = makers[path[-1]]
    if linear.input is not branch.input:
        return f"the values of {core.name} are not made from the block's stream"
    if [*_shape(core)[:1], *_shape(core)[2:]] != [*_shape(values)[:1], *_shape(values)[2:]]:
        return f"{core.name} does not give one value for each position of {branch.input.name}"
    made = (tensor for node in (core, *path) for tensor in tensors_in(node.meta["val"]))
    if not all(has_example(size) for tensor in made for size in tensor.shape):
        return f"how many values {core.name} has depends on the values of other tensors"
    laid = _layout(list(reversed(path)))
    if laid is None:
        return f"the heads of {core.name} do not hold their values position by position"
    return Attention(core, linear, *laid)


def _values(node: fx.Node) -> fx.Node | None:
    """The value that an attention map is multiplied with here; None where no map is."""
    if node.op != "call_function":
        return None
    values: Any = None
    if node.target is SCALED_PRODUCT and len(node.args) > 2:
        values = node.args[2]
    elif node.target is _PRODUCT and len(node.args) == 2 and _is_map(node.args[0]):
        values = node.args[1]
    if not isinstance(values, fx.Node) or not isinstance(values.meta.get("val"), Tensor):
        return None
    return values if values.meta["val"].ndim == 4 else None


def _is_map(node: Any) -> bool:
    """Tell whether a value is a softmax over its last axis, but for dropout and precision."""
    while isinstance(node, fx.Node):
        if node.op == "call_module":
            module = _module(node)
            if isinstance(module, torch.nn.Softmax):
                return module.dim in (-1, 3)
            if not isinstance(module, torch.nn.Dropout | torch.nn.Identity):
                return False
        elif node.target in SOFTMAX:
            return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None) in (-1, 3)
        elif node.target not in _KEEP_MAP and not is_view(node):
            return False
        node = next(iter(node.all_input_nodes), None)
    return False


def _module(node: fx.Node) -> Any:
    owner = node.graph.owning_module
    return None if owner is None else owner.get_submodule(str(node.target))


def _views_back(node: fx.Node, makers: set[fx.Node]) -> list[fx.Node] | None:
    """The views from a value back to what one of the makers made, that one last; None where it is no view of it."""
    path = [_joined_with_nothing(node)]
    while path[-1] not in makers:
        last = path[-1]
        source = last.args[0] if last.op == "call_function" and is_view(last) else None
        if not isinstance(source, fx.Node):
            return None
        path.append(_joined_with_nothing(source))
    return path


def _joined_with_nothing(node: fx.Node) -> fx.Node:
    """The value behind a concatenation with empty tensors, such as a cache that is filled for the first time."""
    if node.target is not torch.ops.aten.cat.default or not isinstance(node.args[0], (list, tuple)):
        return node
    parts = [part for part in node.args[0] if isinstance(part, fx.Node)]
    filled = [part for part in parts if 0 not in part.meta["val"].shape]
    return filled[0] if len(filled) == 1 else node


def _layout(path: list[fx.Node]) -> tuple[tuple[tuple[int, ...], ...], bool] | None:
    """Units and order of an `Attention`, from the views that make its values; None where positions are torn apart."""
    *sizes, units = (example_of(size) for size in path[0].meta["val"].shape)
    count = math.prod(sizes)
    # Expanded, so that neither takes memory until a view has to copy.
    unit = torch.arange(units, dtype=torch.int32, device="cpu").expand(*sizes, units)
    place = torch.arange(count, dtype=torch.int32, device="cpu").reshape(*sizes, 1).expand(*sizes, units)
    held, places = (_through(path, numbers) for numbers in (unit, place))
    if held is None or places is None or held.ndim != 4:
        return None
    batch, _, positions, _ = held.shape
    if not torch.equal(held, held[:1, :, :1].expand_as(held)) or batch * positions != count:
        return None
    found = tuple(tuple(head) for head in held[0, :, 0].tolist())
    for batch_first in (True, False):
        if torch.equal(places, _order(batch, positions, batch_first).expand_as(places)):
            return found, batch_first
    return None


def _order(batch: int, positions: int, batch_first: bool) -> Tensor:
    """The numbers of places in (batch, 1, positions, 1)."""
    numbers = torch.arange(batch * positions, dtype=torch.int32, device="cpu")
    order = numbers.reshape(batch, positions) if batch_first else numbers.reshape(positions, batch).t()
    return order[:, None, :, None]


def _through(path: list[fx.Node], numbers: Tensor) -> Tensor | None:
    """Send a tensor that stands for the path's first value through its views."""
    value: Any = numbers
    for source, node in pairwise(path):

        def known(given: fx.Node, source: fx.Node = source, value: Any = value) -> Any:
            other = given.meta["val"]
            if _joined_with_nothing(given) is source:
                return value
            return example_of(other) if isinstance(other, int | torch.SymInt) else other

        try:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known)
            function: Any = node.target
            value = function(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
    return value if isinstance(value, Tensor) else None


def _shape(node: fx.Node) -> list[str]:
    value = node.meta.get("val")
    return [str(size) for size in value.shape] if isinstance(value, Tensor) else []


def gives_positions_in_order(branch: Branch, attention: Attention) -> bool:
    """Tell whether a branch's last layer reads the attention's result in the order of the branch's input positions.

    They may be in one dimension there, or in two where the input has them in one.
    """
    given, made = (node.meta["val"].shape[:-1] for node in (branch.input, branch.output))
    if str(given) == str(made):
        return True
    path = _views_back(branch.exits[0].input, {attention.core})
    if path is None or branch.exits[0].node is not branch.output:
        return False
    batch, heads, positions, width = (example_of(size) for size in attention.core.meta["val"].shape)
    sizes = [example_of(size) for size in made]
    if sizes not in ([batch * positions], [batch, positions] if attention.batch_first else [positions, batch]):
        return False
    order = _order(batch, positions, attention.batch_first)
    places = _through(list(reversed(path)), order.expand(batch, heads, positions, width))
    wanted = torch.arange(batch * positions, dtype=torch.int32, device="cpu")
    return places is not None and torch.equal(places.flatten(0, -2)[:, 0], wanted)


def distinct_heads(attention: Attention) -> Iterator[int]:
    """The heads of the values, without those that repeat the units of an earlier one (shared by groups of queries)."""
    seen: set[tuple[int, ...]] = set()
    for head, units in enumerate(attention.units):
        if units not in seen:
            seen.add(units)
            yield head


def product_settings(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `scaled_dot_product_attention` by name."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None}
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def sees_all_positions(attention: Attention) -> bool:
    """Tell whether each position attends to every other, by what they hold alone: there is no mask and no bias."""
    if attention.scaled:
        settings = product_settings(attention.core.args, attention.core.kwargs)
        return settings["attn_mask"] is None and not settings["is_causal"]
    node = attention.core.args[0]
    while isinstance(node, fx.Node) and not (node.op == "call_function" and node.target is _PRODUCT):
        tensors = [f for f in node.all_input_nodes if isinstance(f.meta.get("val"), Tensor)]
        if len(tensors) != 1:
            return False
        node = tensors[0]
    return isinstance(node, fx.Node)


def mixes_by_map(branch: Branch) -> bool:
    """Tell whether a branch has an attention map of any kind."""
    return any(_values(node) is not None for node in branch.nodes)
