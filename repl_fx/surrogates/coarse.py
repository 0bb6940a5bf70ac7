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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import example_of, has_example
from repl_fx.finding.attention import find_attention, mixes_by_map, sees_all_positions
from repl_fx.finding.linear_operators import LinearOperator, linear_operator_of
from repl_fx.graph.bridge import digraph, leading_to
from repl_fx.graph.captured import called_module, changes_argument, parameters_read
from repl_fx.surrogates.shared.activations import is_activation
from repl_fx.surrogates.shared.blended_weights import (
    BlendedWeight,
    blended,
    find_weights,
    fitted_gains,
    on_state,
)
from repl_fx.surrogates.shared.branch_edits import bias_paths, has_no_state, zero_init_norms, zero_init_operators
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.fitted_starts import FittedStart, LastLayer
from repl_fx.surrogates.shared.norms import norm_at
from repl_fx.surrogates.shared.position_sizes import with_positions
from repl_fx.surrogates.shared.site import NodeCall, Site, Unfit, shown, unfit_is_refused
from repl_fx.surrogates.shared.surrogate import Match, Surrogate, check_thin_settings, register_surrogate
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


@dataclass(frozen=True)
class CoarseMatch(Match):
    """A block at a lower resolution, worked out on fake values.

    Attributes:
        windows: of its stream.
        joins: the additions on the block's spine.
        calls: what leads to the last of them, in order; arguments are the block's own nodes.
        behind: what follows it.
        zero_norms: the norms that end a branch, which start at zero.
        zero_weights, zero_biases: paths of what ends the other branches, and starts at zero.
        blended: the weights that are made from those of the neighbours.
        exits: the operators at the end of each branch that no norm of the surrogate's own follows.
    """

    windows: Windows
    joins: frozenset[fx.Node]
    calls: tuple[NodeCall, ...]
    behind: tuple[fx.Node, ...]
    zero_norms: frozenset[fx.Node]
    zero_weights: tuple[str, ...]
    zero_biases: tuple[str, ...]
    blended: tuple[BlendedWeight, ...]
    exits: tuple[tuple[LinearOperator, ...], ...]


