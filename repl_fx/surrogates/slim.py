"""`slim`: the block itself at a fraction of its width, on as many channels of the stream.

    [s ; rest] = x                  the first r of C channels, and the others
    y = [block_r(s) ; rest]

block_r does what the block does with every width times r / C, but none below r: the same convolutions, norms,
activations and additions (a block as slimmed by Yu et al., arXiv 1812.08928; that a part of the channels is enough to
read and write is the partial convolution of Chen et al., arXiv 2303.03667). The kept block behind it mixes these
channels with the others. What is computed and kept for the backward pass is about r / C of the block's, and nothing of
it has full width.

    K[o, i] = sum over neighbours of g[o] * W[o, i]         for each convolution and linear layer

with o and i below its slim widths, W the weights of both neighbours, and gains g of their own for every unit. Learned
here: the gains, and biases, norms and layer scales at their slim widths.

At the start a row of K is as long as a row of what it stands for. The end of a branch starts silent: the norm behind
its last layer, or K of that layer where there is no norm, is zero, and training begins with the depth-pruned network.
Where a layer scale follows, that sets how the branch begins.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import fixed_size
from repl_fx.finding.linear_operators import LinearOperator, linear_operator_of
from repl_fx.graph.bridge import digraph, leading_to
from repl_fx.graph.captured import called_module, share_tensors
from repl_fx.graph.roles import ADDITIONS, COPIES, MULTIPLICATIONS, PERMUTATIONS
from repl_fx.surrogates.shared.activations import is_activation
from repl_fx.surrogates.shared.branch_edits import has_no_state, zero_init_norms, zero_init_operators
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.fitted_starts import ChannelTerms, FittedStart, LastLayer, Term
from repl_fx.surrogates.shared.norms import ThinNorm, norm_at
from repl_fx.surrogates.shared.site import Site, Unfit, shown, unfit_is_refused
from repl_fx.surrogates.shared.surrogate import Match, Surrogate, check_thin_settings, register_surrogate
from repl_fx.surrogates.shared.thin_block import SlimSynthesis, WeightCut, slim_weights

# Fewer channels than this have little to say; a convolution of fewer takes as long.
_LEAST = 4


@dataclass(frozen=True)
class SlimConfig:
    """Settings of `slim`.

    Attributes:
        ratio: r as a fraction of the stream's channels; r is at least 4, or all of them.
        width: r itself; overrides `ratio`.
        train_neighbours: whether gradients flow into the neighbours' weights.
        weights: `neighbours` to make weights from theirs, `own` for parameters of the same sizes: the control that
            synthesis is measured against.
    """

    ratio: float = 0.0625
    width: int | None = None
    train_neighbours: bool = True
    weights: str = "neighbours"

    def __post_init__(self) -> None:
        check_thin_settings("slim", self.ratio, "width", self.width, self.weights)


@dataclass(frozen=True)
class _SlimNode:
    """One node of the block at its slim width.

    Attributes:
        axis: of the channels in its result.
        channels: in the result of the slim one.
        linear: the linear operator, where the node is one; `cut` and `groups` are then those of the slim one.
        norm: likewise.
        scale: path of the parameter it multiplies by.
    """

    node: fx.Node
    axis: int
    channels: int
    linear: LinearOperator | None = None
    cut: WeightCut | None = None
    groups: int = 1
    norm: ThinNorm | None = None
    scale: str | None = None


@dataclass(frozen=True)
class SlimMatch(Match):
    """The slim width of the stream, what leads to the block's output, and the norms that start at zero.

    Attributes:
        exits: the operators at the ends of branches that have no such norm.
    """

    width: int
    steps: tuple[_SlimNode, ...]
    zero_norms: frozenset[fx.Node]
    exits: frozenset[fx.Node]


@register_surrogate("slim", SlimConfig)
class Slim(Surrogate[SlimConfig, SlimMatch]):
    """The block on a few channels."""

    @unfit_is_refused
    def match(self, site: Site) -> SlimMatch:
        """Refuse a block with several streams or none, or with a node that depends on its width otherwise."""
        steps = tuple(self._steps(site))
        # The slim block has all that it has for itself.
        norms = frozenset(zero_init_norms(site))
        ends = [branch.exits for branch in site.split.branches if norms.isdisjoint(branch.nodes)]
        exits = frozenset(linear.node for some in ends for linear in some)
        return SlimMatch(self._width(site), steps, norms, exits, kept_parameters=())

    def build(self, site: Builder, match: SlimMatch) -> tuple[fx.Node, ...]:
        """Put the slim block before the block's output, which reads it and the other channels."""
        stream, width = site.input, match.width
        channels = int(stream.meta["val"].shape[1])
        with site.before_node(site.block.output):
            mixed = [step for step in match.steps if step.linear is not None]
            weights = self._weights(site, mixed)
            starts = [self._start(step, i, weights) for i, step in enumerate(mixed) if step.node in match.exits]
            site.fitted(weights["weight_0"], *starts)
            taken, rest = stream, None
            if width < channels:
                # The gradients of both meet in one concatenation; those of two slices would each be padded and added.
                both = site.call(torch.ops.aten.split_with_sizes.default, stream, [width, channels - width], 1)
                taken, rest = (site.call(operator.getitem, both, i) for i in range(2))
            made = {stream: taken}
            for number, step in enumerate(match.steps):
                given = made[step.linear.input if step.linear else _streamed(step.node, made)[0]]
                if step.linear is not None:
                    i = mixed.index(step)
                    weight, bias = weights[f"weight_{i}"], weights.get(f"bias_{i}")
                    value = site.mix(given, weight, bias, step.linear.dilation, step.groups)
                elif step.norm is not None:
                    like, axis = site.tensor(site.block.parameters[0]), 1 if step.axis == 1 else -1
                    zero = step.node in match.zero_norms
                    value = step.norm.applied(site, f"norm_{number}", given, axis, like, zero_init=zero)
                elif step.scale is not None:
                    value = _scaled(site, step, given, number)
                elif step.node.target in ADDITIONS:
                    # Not in place: both values may be read again.
                    value = site.call(torch.ops.aten.add.Tensor, *(made[node] for node in _streamed(step.node, made)))
                    site.stands_for(value, step.node)
                else:
                    value = site.again(step.node, given)
                made[step.node] = value
            out = made[site.block.output]
            if rest is not None:
                out = site.call(torch.ops.aten.cat.default, [out, rest], 1)
        return (out,)

    def _weights(self, site: Builder, mixed: Sequence[_SlimNode]) -> dict[str, fx.Node]:
        """The weights and biases of the linear operators, by name."""
        cuts = [step.cut for step in mixed if step.cut is not None]
        names = [str(step.linear.weight) for step in mixed if step.linear is not None]
        removed = [site.tensor(name) for name in names]
        if self.config.weights == "own":
            own = slim_weights(cuts, removed)
            return site.synthesised("slim", own, (), own.names)
        paths = [path for name in names for path in site.counterpart_parameters(name)]
        given = [site.tensor(path) for path in paths]
        synthesis = SlimSynthesis(cuts, given, removed, self.config.train_neighbours)
        return site.synthesised("slim", synthesis, paths, synthesis.names)

    def _start(self, step: _SlimNode, number: int, weights: Iterable[str]) -> FittedStart:
        """The weight and bias of a linear operator at the end of a branch as what can be fitted."""
        cut, bias = step.cut, f"bias_{number}"
        assert cut is not None
        if self.config.weights == "own":
            return LastLayer.among(weights, f"weight_{number}", bias)
        terms = [Term(f"gain_{number}", start, cut.rows) for start in (0, cut.rows)]
        return ChannelTerms((*terms, *([Term(bias, 0, cut.rows)] if cut.bias else ())))

    def _width(self, site: Site) -> int:
        channels = int(site.input.meta["val"].shape[1])
        wanted = self.config.width or max(_LEAST, round(self.config.ratio * channels))
        return min(wanted, channels)

    def _steps(self, site: Site) -> list[_SlimNode]:
        """The nodes of the block that lead to its output, at their slim widths."""
        block = site.block
        site.require_split()
        given, made = site.require_one_stream()
        if given.ndim not in (3, 4, 5) or str(given.shape) != str(made.shape):
            raise Unfit(f"it turns {shown(given.shape)} into {shown(made.shape)}, and slim blocks are of pictures")
        if not isinstance(given.shape[1], int):
            raise Unfit("the channels of its stream are not along axis 1")
        planner = _Planner(site, self._width(site), synthesised=self.config.weights == "neighbours")
        for node in sorted(leading_to(digraph(block.nodes), [block.output])):
            planner.add(node)
        if planner.axes[block.output] != 1 or not any(step.linear for step in planner.steps):
            raise Unfit("the channels of its output are not along axis 1")
        return planner.steps


