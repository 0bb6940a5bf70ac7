"""`bottleneck`: the block's last branch becomes one thin layer made from units of the neighbours' branches.

RepL's computing layer (arXiv 2605.19533). A branch runs from entry operators (qkv, fc1, conv1) to exit operators
(proj, fc2, conv3). Its span becomes

    u = act(norm(W_in x + b_in))        r units
    u = depthwise(K, u)                 where the branch has a spatial kernel
    y = W_out u + b_out                 back to full width

    W_in[j]    = sum over neighbours of g_in[j]  * W_entry[j]
    W_out[:,j] = sum over neighbours of g_out[j] * W_exit[:, j]
    K[j]       = sum over neighbours of g_k[j]   * mean over inputs of W_spatial[j]

for j < r, so the layer blends the first r hidden units of both neighbours, unit by unit, each with gains g of its own.
Hidden units have no order, so the first ones are as good as any, and only r rows are read. Kernels are summed to 1x1.
Where a weight has groups, one row sees a part of the channels: there all its rows count, row i in unit i mod r.
Neighbours with other channel counts (similar repeats) give rows that are folded or repeated to the length needed. What
precedes the span (pre-norm, window partition) and what follows it (post-norm, layer scale, drop path) stays the
block's own, but for a batch norm right after it, which goes. Learned here: the gains g, the biases, and the norm at
width r. The branches before the last, such as attention, are dropped: a thin layer in place of attention made a small
vision transformer worse than no layer there.

g_in starts random, scaled so that a row of W_in is as long as in the removed block. g_out starts at zero: training
begins with the depth-pruned network. Begun at the removed block's scale, a thin layer ended below depth pruning
(docs/results.md). Where parameters follow the span (layer scale, post-norm), they set how it begins, and W_out starts
at the removed block's scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from repl_fx.finding.branches import Branch
from repl_fx.finding.linear_operators import LinearOperator
from repl_fx.graph.bridge import digraph, leading_to
from repl_fx.graph.captured import parameters_read
from repl_fx.graph.roles import CONVOLUTIONS
from repl_fx.surrogates.shared.activations import activation_function, find_activation
from repl_fx.surrogates.shared.branch_edits import by_span, starts_at_zero, without
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.fitted_starts import LastLayer
from repl_fx.surrogates.shared.norms import PreNorm, ThinNorm, find_norm, find_post_norm, find_pre_norm
from repl_fx.surrogates.shared.recompute import RecomputedBranch
from repl_fx.surrogates.shared.site import Site, Unfit, shown, unfit_is_refused
from repl_fx.surrogates.shared.surrogate import Match, Surrogate, Traits, check_thin_settings, register_surrogate
from repl_fx.surrogates.shared.synthesis import OwnWeights
from repl_fx.surrogates.shared.thin_layer import ThinShape, ThinSynthesis, WeightForm, thin_weights


@dataclass(frozen=True)
class BottleneckConfig:
    """Settings of `bottleneck`.

    Attributes:
        ratio: width r of the thin layer as a fraction of the branch's narrowest end.
        width: r itself; overrides `ratio`.
        train_neighbours: whether gradients flow into the neighbours' weights.
        weights: `neighbours` to make W_in, W_out and K from those of the neighbours, `own` for parameters of the same
            sizes: the control that synthesis is measured against.
    """

    ratio: float = 0.25
    width: int | None = None
    train_neighbours: bool = True
    weights: str = "neighbours"

    def __post_init__(self) -> None:
        check_thin_settings("bottleneck", self.ratio, "width", self.width, self.weights)


@dataclass(frozen=True)
class _Span:
    """A span that becomes a thin layer.

    Attributes:
        name: of the layer's modules.
        branch: the first branch of the span.
        width: r.
        layout: how positions move from the span's input to its output.
        spatial: the convolution whose kernel is kept, if any.
        norm, activation: inside the span; None where there is none.
        pre_norm: before the span; the layer takes it in where it can.
        post: the batch norm right behind the span, which goes.
        zero_init: whether W_out starts at zero.
    """

    name: str
    branch: Branch
    width: int
    layout: str
    spatial: tuple[LinearOperator, ...]
    norm: ThinNorm | None
    activation: fx.Node | None
    pre_norm: PreNorm
    post: fx.Node | None
    zero_init: bool

    @property
    def axes(self) -> tuple[int, int]:
        """The axes of channels in the span's input and output."""
        return self.branch.entries[0].axis, self.branch.exits[0].axis


@dataclass(frozen=True)
class BottleneckMatch(Match):
    """The spans of branches that become thin layers; of each other branch its addition, and what is left of that."""

    spans: tuple[_Span, ...]
    dropped: tuple[tuple[fx.Node, fx.Node], ...]


