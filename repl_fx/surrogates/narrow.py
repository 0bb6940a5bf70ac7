"""`narrow`: the block itself with fewer hidden units in its layers, for networks that are trained already.

    y = x + W_out act(W_in x + b)           W_in (H, C), W_out (C, H)
    y = x + V_out act(V_in x + c)           V_in = W_in[S], c = b[S], V_out (C, r)        S: r of the H units

Units are the channels that linear layers or convolutions make and others read, with operators between them that treat
each channel alone: of MLPs with and without gates, of residual and inverted bottlenecks. Between them may be norms: of
a group norm whole groups go, so that what is left is normalised as it was. All else of the block stays: attention, the
stream. Nothing is made from the neighbours, so that blocks in a row may go.

S and V_out are chosen on data (`repl_fx.fit`; see `repl_fx.fitting.units`): the units that tell most of what all of
them write, and V_out by least squares, so that it says for the units that went what can be said with those that stay.
(That what is left is solved for anew is from ThiNet, Luo et al., arXiv 1707.06342, and He et al., arXiv 1707.06168.)
Without data the units stay whose rows and columns are longest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import fixed_size
from repl_fx.errors import BadInput
from repl_fx.finding.linear_operators import LinearOperator
from repl_fx.graph.captured import attribute, called_module, parameters_read
from repl_fx.graph.notes import STANDS_FOR
from repl_fx.graph.roles import LINEAR, RESHAPES
from repl_fx.surrogates.shared.branch_edits import bias_paths
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.cut_layers import StayingUnits, cut_layers, longest
from repl_fx.surrogates.shared.fitted_starts import CutLayer, CutVector, KeptUnits, LastLayer, UnitsOf
from repl_fx.surrogates.shared.hidden_units import HiddenUnits, find_hidden_units
from repl_fx.surrogates.shared.site import Site, Unfit, unfit_is_refused
from repl_fx.surrogates.shared.surrogate import Match, Surrogate, Traits, register_surrogate
from repl_fx.surrogates.shared.synthesis import OwnWeights

# A half where nobody says how many.
_RATIO = 0.5
# What a budget may ask for, from the most to the least.
_RATIOS = tuple(eighths / 8 for eighths in range(7, 0, -1))
# Fewer units have little to say; and many are a multiple of what kernels are fast at.
_LEAST, _MANY, _MULTIPLE = 4, 64, 8
# The place of the groups among the settings of a convolution.
_GROUPS = 3

# Averages of all batches go on with their number.
_COUNT = "num_batches_tracked"


@dataclass(frozen=True)
class NarrowConfig:
    """Settings of `narrow`.

    Attributes:
        ratio: of the hidden units, how many stay; at least 4 do. None for a half; under a budget, for as many eighths
            of them as it allows.
    """

    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.ratio is None:
            return
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float) or not 0 < self.ratio <= 1:
            raise BadInput(f"narrow: ratio is {self.ratio!r}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class NarrowMatch(Match):
    """The hidden units of a block, and how many stay.

    Attributes:
        layers: those that make or read them, with their parts that stay, by node.
        between: the nodes between them, with the number of the units that are in their values.
        norms: those of them that are norms: the paths of their tensors by name, by node.
        nodes: all that change, in program order.
    """

    hidden: tuple[HiddenUnits, ...]
    counts: tuple[UnitsOf, ...]
    layers: Mapping[fx.Node, tuple[LinearOperator, CutLayer]]
    between: Mapping[fx.Node, int]
    norms: Mapping[fx.Node, Mapping[str, str]]
    nodes: tuple[fx.Node, ...]


@register_surrogate("narrow", NarrowConfig)
class Narrow(Surrogate[NarrowConfig, NarrowMatch]):
    """The block with fewer hidden units."""

    def __init__(self, config: NarrowConfig) -> None:
        super().__init__(config)
        self._ratio = config.ratio or _RATIO
        # Values that others use are not among those that change. The error is a fit to the medians over the four
        # networks of docs/block_errors.md.
        self.traits = Traits("block", keeps_nodes=True, error_left=0.25 * math.exp(-4.5 * self._ratio))

    def sizes(self) -> tuple[Narrow, ...]:
        """With fewer and fewer units, where their number is open."""
        return (self,) if self.config.ratio else tuple(Narrow(NarrowConfig(ratio)) for ratio in _RATIOS)

    @unfit_is_refused
    def match(self, site: Site) -> NarrowMatch:
        """Refuse a block without units that any of them can go of."""
        hidden = tuple(find_hidden_units(site))
        layers = _layers(site, hidden)
        norms = {node: _norm_state(site, node) for units in hidden for node in units.norms}
        between = {node: number for number, units in enumerate(hidden) for node in units.between}
        nodes = tuple(sorted({*layers, *between}))
        gm = site.graph_module
        gone = {path for node in (*layers, *norms) for path in parameters_read(gm, node)}
        others = (node for node in gm.graph.nodes if node not in layers and node not in norms)
        # Narrow weights are the block's own, and what is shared stays shared.
        read = {id(attribute(gm, path)) for node in others for path in parameters_read(gm, node)}
        if shared := sorted(path for path in gone if id(attribute(gm, path)) in read):
            raise Unfit(f"{shared[0]} is read elsewhere too")
        kept = [path for path in site.block.parameters if path not in gone]
        counts = tuple(UnitsOf(u.value.name, u.axis, u.size, self._count(u.size, u.group), u.group) for u in hidden)
        left = f"{', '.join(dict.fromkeys(f'{u.count} of {u.size}' for u in counts))} hidden units"
        return NarrowMatch(hidden, counts, layers, between, norms, nodes, kept_parameters=kept, left=left)

    def build(self, site: Builder, match: NarrowMatch) -> tuple[fx.Node, ...]:
        """Put narrow layers and what is between them in the place of those of the block; its other nodes stay."""
        start = KeptUnits(match.counts, tuple(layer for _, layer in match.layers.values()))
        chosen = [longest(start, number, site.tensor) for number in range(len(start.hidden))]
        own = OwnWeights({n: v.detach().clone() for n, v in cut_layers(start.layers, site.tensor, chosen).items()})
        with site.before_node(match.nodes[0]):
            weights = site.synthesised("narrow", own, (), own.names)
        vectors: list[CutVector] = []
        for number, node in enumerate(match.nodes):
            with site.before_node(node):
                if node in match.layers:
                    made = _applied(site, *match.layers[node], weights, match.counts)
                elif node in match.norms:
                    units = match.between[node]
                    path = site.module(f"norm_{number}", _norm(site, match, node, chosen[units]), node)
                    made = site.call_module(path, node.args[0])
                    cut = {name: of for name, of in match.norms[node].items() if name != _COUNT}
                    vectors += [CutVector(f"{path}.{name}", of, units) for name, of in cut.items()]
                else:
                    made = _again(site, node, match.counts[match.between[node]])
            site.replace(node, made)
        ends = [
            LastLayer.among(own.names, layer.weight, layer.bias or "", transposed=layer.transposed)
            for layer in start.layers
            if layer.rows is None
        ]
        # A norm or a depthwise convolution has more than weights of another size.
        one_side = all(layer.rows is None or layer.columns is None for layer in start.layers)
        if one_side and not match.norms and not any(units.depthwise for units in match.hidden):
            for layer in start.layers:
                for name, source in ((layer.weight, layer.of_weight), (layer.bias, layer.of_bias)):
                    if name is not None and source is not None:
                        STANDS_FOR.put(weights[name], source)
        site.fitted(weights[own.names[0]], replace(start, vectors=tuple(vectors)), *ends)
        return site.block.outputs

    def whole_weights(self, match: NarrowMatch, own: nn.Module, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Layers of full size that compute the same: units that went are copies of others, and nobody reads them."""
        weights = dict(own.get_submodule("narrow").named_parameters())
        again = [torch.arange(units.size) % units.count for units in match.counts]
        made: dict[str, Tensor] = {}
        for _, layer in match.layers.values():
            weight, bias = weights[layer.weight].detach(), weights[layer.bias].detach() if layer.bias else None
            weight = weight.t() if layer.transposed else weight
            if layer.columns is not None:
                units = match.counts[layer.columns]
                unread = weight.new_zeros(len(weight), units.size - units.count, *weight.shape[2:])
                weight = torch.cat([weight, unread], 1)
            if layer.rows is not None:
                index = again[layer.rows].to(weight.device)
                weight, bias = weight[index], None if bias is None else bias[index]
            made[layer.of_weight] = weight.t() if layer.transposed else weight
            if layer.of_bias is not None and bias is not None:
                made[layer.of_bias] = bias
        for number, node in enumerate(match.nodes):
            if node in match.norms:
                index, state = again[match.between[node]], own.get_submodule(f"norm_{number}").state_dict()
                made |= {path: _at(state[name], index) for name, path in match.norms[node].items()}
        return made

    def _count(self, size: int, group: int = 1) -> int:
        if group > 1:
            return min(size, max(-(-_LEAST // group), round(self._ratio * size / group)) * group)
        count = max(_LEAST, round(self._ratio * size))
        if size >= _MANY:
            count = max(1, round(self._ratio * size / _MULTIPLE)) * _MULTIPLE
        return min(size, count)


def _layers(site: Site, hidden: Sequence[HiddenUnits]) -> dict[fx.Node, tuple[LinearOperator, CutLayer]]:
    """The layers that make or read hidden units, in program order."""
    rows = {linear.node: i for i, units in enumerate(hidden) for linear in (*units.entries, *units.depthwise)}
    columns = {linear.node: i for i, units in enumerate(hidden) for linear in units.readers}
    every = {one.node: one for units in hidden for one in (*units.entries, *units.depthwise, *units.readers)}
    found: dict[fx.Node, tuple[LinearOperator, CutLayer]] = {}
    for number, node in enumerate(sorted(every)):
        linear = every[node]
        assert linear.weight is not None  # the search has asked
        if linear.weight in [layer.of_weight for _, layer in found.values()]:
            raise Unfit(f"several layers of the block share {linear.weight}", node)
        bias = bias_paths(site, linear) if linear.bias else []
        if linear.bias and len(bias) != 1:
            raise Unfit(f"the bias of {node.name} is of a kind that cannot lose rows", node)
        found[node] = (
            linear,
            CutLayer(
                weight=f"weight_{number}",
                bias=f"bias_{number}" if bias else None,
                of_weight=linear.weight,
                of_bias=bias[0] if bias else None,
                transposed=linear.transposed,
                rows=rows.get(node),
                columns=columns.get(node),
            ),
        )
    return found


def _norm_state(site: Site, node: fx.Node) -> dict[str, str]:
    """The paths of what a norm has for each channel, and of the number of its batches, by name."""
    names = ("weight", "bias", "running_mean", "running_var", _COUNT)
    module = called_module(site.graph_module, node)
    if module is not None:
        found = {name: f"{node.target}.{name}" for name in names if getattr(module, name, None) is not None}
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            return found
    else:
        given = dict(zip(names[:-1], node.args[1:5], strict=True))
        found = {name: str(read.target) for name, read in given.items() if isinstance(read, fx.Node)}
    if "running_mean" not in found:
        raise Unfit(f"{node.name} keeps no statistics of its channels", node)
    return found


def _norm(site: Builder, match: NarrowMatch, node: fx.Node, chosen: StayingUnits) -> nn.Module:
    """A norm with the numbers of the channels that stay."""
    units = match.between[node]
    norm, given = match.hidden[units].between[node], site.now(node.args[0])
    assert norm is not None
    count = match.counts[units].count
    like = site.tensor(next(iter(match.layers.values()))[1].of_weight)
    made: nn.Module
    if norm.kind == "batch":
        made = norm.fresh(given, 1, site.tensor(match.norms[node]["running_mean"]))
    else:
        own: Any = site.graph_module.get_submodule(str(node.target))
        if norm.kind == "group":
            made = nn.GroupNorm(own.num_groups * count // own.num_channels, count, own.eps, own.affine)
        else:
            made = type(own)(count, own.eps, own.momentum, own.affine, own.track_running_stats)
        made.to(like)
    state = made.state_dict()
    with torch.no_grad():
        for name, path in match.norms[node].items():
            if not state[name].is_meta:
                state[name].copy_(_at(site.tensor(path), chosen.units))
    return made


def _at(value: Tensor, units: Tensor) -> Tensor:
    """The numbers of some units; the number of batches is one of all."""
    return value[units.to(value.device)] if value.ndim else value


def _applied(
    site: Builder,
    linear: LinearOperator,
    layer: CutLayer,
    weights: Mapping[str, fx.Node],
    counts: Sequence[UnitsOf],
) -> fx.Node:
    """The call of a layer on its weight without some units, in as many groups as a depthwise convolution keeps."""
    node, weight = linear.node, weights[layer.weight]
    if layer.transposed:
        weight = site.call(torch.ops.aten.t.default, weight)
    given = linear.input, weight, weights[layer.bias] if layer.bias else None
    if linear.kind == "linear":
        return site.call(LINEAR, *given)
    groups = counts[layer.rows].count if linear.groups > 1 and layer.rows is not None else 1
    conv = called_module(site.graph_module, node)
    if conv is not None:
        return site.convolved(cast("nn.Conv2d", conv), *given, groups)
    settings = list(node.args[len(given) :])
    if linear.groups > 1:
        settings[_GROUPS] = groups
    function: Any = node.target
    return site.call(function, *given, *settings)


def _again(site: Builder, node: fx.Node, units: UnitsOf) -> fx.Node:
    """The call of a node between layers on fewer units."""
    if node.target not in RESHAPES:
        return site.again(node, *node.all_input_nodes)
    given, sizes = node.args[:2]
    assert isinstance(sizes, Sequence)
    # Into heads, or with all units along the last axis.
    has_all = fixed_size(node.meta["val"].shape[-1]) == units.size
    axis, number = (-1, units.count) if has_all else (-2, units.count // units.group)
    places = list(sizes)
    places[axis] = places[axis] if places[axis] == -1 else number
    function: Any = node.target
    return site.call(function, given, places)
