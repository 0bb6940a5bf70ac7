"""`coarse`: the block itself at a lower resolution, where it costs a fraction of what it did.

    c = mean of x over each window of positions
    y = x + spread(block'(c) - c)                    every position gets what became of its window

block' is the block with all its channels, heads and hidden units, on as many positions as there are windows. Of x only
what has few positions is read or added, and nothing of full size is kept for the backward pass. What follows the
block's last addition (a ReLU) is applied to y, at full resolution.

    W' = alpha A + beta C        for the weights of its linear layers and convolutions; A and C those of the neighbours

with alpha and beta for each output channel. Norms, biases, layer scales and buffers stay the block's own. With
`weights=own` the block keeps its weights: a network of full depth and size, of which some blocks see less.

The end of each branch starts silent: the batch norm behind its last layer, or that layer's weight and bias, is zero,
and training begins with the depth-pruned network. (Blended weights that begin at their scale cost a vision transformer
more than the layer is worth; a block that begins as it is did so in a ResNet; docs/results.md.) Where a layer scale
follows, that sets how the branch begins, and W' starts as long as the weight that it replaces.

Blocks whose positions cannot be grouped without harm are refused: a causal or masked attention would see what it must
not, and a window of a sequence in time reaches into the future.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import pytree
from repl_fx.analysis.attention import find_attention, mixes_by_map, sees_all_positions
from repl_fx.analysis.linear_operators import LinearOperator, linear_operator_of
from repl_fx.graph.bridge import digraph, leading_to
from repl_fx.graph.captured import writes_in_place
from repl_fx.surrogates.shared.activations import is_activation
from repl_fx.surrogates.shared.blended_weights import (
    BlendSynthesis,
    on_state,
    output_axis,
    refuse_unlike,
    weights_to_blend,
)
from repl_fx.surrogates.shared.branch_edits import has_no_state, silent_norms, silent_operators
from repl_fx.surrogates.shared.norms import fresh_norm, norm_at
from repl_fx.surrogates.shared.registry import Surrogate, check_thin_settings, register_surrogate
from repl_fx.surrogates.shared.site import Call, Site, shown
from repl_fx.surrogates.shared.synthesis import Synthesis
from repl_fx.surrogates.shared.windows import PictureWindows, TokenWindows, Windows


@dataclass(frozen=True)
class CoarseConfig:
    """Settings of `coarse`.

    Attributes:
        ratio: windows for each position.
        train_neighbours: whether gradients flow into the neighbours' weights.
        weights: `neighbours` to make weights from theirs, `own` to keep the block's.
    """

    ratio: float = 0.0625
    train_neighbours: bool = True
    weights: str = "neighbours"

    def __post_init__(self) -> None:
        check_thin_settings("coarse", self.ratio, "ratio", None, self.weights)


class _Unlike(Exception):
    """A block that cannot be had at a lower resolution; says why."""


@dataclass
class _Coarse:
    """A block at a lower resolution, worked out on fake values.

    Attributes:
        windows: of its stream.
        joins: the additions on the block's spine.
        calls: what leads to the last of them, in order; arguments are the block's own nodes.
        behind: what follows it.
    """

    windows: Windows
    joins: set[fx.Node]
    calls: list[Call] = field(default_factory=list)
    behind: list[fx.Node] = field(default_factory=list)


@register_surrogate("coarse", CoarseConfig)
class Coarse(Surrogate[CoarseConfig]):
    """The block on means over windows."""

    def refuse(self, site: Site) -> str | None:
        """Refuse a block without a plain spine, one whose positions are told apart, and neighbours of another size."""
        try:
            _plan(site, self.config.ratio)
        except _Unlike as reason:
            return str(reason)
        return refuse_unlike(site) if self.config.weights == "neighbours" else None

    def kept_parameters(self, site: Site) -> Collection[str]:
        """All but the weights that are blended, and those at the ends of branches, which start at zero."""
        ends = [str(linear.weight) for linear in silent_operators(site)]
        gone = {*ends, *(weights_to_blend(site) if self.config.weights == "neighbours" else ())}
        return [path for path in site.block.parameters if path not in gone]

    def build(self, site: Site) -> tuple[fx.Node, ...]:
        """Put the coarse block before the block's output."""
        coarse = _plan(site, self.config.ratio)
        fresh = silent_norms(site)
        with site.before_node(site.block.output):
            weights = self._weights(site)
            mean = coarse.windows.mean(site, site.input)
            made: dict[fx.Node, fx.Node] = {site.input: mean}
            for call in coarse.calls:
                args, kwargs = _on(call, made | {n: weights[str(n.target)] for n in _read(call.node, weights)})
                if call.node in fresh:
                    value = site.call_module(_silent_norm(site, call), args[0])
                elif call.node in coarse.joins:
                    # Not in place: the mean is read again.
                    value = site.call(torch.add, *args)
                else:
                    now = Call(call.node, args, kwargs, call.value)
                    value = on_state(site, now, weights) or site.repeat(now)
                made[call.node] = value
            change = site.call(torch.sub, made[max(coarse.joins)], mean)
            stream = coarse.windows.added(site, site.input, change)
            for node in coarse.behind:
                args, kwargs = _on(Call.of(node), {node.all_input_nodes[0]: stream})
                stream = site.repeat(Call(node, args, kwargs, node.meta["val"]))
        return (stream,)

    def _weights(self, site: Site) -> dict[str, fx.Node]:
        """The stand-ins for parameters of the block, by path: blended weights, and those that start at zero."""
        ends = silent_operators(site)
        zero = [str(linear.weight) for linear in ends if linear.weight is not None]
        biases = [path for linear in ends if linear.bias for path in _bias_paths(site, linear)]
        synthesis: Synthesis
        if self.config.weights == "own":
            names, paths = zero, []
            synthesis = ZeroWeights([site.tensor(path) for path in (*zero, *biases)])
        else:
            names = weights_to_blend(site)
            paths = [site.counterpart_parameter(name, b) for name in names for b in site.neighbours]
            tensors = [site.tensor(path) for path in paths]
            synthesis = CoarseSynthesis(
                [site.tensor(name) for name in names],
                list(zip(tensors[::2], tensors[1::2], strict=True)),
                [output_axis(site, name) for name in names],
                [name in zero for name in names],
                [site.tensor(path) for path in biases],
                self.config.train_neighbours,
            )
        if not names:
            return {}
        made = site.synthesise("coarse", synthesis, *(site.parameter(path) for path in paths))
        return {path: site.call(operator.getitem, made, i) for i, path in enumerate((*names, *biases))}