@register_surrogate("bottleneck", BottleneckConfig)
class Bottleneck(Surrogate[BottleneckConfig, BottleneckMatch]):
    """A thin layer in place of the block's last branch."""

    traits = Traits(reads_stream_alone=True, fills_buffers=True)

    @unfit_is_refused
    def match(self, site: Site) -> BottleneckMatch:
        """Refuse a block without spine and branches, or with a span a thin layer cannot stand for."""
        branches = site.require_split().branches
        _require_unread(site, branches)
        last = {branch.stream: branch for branch in branches}.values()
        # Nothing takes the place of all but the last of each streamed value.
        left = {branch: without(branch) for branch in branches if branch not in last}
        dropped = tuple((branch.join, passed) for branch, passed in left.items() if passed is not None)
        replaced = by_span(branch for branch in branches if left.get(branch) is None)
        spans = [self._span(site, span, f"branch_{branches.index(span[0])}") for span in replaced]
        return BottleneckMatch(tuple(spans), dropped)

    def build(self, site: Builder, match: BottleneckMatch) -> tuple[fx.Node, ...]:
        """Replace the span of each branch; spine, pre-norms and what follows the spans stay."""
        for span in match.spans:
            old = span.post or span.branch.output
            with site.before_node(old):
                new = self._thin_layer(site, span)
            site.replace(old, new)
        # After the thin layers, which may read what a dropped branch was added to.
        for join, passed in match.dropped:
            site.leave_out(join, passed)
        return site.block.outputs

    def _span(self, site: Site, branches: tuple[Branch, ...], name: str) -> _Span:
        branch = branches[0]
        layout = _layout(branch)
        gm = site.graph_module
        post = find_post_norm(gm, branch)
        spatial = tuple(_spatial(site, branch)) if branch.entries[0].kind == "conv" else ()
        norm, activation, pre_norm = find_norm(gm, branch), find_activation(gm, branch), find_pre_norm(gm, branch)
        zero_init = all(starts_at_zero(gm, one, post or one.output) for one in branches)
        return _Span(name, branch, self._width(branch), layout, spatial, norm, activation, pre_norm, post, zero_init)

    def _thin_layer(self, site: Builder, span: _Span) -> fx.Node:
        axis_in, axis_out = span.axes
        synthesis, paths = self._weights(site, span)
        parts = site.synthesised(span.name, synthesis, paths, synthesis.names)
        gains = "gain_out" if self.config.weights == "neighbours" else ""
        site.fitted(parts["weight_out"], LastLayer.among(parts, "weight_out", "bias_out", gains=gains))
        if span.axes == (-1, -1) and "kernel" not in parts and span.norm is None:
            return _lean(site, span, parts)
        value = _pointwise(site, span.branch.input, parts["weight_in"], parts.get("bias_in"), axis_in)
        if "kernel" in parts:
            value = site.mix(value, parts["kernel"], None, groups=span.width)
        value = _change_layout(site, value, span.layout)
        if span.norm is not None:
            value = span.norm.applied(site, f"{span.name}_norm", value, axis_out, next(synthesis.parameters()))
        if span.activation is not None:
            value = site.again(span.activation, value)
        return _pointwise(site, value, parts["weight_out"], parts.get("bias_out"), axis_out)

    def _weights(self, site: Site, span: _Span) -> tuple[ThinSynthesis | OwnWeights, list[str]]:
        """The synthesis of the thin layer's weights, and the parameters it reads."""
        branch, norm = span.branch, span.norm
        roles = {"entry": branch.entries, "exit": branch.exits, "kernel": span.spatial}
        operators = [(role, linear) for role, some in roles.items() for linear in some]
        removed = [site.tensor(str(linear.weight)) for _, linear in operators]
        bias_in = any(m.bias for m in branch.entries) and not (norm and norm.has_bias)
        bias_out = span.post is not None or any(m.bias for m in branch.exits)
        shape = ThinShape(span.width, bias_in, bias_out, span.zero_init)
        neighbours = () if self.config.weights == "own" else site.neighbours
        *given_forms, own_forms = (
            [_form(role, site.counterpart_operator(linear, block)) for role, linear in operators]
            for block in (*neighbours, site.block)
        )
        if not neighbours:
            return thin_weights(shape, own_forms, removed), []
        paths = [site.counterpart_parameter(str(m.weight), block) for block in neighbours for _, m in operators]
        given, train = [site.tensor(path) for path in paths], self.config.train_neighbours
        return ThinSynthesis(shape, [*given_forms, own_forms], given, removed, train_neighbours=train), paths

    def _width(self, branch: Branch) -> int:
        if self.config.width is not None:
            return self.config.width
        ends = [
            branch.input.meta["val"].shape[branch.entries[0].axis],
            branch.output.meta["val"].shape[branch.exits[0].axis],
        ]
        inner = sum(int(m.node.meta["val"].shape[m.axis]) for m in branch.entries)
        return max(1, round(self.config.ratio * min(*(int(end) for end in ends), inner)))


