"""Find blocks that are alike up to channel counts, strides and the projection of a shortcut.

    stage 1   x - [conv3 bn relu conv3 bn +] - relu - [conv3 bn relu conv3 bn +] - relu -
    stage 2       [conv3/2 bn relu conv3 bn + (conv1/2 bn)] - relu - [conv3 bn relu conv3 bn +] - relu -

The blocks here are residual units (`repl_fx.finding.residual_units`): what lies between an addition and the value both
its sides come from. Those whose main paths are the same operators in the same wiring, sizes left out, are one similar
repeat; they need not stand back to back. Surrogates that adapt sizes can make one of them from two others.
Never touches: the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx.finding.block_names import BlockNames
from repl_fx.finding.block_values import block_of, entering, leaving, with_passing
from repl_fx.finding.blocks import Repeat
from repl_fx.finding.node_table import NONE, NodeTable
from repl_fx.finding.residual_units import Residual, residuals
from repl_fx.graph.captured import attribute
from repl_fx.graph.grouping import grouped

# Names of sizes in the schemas of ATen operators.
_SIZES = {
    "size", "sizes", "shape", "split_size", "split_sizes", "normalized_shape", "stride", "padding", "output_size",
    "output_padding", "groups", "num_groups", "start", "end", "length", "shifts", "repeats", "pad", "scale",
    "kernel_size", "dilation", "implicit", "eps", "index",
}  # fmt: skip
_FORK, _OUTSIDE = -1, -2


def find_similar(exact: Sequence[Repeat], names: BlockNames) -> tuple[Repeat, ...]:
    """Find similar repeats.

    Args:
        exact: the exact repeats of a graph; what is wholly part of those of three blocks and more is not found again.
        names: those of the graph; gives such as are not taken.

    Returns:
        Sequences of two or more similar blocks, in program order.
    """
    table = names.table
    alike = _Alike(table)
    groups = grouped((alike.signature(unit), unit) for unit in residuals(table))
    replaceable = {table.index[n] for r in exact if len(r) > 2 for b in r.blocks for n in b.nodes if n in table.index}
    repeated = {table.index[n] for r in exact for b in r.blocks for n in b.nodes if n in table.index}
    weighed = [(_gain(table, units), units) for units in groups.values() if len(units) > 1]
    taken: set[int] = set()
    found: list[list[Residual]] = []
    # Units inside units: those that let the most parameters go.
    for _, units in sorted(weighed, key=lambda w: (-w[0][0], -w[0][1], w[1][0].add)):
        own = {position for unit in units for position in unit.members}
        if own & taken or not _is_new(units, replaceable, repeated):
            continue
        taken |= own
        found.append(units)
    return tuple(_repeat(units, names) for units in sorted(found, key=lambda units: units[0].add))


def _gain(table: NodeTable, units: Sequence[Residual]) -> tuple[int, int]:
    """Parameters that can go when every second unit does, and those of all."""
    total = sum(int(table.sizes[list(unit.main)].sum()) for unit in units)
    return total * ((len(units) - 1) // 2) // len(units), total


def _is_new(units: Sequence[Residual], replaceable: set[int], repeated: set[int]) -> bool:
    """Tell whether the units say more than exact repeats: one can go that could not, or no repeat was found."""
    if not any(repeated.intersection(unit.main) for unit in units):
        return True
    return any(not unit.shortcut and not replaceable.intersection(unit.main) for unit in units[1:-1])


class _Alike:
    """Signatures of residual units, equal for those that are alike up to sizes."""

    def __init__(self, table: NodeTable) -> None:
        self.gm = table.graph_module
        self.table = table
        self.known: dict[int, Any] = {}

    def signature(self, unit: Residual) -> Any:
        """Labels and wiring of a unit's main path."""
        place = {position: number for number, position in enumerate(unit.main)}
        # A projection on the shortcut makes no difference.
        place |= dict.fromkeys((unit.fork, *unit.shortcut), _FORK)
        return tuple(
            (
                self.label(position),
                tuple(place.get(v, _OUTSIDE) for v in self.table.arguments[position].tolist() if v != NONE),
            )
            for position in (*unit.main, unit.add)
        )

    def label(self, position: int) -> Any:
        """The traits of a node that must be alike; nodes with the same exact label are looked at once."""
        exact = int(self.table.labels[position])
        if exact not in self.known:
            node = self.table.nodes[position]
            value = node.meta.get("val")
            result = (value.dtype, value.ndim) if isinstance(value, Tensor) else type(value).__name__
            self.known[exact] = (*self._call(node), result)
        return self.known[exact]

    def _call(self, node: fx.Node) -> tuple[Any, ...]:
        if node.op == "call_module":
            return _module_label(self.gm.get_submodule(str(node.target)))
        names: list[str] = []
        if isinstance(node.target, torch._ops.OpOverload):
            names = [argument.name for argument in node.target._schema.arguments]
        given = [(names[i] if i < len(names) else "", value) for i, value in enumerate(node.args)]
        given += sorted(node.kwargs.items())
        return (node.target, tuple(self._argument(value, name in _SIZES or not names) for name, value in given))

    def _argument(self, value: Any, is_size: bool) -> Any:
        if isinstance(value, fx.Node):
            if value.op != "get_attr":
                return "value"
            state = attribute(self.gm, str(value.target))
            return ("state", state.ndim) if isinstance(state, Tensor) else ("state", type(state).__name__)
        if isinstance(value, (tuple, list)):
            return "sizes" if is_size else tuple(self._argument(item, is_size) for item in value)
        if isinstance(value, (str, bool, type(None), torch.dtype)):
            return value
        return "size" if is_size or not isinstance(value, int) else value


def _module_label(module: nn.Module) -> tuple[Any, ...]:
    settings = tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and isinstance(value, (bool, str))
    )
    shapes = tuple((name, parameter.ndim) for name, parameter in module.named_parameters())
    groups = getattr(module, "groups", 1)
    kind = "dense" if groups == 1 else "depthwise" if groups == getattr(module, "in_channels", 0) else "grouped"
    return type(module), settings, shapes, getattr(module, "kernel_size", None), kind


def _repeat(units: Sequence[Residual], names: BlockNames) -> Repeat:
    table, (name, titles) = names.table, names.similar([unit.members for unit in units])
    copies = [tuple(table.nodes[i] for i in unit.members) for unit in units]
    blocks = []
    for title, unit, nodes in zip(titles, units, with_passing(copies), strict=True):
        # The value that the unit takes, as it stands in the graph.
        rows = ((table.arguments[i].tolist(), table.feeders[i]) for i in unit.members)
        fork = next(feeders[row.index(unit.fork)] for row, feeders in rows if unit.fork in row)
        given, made = entering(fork, nodes), leaving(table.nodes[unit.add], nodes)
        blocks.append(block_of(names, title, nodes, (given,), (made,), own=len(unit.shortcut)))
    return Repeat(name, tuple(blocks), similar=True, own=False)