class CoarseSynthesis(BlendSynthesis):
    """Blended weights, some of which start at zero, and then biases of its own, which do too.

    Args:
        own, pairs, axes, train_neighbours: see `BlendSynthesis`.
        silent: for each weight whether it starts at zero.
        biases: those that are removed.
    """

    def __init__(
        self,
        own: list[Tensor],
        pairs: list[tuple[Tensor, Tensor]],
        axes: list[int | None],
        silent: list[bool],
        biases: list[Tensor],
        train_neighbours: bool,
    ) -> None:
        super().__init__(own, pairs, axes, train_neighbours)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros_like(bias)) for bias in biases)
        for alpha, beta, zero in zip(self.alpha, self.beta, silent, strict=True):
            if zero:
                nn.init.zeros_(alpha)
                nn.init.zeros_(beta)

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """Weights of the neighbours, (before, after, before, after, …), to the blends, and the biases."""
        return (*super().synthesise(*weights), *self.biases)


class ZeroWeights(Synthesis):
    """Parameters that start at zero in the place of others.

    Args:
        given: those that are removed.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__(train_neighbours=True)
        self.values = nn.ParameterList(nn.Parameter(torch.zeros_like(tensor)) for tensor in given)

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The parameters themselves."""
        return tuple(self.values)


def streams_sequence(site: Site) -> bool:
    """Whether the streamed value is of shape (batch, positions, channels)."""
    value = site.input.meta.get("val")
    return isinstance(value, Tensor) and value.ndim == 3


def _plan(site: Site, ratio: float) -> _Coarse:
    """Work out the block at a lower resolution.

    Raises:
        _Unlike: it cannot be had.
    """
    split, block = site.split, site.block
    if split.reason:
        raise _Unlike(split.reason)
    given, made = site.input.meta.get("val"), block.output.meta.get("val")
    if len(block.inputs) != 1 or not isinstance(given, Tensor) or not isinstance(made, Tensor):
        raise _Unlike("it has several streamed values")
    if str(given.shape) != str(made.shape):
        raise _Unlike(f"it turns {shown(given.shape)} into {shown(made.shape)}")
    joins = {branch.join for branch in split.branches}
    last = max(joins)
    for node in split.spine:
        if node <= last and not (_is_plain_sum(node) if node in joins else _is_identity(site, node)):
            raise _Unlike(f"its spine has {node.name}, which is no plain addition")
        if node > last and not _is_passing(site, node):
            raise _Unlike(f"its spine has {node.name} behind its last addition")
    windows = _windows(site, given, ratio)
    coarse = _Coarse(windows, joins, behind=[node for node in split.spine if node > last])
    values: dict[fx.Node, Any] = {site.input: site.value_of(windows.fewer, given)}
    for node in sorted(leading_to(digraph(block.nodes), [last])):
        if node.op == "get_attr":
            continue
        # The additions are made out of place.
        if node not in joins and _written(site, node) in {site.input, *split.spine}:
            raise _Unlike(f"{node.name} writes into the stream")
        coarse.calls.append(_coarser(site, node, values, windows.sizes))
        values[node] = coarse.calls[-1].value
    if str(values[last].shape) != str(values[site.input].shape):
        raise _Unlike(f"{last.name} has other positions than {site.input.name} at a lower resolution")
    return coarse