@register_surrogate("coarse", CoarseConfig)
class Coarse(Surrogate[CoarseConfig, CoarseMatch]):
    """The block on means over windows."""

    @unfit_is_refused
    def match(self, site: Site) -> CoarseMatch:
        """Refuse a block without a plain spine, one whose positions are told apart, and neighbours of another size."""
        joins, behind = _spine(site)
        windows, calls = _calls(site, joins, self.config.ratio)
        mixed = find_weights(site) if self.config.weights == "neighbours" else ()
        ends = zero_init_operators(site)
        zero = tuple(linear.weight for linear in ends if linear.weight is not None)
        biases = tuple(path for linear in ends if linear.bias for path in bias_paths(site, linear))
        gone = {*zero, *(weight.path for weight in mixed)}
        kept = [path for path in site.block.parameters if path not in gone]
        norms = frozenset(zero_init_norms(site))
        exits = tuple(branch.exits for branch in site.split.branches if norms.isdisjoint(branch.nodes))
        return CoarseMatch(windows, joins, calls, behind, norms, zero, biases, mixed, exits, kept_parameters=kept)

    def build(self, site: Builder, match: CoarseMatch) -> tuple[fx.Node, ...]:
        """Put the coarse block before the block's output."""
        with site.before_node(site.block.output):
            weights = self._weights(site, match)
            mean = match.windows.mean(site, site.input)
            read = (feeder for call in match.calls for feeder in call.node.all_input_nodes if feeder.op == "get_attr")
            made = {feeder: weights[str(feeder.target)] for feeder in read if feeder.target in weights}
            made[site.input] = mean
            for call in match.calls:
                node = call.node
                args, kwargs = fx.node.map_arg((call.args, call.kwargs), lambda n: made.get(n, n))
                if node in match.zero_norms:
                    norm = norm_at(site.graph_module, node, {int(call.value.shape[1])})
                    assert norm is not None  # the match has asked
                    like = site.tensor(site.block.parameters[0])
                    value = norm.applied(site, "norm", args[0], 1, like, zero_init=True)
                elif node in match.joins:
                    # Not in place: the mean is read again.
                    value = site.call(torch.ops.aten.add.Tensor, *args)
                else:
                    now = NodeCall(node, args, kwargs, call.value)
                    value = on_state(site, now, weights) or site.create(node.op, node.target, args, kwargs, call.value)
                made[node] = value
            change = site.call(torch.ops.aten.sub.Tensor, made[max(match.joins)], mean)
            stream = match.windows.added(site, site.input, change)
            site.stands_for(stream, max(match.joins))
            for node in match.behind:
                stream = site.again(node, stream)
        return (stream,)

    def whole_weights(self, match: CoarseMatch, own: nn.Module, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The weights that the coarse block runs on, which are whole, and its norms at the ends of branches."""
        made: dict[str, Tensor] = {}
        if match.blended or match.zero_weights:
            given = [read(path) for weight in match.blended for path in (weight.before, weight.after)]
            names = tuple(weight.path for weight in match.blended) or match.zero_weights
            made.update(zip((*names, *match.zero_biases), own.get_submodule("coarse")(*given), strict=True))
        norms = (module for name, module in own.named_children() if name.partition("_")[0] == "norm")
        for call, norm in zip((call for call in match.calls if call.node in match.zero_norms), norms, strict=True):
            made.update({f"{call.node.target}.{name}": tensor for name, tensor in norm.state_dict().items()})
        return made

    def _weights(self, site: Builder, match: CoarseMatch) -> dict[str, fx.Node]:
        """The stand-ins for parameters of the block, by path: blended weights, and those that start at zero."""
        if self.config.weights == "neighbours":
            train = self.config.train_neighbours
            made = blended(site, "coarse", match.blended, train, match.zero_weights, match.zero_biases)
        elif match.zero_weights:
            names = (*match.zero_weights, *match.zero_biases)
            made = site.synthesised("coarse", ZeroWeights([site.tensor(name) for name in names]), (), names)
        else:
            return {}
        site.fitted(next(iter(made.values())), *self._starts(site, match))
        return made

    def _starts(self, site: Builder, match: CoarseMatch) -> Iterator[FittedStart]:
        """The weights at the ends of branches, and biases, as what can be fitted, branch by branch."""
        names = (*match.zero_weights, *match.zero_biases)
        for exits in match.exits:
            of_weight = {str(linear.weight): bias_paths(site, linear) if linear.bias else [] for linear in exits}
            silent = all(path in match.zero_weights for path in of_weight)
            if self.config.weights == "neighbours":
                ends = {*of_weight, *(bias for biases in of_weight.values() for bias in biases)}
                terms = fitted_gains(site, match.blended, ends, match.zero_biases, silent)
                if terms.terms:
                    yield terms
                continue
            for weight, biases in of_weight.items():
                places = [
                    (names.index(name), f"values.{names.index(name)}") for name in (weight, *biases) if name in names
                ]
                if places:
                    yield LastLayer(places[0], places[1] if len(places) > 1 else None, gains=False)


class ZeroWeights(Synthesis):
    """Parameters that start at zero in the place of given ones."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__(train_neighbours=True)
        self.values = nn.ParameterList(nn.Parameter(torch.zeros_like(tensor)) for tensor in given)

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The parameters themselves."""
        return tuple(self.values)


def streams_sequence(site: Site) -> bool:
    """Tell whether the streamed value is of shape (batch, positions, channels)."""
    value = site.input.meta.get("val")
    return isinstance(value, Tensor) and value.ndim == 3


def _spine(site: Site) -> tuple[frozenset[fx.Node], tuple[fx.Node, ...]]:
    """The additions on the block's spine, and what follows the last of them; nothing else may be on it."""
    split = site.require_split()
    given, made = site.require_one_stream()
    if str(given.shape) != str(made.shape):
        raise Unfit(f"it turns {shown(given.shape)} into {shown(made.shape)}")
    joins = frozenset(branch.join for branch in split.branches)
    gm, last = site.graph_module, max(joins)
    for node in split.spine:
        if node > last:
            # The same to every value, without parameters.
            if len(node.all_input_nodes) != 1 or not (is_activation(gm, node) or has_no_state(gm, node)):
                raise Unfit(f"its spine has {node.name} behind its last addition", node)
            continue
        if node in joins:
            plain = len(node.args) == 2 and not node.kwargs
        else:
            plain = type(called_module(gm, node)) is nn.Identity
        if not plain:
            raise Unfit(f"its spine has {node.name}, which is no plain addition", node)
    return joins, tuple(node for node in split.spine if node > last)


def _calls(site: Site, joins: frozenset[fx.Node], ratio: float) -> tuple[Windows, tuple[NodeCall, ...]]:
    """The block's calls up to its last addition, on windows instead of positions."""
    given, last = site.input.meta["val"], max(joins)
    windows = _windows(site, given, ratio)
    values: dict[fx.Node, Any] = {site.input: site.value_of(windows.fewer, given)}
    calls = []
    for node in sorted(leading_to(digraph(site.block.nodes), [last])):
        if node.op == "get_attr":
            continue
        # The additions are made out of place.
        if node not in joins and _written(site, node) in {site.input, *site.split.spine}:
            raise Unfit(f"{node.name} writes into the stream", node)
        calls.append(_coarser(site, node, values, windows))
        values[node] = calls[-1].value
    if str(values[last].shape) != str(values[site.input].shape):
        raise Unfit(f"{last.name} has other positions than {site.input.name} at a lower resolution", last)
    return windows, tuple(calls)


def _windows(site: Site, given: Tensor, ratio: float) -> Windows:
    """Windows over what streams through the block; refuses positions that cannot be grouped."""
    if given.ndim in (4, 5) and isinstance(given.shape[1], int):
        windows = PictureWindows.of(given, ratio)
        sizes = [example_of(size) for size in given.shape[2:] if has_example(size)]
        if min(sizes, default=windows.side) < windows.side:
            raise Unfit(f"its {shown(sizes)} positions are fewer than a window has, {windows.side} along each side")
        return windows
    if given.ndim != 3 or not isinstance(given.shape[1], int):
        raise Unfit(f"{site.input.name} is neither a picture, channels first, nor a sequence of fixed length")
    _require_none_for_each_position(site, *given.shape[1:])
    attentions = [find_attention(branch) for branch in site.split.branches if mixes_by_map(branch)]
    for attention in attentions:
        if isinstance(attention, str):
            raise Unfit(attention)
        # Within it examples and positions are in either order; where they are as many, nothing tells them apart.
        examples, _, positions, _ = map(str, attention.core.meta["val"].shape)
        if examples == positions or [examples, positions] != [*map(str, given.shape[:2])]:
            raise Unfit(f"{attention.core.name} does not attend to the positions of {site.input.name}", attention.core)
        if not sees_all_positions(attention):
            raise Unfit(f"{attention.core.name} does not attend to all positions alike", attention.core)
    if not attentions:
        raise Unfit("nothing shows that the order of its positions is free, as attention without a mask would")
    return TokenWindows.of(given, ratio)


def _require_none_for_each_position(site: Site, positions: int, channels: int) -> None:
    """Refuse parameters for each position; those that lie along the channels may be as many."""
    gm, told = site.graph_module, set()
    for node in site.block.nodes:
        linear = linear_operator_of(gm, node)
        module = called_module(gm, node)
        if linear is not None and linear.kind == "linear":
            told |= {linear.weight, *bias_paths(site, linear)}
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            told.update(parameters_read(gm, node))
    for path in site.block.parameters:
        sizes = site.tensor(path).shape
        if positions in sizes and path not in told and (len(sizes) > 1 or positions != channels):
            raise Unfit(f"it has parameters for each of its {positions} positions, or as many channels: {path}")


def _coarser(site: Site, node: fx.Node, values: Mapping[fx.Node, Any], windows: Windows) -> NodeCall:
    """The call of a node of the block at a lower resolution, with its own arguments but for sizes."""
    outside = [f for f in node.all_input_nodes if f not in values and isinstance(f.meta.get("val"), Tensor)]
    if any(f.op != "get_attr" for f in outside):
        raise Unfit(f"{node.name} reads a value from outside the block", node)
    linear = linear_operator_of(site.graph_module, node)
    if linear is not None and (linear.weight is None or (linear.kind == "conv" and not linear.centred)):
        # A masked or causal convolution would see what it must not in the mean over a window.
        raise Unfit(f"{node.name} is of a kind that may look to one side alone", node)

    args, kwargs = node.args, node.kwargs
    if node.op != "call_module" and isinstance(windows, TokenWindows):
        args, kwargs = with_positions(site, node, values, len(windows.window), windows.count)
    try:
        given = fx.node.map_arg((args, kwargs), lambda n: values.get(n, n.meta["val"]))
        value = site.computed(node, *given)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
        raise Unfit(f"{node.name} does not work at a lower resolution", node) from None
    return NodeCall(node, args, kwargs, value)


def _written(site: Site, node: fx.Node) -> fx.Node | None:
    """The value that a node writes into; None where it writes nowhere."""
    given = node.args[0] if node.args and changes_argument(site.graph_module, node) else None
    return given if isinstance(given, fx.Node) else None