class _Planner:
    """Works out what each node of a block is where its stream has `width` channels, in program order."""

    def __init__(self, site: Site, width: int, *, synthesised: bool) -> None:
        self.site = site
        self.synthesised = synthesised
        self.part = width, int(site.input.meta["val"].shape[1])
        # The axis of the channels of each value that comes from the stream.
        self.axes = {site.input: 1}
        self.steps: list[_SlimNode] = []
        self.zero_init = {linear.node for linear in zero_init_operators(site)}
        self.constants: set[fx.Node] = set()

    def add(self, node: fx.Node) -> None:
        """Plan one more node."""
        feeders = _streamed(node, self.axes)
        if not feeders and all(f.op == "get_attr" or f in self.constants for f in node.all_input_nodes):
            # A transposed weight, say; whoever reads it decides.
            self.constants.add(node)
            return
        for feeder in node.all_input_nodes:
            if feeder not in self.axes and feeder not in self.constants and feeder.op != "get_attr":
                raise Unfit(f"{node.name} reads {feeder.name} from outside the block", node)
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            raise Unfit(f"{node.name} is no tensor", node)
        if any(value.ndim <= self.axes[feeder] for feeder in feeders):
            # A mean over channels or over everything, say, which is another number on fewer channels.
            raise Unfit(f"{node.name} has no axis for the channels of its stream", node)
        step = self._linear(node) or self._norm(node, feeders) or self._other(node, feeders, value)
        if (step.norm or step.scale) and node in self.site.split.spine:
            raise Unfit(f"its spine has parameters, in {node.name}", node)
        self.axes[node] = step.axis
        self.steps.append(step)

    def channels(self, node: fx.Node, axis: int) -> int:
        """The number of channels of the slim one of a value."""
        width, whole = self.part
        size = node.meta["val"].shape[axis]
        if not isinstance(size, int):
            raise Unfit(f"the number of channels of {node.name} is not fixed", node)
        return max(min(width, size), round(size * width / whole))

    def _linear(self, node: fx.Node) -> _SlimNode | None:
        linear = linear_operator_of(self.site.graph_module, node)
        if linear is None:
            return None
        axis = self.axes.get(linear.input)
        if linear.weight is None or axis is None:
            raise Unfit(f"the weight of {node.name} is of a kind a slim block cannot be made from", node)
        if axis != linear.axis % node.meta["val"].ndim:
            raise Unfit(f"{node.name} does not work along axis {axis}, where the channels of its stream would be", node)
        if linear.kind == "conv" and not linear.centred:
            raise Unfit(f"{node.name} is a convolution with a stride, or one that is not centred", node)
        before, after = self.channels(linear.input, axis), self.channels(node, axis)
        groups = self._groups(linear, before, after)
        cut = WeightCut(after, before // groups, linear.transposed, linear.bias, linear.node in self.zero_init)
        sizes = self.site.tensor(linear.weight).shape
        for path in self.site.counterpart_parameters(linear.weight) if self.synthesised else ():
            theirs = self.site.tensor(path).shape
            out, inner = (theirs[1], theirs[0]) if linear.transposed else theirs[:2]
            if theirs[2:] != sizes[2:] or out < cut.rows or inner < cut.columns:
                raise Unfit(f"{path} is {shown(theirs)}, too unlike its own {linear.weight}, {shown(sizes)}", node)
        return _SlimNode(node, axis, after, linear=linear, cut=cut, groups=groups)

    def _groups(self, linear: LinearOperator, before: int, after: int) -> int:
        """Groups of the slim convolution, each as large as those of the whole one."""
        if linear.groups == 1:
            return 1
        inputs, outputs = (
            int(node.meta["val"].shape[linear.axis]) // linear.groups for node in (linear.input, linear.node)
        )
        groups = before // inputs
        if groups < 1 or (groups * inputs, groups * outputs) != (before, after):
            raise Unfit(f"the groups of {linear.node.name} are too large for so few channels")
        return groups

    def _norm(self, node: fx.Node, feeders: Sequence[fx.Node]) -> _SlimNode | None:
        axis = self.axes[feeders[0]]
        ndim = node.meta["val"].ndim
        norm = norm_at(self.site.graph_module, node, [feeders[0].meta["val"].shape[axis]])
        if norm is None:
            return None
        if len(feeders) > 1 or (norm.kind in ("layer", "rms")) != (axis == ndim - 1):
            raise Unfit(f"{node.name} does not normalise the channels of the stream alone", node)
        return _SlimNode(node, axis, self.channels(node, axis), norm=norm)

    def _other(self, node: fx.Node, feeders: Sequence[fx.Node], value: Tensor) -> _SlimNode:
        gm, axes = self.site.graph_module, [self.axes[feeder] for feeder in feeders]
        first = feeders[0].meta["val"]
        alike = all(str(feeder.meta["val"].shape) == str(value.shape) for feeder in feeders)
        same = _SlimNode(node, axes[0], self.channels(feeders[0], axes[0]))
        if node.target in ADDITIONS and len(feeders) == len(node.args) == 2 and not node.kwargs:
            if alike and axes[0] == axes[1]:
                return same
        elif node.target in MULTIPLICATIONS and len(feeders) == 1:
            scale = next((a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"), None)
            if scale is not None and alike and _along(scale.meta["val"], axes[0], value):
                return _SlimNode(node, axes[0], same.channels, scale=str(scale.target))
        elif len(feeders) == 1 and len(node.all_input_nodes) == 1 and node.args[0] is feeders[0]:
            if alike and (is_activation(gm, node) or node.target in COPIES or has_no_state(gm, node)):
                return same
            order = _order(gm, node, first.ndim)
            if order is not None:
                return _SlimNode(node, order.index(axes[0]), same.channels)
        raise Unfit(f"what {node.name} does is not known at another width", node)


def _streamed(node: fx.Node, values: dict[fx.Node, int] | dict[fx.Node, fx.Node]) -> list[fx.Node]:
    """The arguments of a node that come from the stream; one that is given twice counts twice."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda n: found.append(n) if n in values else None)
    return found


def _along(scale: object, axis: int, value: Tensor) -> bool:
    """Tell whether a parameter has one number for each channel of a value."""
    if not isinstance(scale, Tensor):
        return False
    sizes: list[int | None] = [1] * value.ndim
    sizes[axis] = fixed_size(value.shape[axis])
    return [1] * (value.ndim - scale.ndim) + list(scale.shape) == sizes


def _order(gm: fx.GraphModule, node: fx.Node, ndim: int) -> tuple[int, ...] | None:
    """The axis of its argument that each axis of a permutation's result is; None where a node is none."""
    if not (node.target in PERMUTATIONS or has_no_state(gm, node)) or node.meta["val"].ndim != ndim:
        return None
    sizes = (2, 3, 5, 7, 11)[:ndim]
    probe = torch.empty(sizes, device="meta")
    try:
        module = called_module(gm, node)
        function: Any = node.target if module is None else share_tensors(module)
        made = function(probe, *node.args[1:], **node.kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    if not isinstance(made, Tensor) or sorted(made.shape) != sorted(sizes):
        return None
    return tuple(sizes.index(size) for size in made.shape)


def _scaled(site: Builder, step: _SlimNode, given: fx.Node, number: int) -> fx.Node:
    """The product with the first numbers of a layer scale, which are the surrogate's own from here on."""
    scale = site.tensor(str(step.scale))
    # Of one dimension, as gains are, and shaped where it is read.
    own = nn.ParameterList([nn.Parameter(scale.detach().flatten()[: step.channels].clone())])
    factor = site.parameter(f"{site.module(f'scale_{number}', own)}.0")
    if scale.ndim > 1:
        sizes = [1 if size == 1 else step.channels for size in scale.shape]
        factor = site.call(torch.ops.aten.reshape.default, factor, sizes)
    return site.call(torch.ops.aten.mul.Tensor, given, factor)