def _windows(site: Site, given: Tensor, ratio: float) -> PictureWindows | TokenWindows:
    """Windows over what streams through the block.

    Raises:
        _Unlike: it has no positions that can be grouped.
    """
    if given.ndim in (4, 5) and isinstance(given.shape[1], int):
        return PictureWindows.of(given, ratio)
    if given.ndim != 3 or not isinstance(given.shape[1], int):
        raise _Unlike(f"{site.input.name} is neither a picture, channels first, nor a sequence of fixed length")
    positions = given.shape[1]
    if any(positions in site.tensor(path).shape for path in site.block.parameters):
        raise _Unlike(f"it has parameters for each of its {positions} positions, or as many channels")
    attentions = [find_attention(branch) for branch in site.split.branches if mixes_by_map(branch)]
    for attention in attentions:
        if isinstance(attention, str):
            raise _Unlike(attention)
        if not attention.batch_first or not sees_all_positions(attention):
            raise _Unlike(f"{attention.core.name} does not attend to all positions alike")
    if not attentions:
        raise _Unlike("nothing shows that the order of its positions is free, as attention without a mask would")
    return TokenWindows.of(given, ratio)


def _coarser(site: Site, node: fx.Node, values: Mapping[fx.Node, Any], sizes: Mapping[int, int]) -> Call:
    """The call of a node of the block at a lower resolution, with its own arguments but for sizes.

    Raises:
        _Unlike: it reads something else than the stream, looks to one side alone, or cannot be called so.
    """
    outside = [f for f in node.all_input_nodes if f not in values and isinstance(f.meta.get("val"), Tensor)]
    if any(f.op != "get_attr" for f in outside):
        raise _Unlike(f"{node.name} reads a value from outside the block")
    linear = linear_operator_of(site.graph_module, node)
    if linear is not None and (linear.weight is None or (linear.kind == "conv" and not linear.centred)):
        # A masked or causal convolution would see what it must not in the mean over a window.
        raise _Unlike(f"{node.name} is of a kind that may look to one side alone")

    def smaller(argument: Any) -> Any:
        return sizes.get(argument, argument) if type(argument) is int else argument

    args, kwargs = node.args, node.kwargs
    if node.op != "call_module":
        args, kwargs = pytree.tree_map(smaller, (args, kwargs))
    try:
        given = fx.node.map_arg((args, kwargs), lambda n: values.get(n, n.meta["val"]))
        value = site.computed(node, *given)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
        raise _Unlike(f"{node.name} does not work at a lower resolution") from None
    return Call(node, args, kwargs, value)


def _written(site: Site, node: fx.Node) -> fx.Node | None:
    """The value that a node writes into; None where it writes nowhere."""
    if node.op == "call_module":
        writes = getattr(site.graph_module.get_submodule(str(node.target)), "inplace", False)
    else:
        writes = writes_in_place(node)
    given = node.args[0] if node.args and writes else None
    return given if isinstance(given, fx.Node) else None


def _is_plain_sum(node: fx.Node) -> bool:
    return len(node.args) == 2 and not node.kwargs


def _is_identity(site: Site, node: fx.Node) -> bool:
    return node.op == "call_module" and type(site.graph_module.get_submodule(str(node.target))) is nn.Identity


def _is_passing(site: Site, node: fx.Node) -> bool:
    """Whether a node does the same to every value, without parameters."""
    gm = site.graph_module
    return len(node.all_input_nodes) == 1 and (is_activation(gm, node) or has_no_state(gm, node))


def _on(call: Call, values: Mapping[fx.Node, fx.Node]) -> Any:
    """The arguments of a call on other nodes, where there are others."""
    return fx.node.map_arg((call.args, call.kwargs), lambda n: values.get(n, n))


def _read(node: fx.Node, weights: Mapping[str, fx.Node]) -> list[fx.Node]:
    """The parameters that a node reads and that others stand for."""
    return [feeder for feeder in node.all_input_nodes if feeder.op == "get_attr" and str(feeder.target) in weights]


def _silent_norm(site: Site, call: Call) -> str:
    """A norm like that of a call, which makes zeros at first; where it is."""
    channels = int(call.value.shape[1])
    norm = norm_at(site.graph_module, call.node, {channels})
    assert norm is not None
    return site.module("norm", fresh_norm(site, norm, channels, 1, call.value.ndim, silent=True))


def _bias_paths(site: Site, linear: LinearOperator) -> list[str]:
    """Where the bias of a linear operator is."""
    if linear.node.op == "call_module":
        return [f"{linear.node.target}.bias"]
    read = [str(feeder.target) for feeder in linear.node.all_input_nodes if feeder.op == "get_attr"]
    return [path for path in read if path != linear.weight and site.tensor(path).ndim == 1]
