"""Hidden units of a block: channels that linear operators make and linear operators read, and nobody else.

    x -> fc1 -> gelu -> fc2 -> y             the channels between fc1 and fc2
    x -> conv1 -> bn -> relu -> conv2 -> y   those between the convolutions, with a norm's numbers for each

Between the two every operator treats each channel alone (an activation, dropout, a batch norm, a depthwise convolution,
the product of a gate), so that a channel can go with a row of the layers before and a column of those behind. Behind a
group norm channels go by whole groups, whose statistics are then what they were. Of a block that has no such channels,
but attention whose queries, keys and values are made by a layer each, whole heads can go:

    x -> q, k, v -> (batch, heads, positions, c) -> attention -> (batch, positions, heads * c) -> out -> y
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import fixed_size
from repl_fx.finding.attention import product_settings
from repl_fx.finding.branches import same_shape
from repl_fx.finding.linear_operators import LinearOperator, linear_operator_of
from repl_fx.finding.node_table import passes_through
from repl_fx.graph.captured import called_module
from repl_fx.graph.roles import CASTS, COPIES, PROBABILITY, RESHAPES, SCALED_PRODUCT
from repl_fx.surrogates.shared.activations import is_activation
from repl_fx.surrogates.shared.norms import ThinNorm, norm_at
from repl_fx.surrogates.shared.site import Site, Unfit

# Norms that do not mix channels, or not those of different groups.
_BY_CHANNEL = ("batch", "group", "instance")
# Operators along one axis.
_BESIDE = (torch.ops.aten.unsqueeze.default, torch.ops.aten.slice.Tensor)


@dataclass(eq=False)
class HiddenUnits:
    """The units between some linear operators.

    Attributes:
        axis: of the units, in the values.
        size: how many there are.
        entries: the operators that make them.
        readers: the operators that read them, all from one value.
        between: the nodes on the way, with the norm that each is, or None.
        depthwise: those of them that are depthwise convolutions.
        group: how many in a row stay or go together.
    """

    axis: int
    size: int
    entries: list[LinearOperator] = field(default_factory=list)
    readers: list[LinearOperator] = field(default_factory=list)
    between: dict[fx.Node, ThinNorm | None] = field(default_factory=dict)
    depthwise: list[LinearOperator] = field(default_factory=list)
    group: int = 1

    @property
    def norms(self) -> list[fx.Node]:
        """The norms on the way."""
        return [node for node, norm in self.between.items() if norm is not None]

    @property
    def value(self) -> fx.Node:
        """The value that the readers read."""
        return self.readers[0].input


def find_hidden_units(site: Site) -> list[HiddenUnits]:
    """The hidden units of a block, in program order.

    Raises:
        Unfit: there are none; says why those of the first operator are not.
    """
    found: list[HiddenUnits] = []
    reason: Unfit | None = None
    for node in site.block.nodes:
        linear = linear_operator_of(site.graph_module, node)
        known = (n for units in found for n in (*units.between, *(entry.node for entry in units.entries)))
        if linear is None or node in known or linear.weight in site.idle_parameters:
            continue
        try:
            found.append(_UnitSearch(site, linear).units)
        except Unfit as unfit:
            reason = reason or unfit
    if not found:
        cores = [node for node in site.block.nodes if node.target is SCALED_PRODUCT]
        found = [units for core in cores if (units := _heads(site, core)) is not None]
    if not found:
        raise reason or Unfit("it has no linear layer or convolution")
    return found


def _heads(site: Site, core: fx.Node) -> HiddenUnits | None:
    """The heads of an attention as units that go together; None where they are no rows of layers of their own."""
    settings = product_settings(core.args, core.kwargs)
    sizes = _head_sizes(core, settings)
    if sizes is None:
        return None
    units = HiddenUnits(-1, math.prod(sizes), between={core: None}, group=sizes[1])
    for turned in (settings[name] for name in ("query", "key", "value")):
        split: Any = turned.args[0] if _turns(turned) else None
        splits = _is_shaped(split, *sizes) and split.target in RESHAPES
        linear = _layer(site, split.args[0]) if splits else None
        if linear is None or not _is_shaped(linear.node, units.size):
            return None
        units.between |= {turned: None, split: None}
        units.entries.append(linear)
    way = _way_behind(core, units.size)
    linear = _layer(site, way[-1]) if way else None
    if linear is None:
        return None
    units.between |= dict.fromkeys(way[:-1])
    units.readers.append(linear)
    changed = {*units.between, *(entry.node for entry in units.entries)}
    seen_inside = all(user in changed or user is linear.node for node in changed for user in node.users)
    return units if seen_inside and changed <= site.block.node_set else None


def _head_sizes(core: fx.Node, settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """The number of heads of an attention, and their size; None where heads do not go one by one."""
    made, mask = core.meta.get("val"), settings["attn_mask"]
    if not isinstance(made, Tensor) or made.ndim != 4 or settings.get("enable_gqa"):
        return None
    heads, size = made.shape[1], made.shape[3]
    masked = mask.meta.get("val") if isinstance(mask, fx.Node) else None
    if isinstance(masked, Tensor) and masked.ndim > 2 and fixed_size(masked.shape[-3]) != 1:
        # A mask of a head goes with the head.
        return None
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) and heads > 1 else None


def _way_behind(core: fx.Node, size: int) -> list[fx.Node]:
    """The nodes from an attention to what reads its heads side by side; none where they are not joined."""
    turned = next(iter(core.users))
    joined = next(iter(turned.users)) if _turns(turned) else core
    if joined.target not in RESHAPES or not _is_shaped(joined, size):
        return []
    way = [turned, joined, next(iter(joined.users))]
    while way[-1].target in CASTS | COPIES:
        way.append(next(iter(way[-1].users)))
    return way


def _layer(site: Site, node: fx.Node) -> LinearOperator | None:
    """The linear layer that a node calls, where its weight can lose rows and columns."""
    linear = linear_operator_of(site.graph_module, node)
    known = linear is not None and linear.kind == "linear" and linear.weight is not None and not node.kwargs
    return linear if known else None


def _turns(node: Any) -> bool:
    """Tell whether a node lets positions and heads change places."""
    swaps = isinstance(node, fx.Node) and node.target is torch.ops.aten.transpose.int
    return swaps and node.meta["val"].ndim == 4 and {*node.args[1:]} == {1, 2}


def _is_shaped(node: Any, *last: int) -> bool:
    """Tell whether the value of a node ends in these sizes."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and tuple(map(fixed_size, value.shape[-len(last) :])) == last