def _require_unread(site: Site, branches: Sequence[Branch]) -> None:
    """Refuse a block that reads weights of its branches beside them, as for a loss of their sizes."""
    inside = {node for branch in branches for node in branch.nodes}
    beside = leading_to(digraph(node for node in site.block.nodes if node not in inside), site.block.outputs)
    weights = {linear.weight for branch in branches for linear in branch.operators}
    for node in sorted(beside):
        if read := weights.intersection(parameters_read(site.graph_module, node)):
            raise Unfit(f"{min(map(str, read))} is read beside its branch too", node)


def _form(role: str, linear: LinearOperator) -> WeightForm:
    return WeightForm(role, linear.transposed, linear.groups)


def _spatial(site: Site, branch: Branch) -> list[LinearOperator]:
    """The first of the branch's convolutions with the largest kernel, if any is larger than 1.

    Only a centred one: another (causal, strided) would look at positions that the block must not see or does not have.
    """
    best: list[LinearOperator] = []
    largest = 1
    for linear in branch.operators:
        if not linear.centred or linear.weight is None:
            continue
        weight = linear.weight
        sizes, *others = (site.tensor(path).shape[2:] for path in (weight, *site.counterpart_parameters(weight)))
        if any(other != sizes for other in others):
            continue
        if max(sizes) > largest:
            best, largest = [linear], max(sizes)
    return best


def _layout(branch: Branch) -> str:
    """The way of positions from the input of a branch's span to its output; refuses spans unlike a thin layer."""
    for linear in (*branch.entries, *branch.exits):
        if linear.weight is None:
            raise Unfit(f"the weight of {linear.node.name} is of a kind a thin layer cannot be made from", linear.node)
    entry, end, root = branch.entries[0], branch.exits[0], branch.root
    if len({m.kind for m in branch.entries}) > 1 or len({m.kind for m in branch.exits}) > 1:
        raise Unfit(f"the branch that ends in {root.name} begins or ends in linear operators of several kinds", root)
    given, made = branch.input.meta.get("val"), branch.output.meta.get("val")
    if not isinstance(given, Tensor) or not isinstance(made, Tensor):
        raise Unfit(f"the span of {root.name} has no tensor at one end", root)
    change = _layout_change(given, made, entry.axis, end.axis)
    if change is None:
        span = f"the span from {branch.input.name} to {branch.output.name}"
        raise Unfit(f"{span} turns {shown(given.shape)} into {shown(made.shape)}", branch.output)
    return change


def _lean(site: Builder, span: _Span, parts: dict[str, fx.Node]) -> fx.Node:
    """A thin layer on tokens, together with the norm before it, which gives its scale and shift to W_in and b_in."""
    norm = span.pre_norm
    weight, bias = norm.taken_in(site, parts["weight_in"], parts.get("bias_in"))
    function = None if span.activation is None else activation_function(site.graph_module, span.activation)
    path = site.module(f"{span.name}_lean", RecomputedBranch(norm.kind, norm.eps, function))
    return site.call_module(path, norm.input, weight, parts["weight_out"], bias, parts.get("bias_out"))


def _without(tensor: Tensor, axis: int) -> list[str]:
    sizes = [str(size) for size in tensor.shape]
    del sizes[axis]
    return sizes


def _layout_change(given: Tensor, made: Tensor, axis_in: int, axis_out: int) -> str | None:
    """The way of positions from the span's input to its output; None where they do not correspond."""
    same_positions = _without(given, axis_in) == _without(made, axis_out)
    if same_positions and axis_in == axis_out:
        return "none"
    if same_positions and given.ndim > 2:
        return "channels last" if axis_in == 1 else "channels first"
    if axis_in == 1 and axis_out == -1 and made.ndim == 3 and given.ndim > 3:
        positions = math.prod(int(s) for s in given.shape[2:])
        if str(given.shape[0]) == str(made.shape[0]) and str(made.shape[1]) == str(positions):
            return "flatten"
    return None


def _change_layout(site: Builder, value: fx.Node, change: str) -> fx.Node:
    if change == "channels last":
        return site.call(torch.ops.aten.movedim.int, value, 1, -1)
    if change == "channels first":
        return site.call(torch.ops.aten.movedim.int, value, -1, 1)
    if change == "flatten":
        return site.call(torch.ops.aten.transpose.int, site.call(torch.ops.aten.flatten.using_ints, value, 2), 1, 2)
    return value


def _pointwise(site: Builder, value: fx.Node, weight: fx.Node, bias: fx.Node | None, axis: int) -> fx.Node:
    spatial = value.meta["val"].ndim - 2
    if axis == -1 or spatial not in CONVOLUTIONS:
        return site.mix(value, weight, bias)
    return site.mix(value, site.call(_as_kernel, weight, spatial), bias)


def _as_kernel(weight: Tensor, spatial: int) -> Tensor:
    """A matrix as a kernel of size 1."""
    return weight.reshape(*weight.shape, *[1] * spatial)