class _UnitSearch:
    """The units that one operator makes, with all that makes, changes or reads them.

    Raises:
        Unfit: some of it needs all of them, or reads them outside of the block.
    """

    def __init__(self, site: Site, first: LinearOperator) -> None:
        self.site, self.gm = site, site.graph_module
        value = first.node.meta.get("val")
        size = value.shape[first.axis] if isinstance(value, Tensor) else None
        if not isinstance(size, int):
            raise Unfit(f"the number of channels of {first.node.name} is not fixed", first.node)
        self.units = HiddenUnits(first.axis, size)
        self.seen: set[fx.Node] = set()
        self.include(first.node)
        for linear in self.units.readers:
            if linear.input is not self.units.value:
                raise Unfit(f"{linear.node.name} reads its hidden units elsewhere than others do", linear.node)
        if not self.units.readers:
            raise Unfit(f"no layer reads the channels of {first.node.name} alone", first.node)

    def include(self, node: fx.Node) -> None:
        """Take a node in whose value holds the units, with those before it and its users."""
        if node in self.seen:
            return
        self.seen.add(node)
        if node not in self.site.block.node_set or node in self.site.block.outputs:
            raise Unfit(f"the channels of {node.name} are seen outside of its branches", node)
        value, axis = node.meta.get("val"), self.units.axis
        # A mean of all values has no axis, not even a last one.
        if not isinstance(value, Tensor) or [*map(fixed_size, value.shape[axis:][:1])] != [self.units.size]:
            raise Unfit(f"{node.name} does not keep the channels of its hidden layer", node)
        for feeder in self._feeders(node):
            self.include(feeder)
        for user in node.users:
            if user.target is torch.ops.aten.sym_size.int and user.args[1] not in (axis, axis % value.ndim):
                # Of its positions.
                continue
            linear = linear_operator_of(self.gm, user)
            if linear is None or self._is_depthwise(linear):
                self.include(user)
            elif linear.input is not node or not self._works_along(linear):
                raise Unfit(f"{user.name} does not read the channels of its hidden layer one by one", user)
            else:
                self.units.readers.append(self._plain(linear))

    def _feeders(self, node: fx.Node) -> Iterable[fx.Node]:
        """The values with the same units that a node reads; none for a layer that makes them."""
        linear = linear_operator_of(self.gm, node)
        if linear is not None and not self._is_depthwise(linear):
            if not self._works_along(linear):
                raise Unfit(f"{node.name} works along another axis than the layer behind it", node)
            self.units.entries.append(self._plain(linear))
            return ()
        if linear is not None:
            self.units.depthwise.append(self._plain(linear, depthwise=True))
            self.units.between[node] = None
            return (linear.input,)
        norm = self.units.between[node] = self._norm(node)
        if norm is not None:
            given = node.args[0]
            assert isinstance(given, fx.Node)
            return (given,)
        # A reshape reads sizes too.
        read = [f for f in node.all_input_nodes if f.op == "get_attr" or isinstance(f.meta.get("val"), Tensor)]
        feeders = [feeder for feeder in read if feeder.op != "get_attr"]
        if len(feeders) < len(read) or not feeders or not self._one_by_one(node, feeders):
            raise Unfit(f"{node.name} does not treat the channels of a hidden layer one by one", node)
        return feeders

    def _works_along(self, linear: LinearOperator) -> bool:
        """Tell whether an operator makes or reads channels along the axis of the units: of two axes 1 is the last."""
        value = linear.node.meta.get("val")
        return linear.axis == self.units.axis or (isinstance(value, Tensor) and value.ndim == 2)

    def _norm(self, node: fx.Node) -> ThinNorm | None:
        """The norm that a node is, whose groups stay together."""
        module = called_module(self.gm, node)
        if isinstance(module, nn.modules.instancenorm._InstanceNorm):
            # The module itself is made again.
            norm: ThinNorm | None = ThinNorm("instance", module.eps, module.momentum)
        else:
            norm = norm_at(self.gm, node, {self.units.size})
        if norm is None:
            return None
        if norm.kind == "group":
            self.units.group = math.lcm(self.units.group, self.units.size // norm.groups)
        dims = node.meta["val"].ndim
        # Of two axes the last is that of channels too, but for an instance norm, to which they are one example.
        along = self.units.axis % dims == 1 and (dims > 2 or norm.kind != "instance")
        if norm.kind not in _BY_CHANNEL or not along or self.units.group == self.units.size:
            raise Unfit(f"{node.name} normalises all channels of a hidden layer together", node)
        return norm

    def _one_by_one(self, node: fx.Node, feeders: list[fx.Node]) -> bool:
        """Tell whether each channel of the result is a function of the same channel of what a node reads."""
        if node.target in _BESIDE and self.units.axis == 1:
            dim: Any = node.args[1] if len(node.args) > 1 else 0
            place = dim % node.meta["val"].ndim
            # An axis that is added before that of the units would move it.
            return place > 1 or (place == 0 and node.target is torch.ops.aten.slice.Tensor)
        if node.target in RESHAPES:
            # Positions alone, with the channels behind them.
            sizes: Any = node.args[1]
            return self.units.axis == -1 and sizes[-1] in (-1, self.units.size)
        if torch.Tag.pointwise in getattr(node.target, "tags", ()) and self._aligned(node, feeders):
            return True
        if not all(same_shape(feeder, node) for feeder in feeders):
            return False
        module = called_module(self.gm, node)
        # A PReLU may have one slope for all channels.
        if node.target in COPIES or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            return True
        if len(feeders) != 1 or node.args[0] is not feeders[0]:
            return False
        drops = node.target in PROBABILITY and node.target is not SCALED_PRODUCT
        return drops or is_activation(self.gm, node) or passes_through(node)

    def _aligned(self, node: fx.Node, feeders: list[fx.Node]) -> bool:
        """Tell whether all that an operator reads has the units where its result has them; other sizes may be 1."""
        return all(f.meta["val"].ndim == node.meta["val"].ndim for f in feeders) and all(
            fixed_size(f.meta["val"].shape[self.units.axis]) == self.units.size for f in feeders
        )

    def _is_depthwise(self, linear: LinearOperator) -> bool:
        """Tell whether each channel of a convolution's result is of the same channel of its input."""
        given, made = (node.meta.get("val") for node in (linear.input, linear.node))
        if linear.kind != "conv" or not isinstance(given, Tensor) or not isinstance(made, Tensor):
            return False
        return linear.groups > 1 and fixed_size(given.shape[1]) == fixed_size(made.shape[1]) == linear.groups

    def _plain(self, linear: LinearOperator, *, depthwise: bool = False) -> LinearOperator:
        """An operator whose weight can lose rows and columns."""
        node = linear.node
        if linear.weight is None or (linear.groups > 1 and not depthwise):
            raise Unfit(f"{node.name} is of a kind whose weight cannot lose rows or columns", node)
        if linear.weight in self.site.idle_parameters:
            raise Unfit(f"nothing reads the result of {node.name}", node)
        module = called_module(self.gm, node)
        if getattr(module, "padding_mode", "zeros") != "zeros":
            raise Unfit(f"{node.name} does not pad with zeros", node)
        if module is None and node.kwargs:
            raise Unfit(f"{node.name} is called in a way that is not known", node)
        return linear
