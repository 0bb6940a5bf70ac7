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
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repl_fx.analysis.blocks import Block
from repl_fx.analysis.branches import Branch
from repl_fx.analysis.linear_operators import CONVOLUTIONS, LinearOperator
from repl_fx.surrogates.shared.activations import Activation, find_activation
from repl_fx.surrogates.shared.branch_edits import drop_branches, outputs_after, starts_at_zero, without
from repl_fx.surrogates.shared.norms import ThinNorm, find_norm, find_post_norm, without_norm
from repl_fx.surrogates.shared.recompute import LeanBranch
from repl_fx.surrogates.shared.registry import Surrogate, check_thin_settings, register_surrogate
from repl_fx.surrogates.shared.site import Site, shown
from repl_fx.surrogates.shared.thin_layer import ThinForms, ThinSynthesis, ThinWeights, WeightForm


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


@register_surrogate("bottleneck", BottleneckConfig)
class Bottleneck(Surrogate[BottleneckConfig]):
    """A thin layer in place of the block's last branch."""

    def refuse(self, site: Site) -> str | None:
        """Refuse a block without spine and branches, or with a span a thin layer cannot stand for."""
        if site.split.reason:
            return site.split.reason
        dropped = _dropped(site)
        return next(filter(None, (_refuse_span(b) for b in site.split.branches if b not in dropped)), None)

    def build(self, site: Site) -> tuple[fx.Node, ...]:
        """Replace the span of each branch; spine, pre-norms and what follows the spans stay."""
        dropped = _dropped(site)
        made: list[tuple[fx.Node, fx.Node]] = []
        for number, branch in enumerate(site.split.branches):
            if branch in dropped:
                continue
            post = find_post_norm(site.graph_module, branch)
            old = branch.output if post is None else post
            with site.before_node(old):
                new = self._thin_layer(site, branch, post, f"branch_{number}")
            old.replace_all_uses_with(new)
            made.append((old, new))
        # After the thin layers, which may read what a dropped branch was added to.
        made += drop_branches(dropped)
        return outputs_after(site.block, made)

    def _thin_layer(self, site: Site, branch: Branch, post: fx.Node | None, name: str) -> fx.Node:
        gm = site.graph_module
        entry, end = branch.entries[0], branch.exits[0]
        norm = find_norm(gm, branch)
        activation = find_activation(gm, branch)
        spatial = _spatial(site, branch) if entry.kind == "conv" else []
        synthesis, paths = self._weights(site, branch, spatial, norm, post)
        made = site.synthesise(name, synthesis, *(site.parameter(path) for path in paths))
        parts = {part: site.call(operator.getitem, made, i) for i, part in enumerate(synthesis.names)}
        if (entry.axis, end.axis) == (-1, -1) and "kernel" not in parts and norm is None:
            return _lean(site, branch, parts, activation, name)
        value = _pointwise(site, branch.input, parts["weight_in"], parts.get("bias_in"), entry.axis)
        if "kernel" in parts:
            value = _depthwise(site, value, parts["kernel"])
        value = _change_layout(site, value, entry.axis, end.axis, branch.output)
        if norm is not None:
            value = _normalised(site, value, norm, name, synthesis, end.axis)
        if activation is not None:
            value = activation.emit(site, value)
        return _pointwise(site, value, parts["weight_out"], parts.get("bias_out"), end.axis)

    def _weights(
        self, site: Site, branch: Branch, spatial: Sequence[LinearOperator], norm: ThinNorm | None, post: fx.Node | None
    ) -> tuple[ThinSynthesis | ThinWeights, list[str]]:
        """The synthesis of the thin layer's weights, and the parameters it reads."""
        operators = (*branch.entries, *branch.exits, *spatial)
        own = [site.tensor(str(linear.weight)) for linear in operators]
        width = self._width(branch)
        bias_in = any(m.bias for m in branch.entries) and not (norm and norm.has_bias)
        bias_out = post is not None or any(m.bias for m in branch.exits)
        silent = starts_at_zero(site.graph_module, branch, branch.output if post is None else post)
        form = _forms(site, branch, spatial, None)
        if self.config.weights == "own":
            return ThinWeights(width, form, own, bias_in=bias_in, bias_out=bias_out, silent=silent), []
        paths = [site.counterpart_parameter(str(m.weight), block) for block in site.neighbours for m in operators]
        synthesis = ThinSynthesis(
            width,
            (*(_forms(site, branch, spatial, block) for block in site.neighbours), form),
            [site.tensor(path) for path in paths],
            own,
            bias_in=bias_in,
            bias_out=bias_out,
            silent=silent,
            train_neighbours=self.config.train_neighbours,
        )
        return synthesis, paths

    def _width(self, branch: Branch) -> int:
        if self.config.width is not None:
            return self.config.width
        ends = [
            branch.input.meta["val"].shape[branch.entries[0].axis],
            branch.output.meta["val"].shape[branch.exits[0].axis],
        ]
        inner = sum(int(m.node.meta["val"].shape[m.axis]) for m in branch.entries)
        return max(1, round(self.config.ratio * min(*(int(end) for end in ends), inner)))


def _dropped(site: Site) -> list[Branch]:
    """The branches that nothing takes the place of: all but the last of each streamed value."""
    last = {branch.stream: branch for branch in site.split.branches}.values()
    return [branch for branch in site.split.branches if branch not in last and without(branch) is not None]


def _forms(site: Site, branch: Branch, spatial: Sequence[LinearOperator], block: Block | None) -> ThinForms:
    """The layouts of the weights a thin layer is made from, in the removed block or in a neighbour."""

    def layouts(operators: Sequence[LinearOperator]) -> tuple[WeightForm, ...]:
        there = operators if block is None else [site.counterpart_operator(linear, block) for linear in operators]
        return tuple(WeightForm(linear.transposed, linear.groups) for linear in there)

    return ThinForms(layouts(branch.entries), layouts(branch.exits), layouts(spatial))


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


def _refuse_span(branch: Branch) -> str | None:
    for linear in (*branch.entries, *branch.exits):
        if linear.weight is None:
            return f"the weight of {linear.node.name} is of a kind a thin layer cannot be made from"
    entry, end = branch.entries[0], branch.exits[0]
    if len({m.kind for m in branch.entries}) > 1 or len({m.kind for m in branch.exits}) > 1:
        return f"the branch that ends in {branch.root.name} begins or ends in linear operators of several kinds"
    given, made = branch.input.meta.get("val"), branch.output.meta.get("val")
    if not isinstance(given, Tensor) or not isinstance(made, Tensor):
        return f"the span of {branch.root.name} has no tensor at one end"
    if _layout_change(given, made, entry.axis, end.axis) is None:
        span = f"the span from {branch.input.name} to {branch.output.name}"
        return f"{span} turns {shown(given.shape)} into {shown(made.shape)}"
    return None


def _lean(site: Site, branch: Branch, parts: dict[str, fx.Node], activation: Activation | None, name: str) -> fx.Node:
    """A thin layer on tokens, together with the norm before it, which gives its scale and shift to W_in and b_in."""
    value, kind, eps, weight, bias = without_norm(site, branch, parts["weight_in"], parts.get("bias_in"))
    function = None if activation is None else activation.function(site.graph_module)
    path = site.module(f"{name}_lean", LeanBranch(kind, eps, function))
    return site.call_module(path, value, weight, parts["weight_out"], bias, parts.get("bias_out"))


def _without(tensor: Tensor, axis: int) -> list[str]:
    sizes = [str(size) for size in tensor.shape]
    del sizes[axis]
    return sizes


def _layout_change(given: Tensor, made: Tensor, axis_in: int, axis_out: int) -> str | None:
    """How positions move from the span's input to its output; None where they do not correspond."""
    if axis_in == axis_out and _without(given, axis_in) == _without(made, axis_out):
        return "none"
    if given.ndim == made.ndim and given.ndim > 2 and _without(given, axis_in) == _without(made, axis_out):
        return "channels last" if axis_in == 1 else "channels first"
    if axis_in == 1 and axis_out == -1 and made.ndim == 3 and given.ndim > 3:
        positions = math.prod(int(s) for s in given.shape[2:])
        if str(given.shape[0]) == str(made.shape[0]) and str(made.shape[1]) == str(positions):
            return "flatten"
    return None


def _change_layout(site: Site, value: fx.Node, axis_in: int, axis_out: int, like: fx.Node) -> fx.Node:
    change = _layout_change(value.meta["val"], like.meta["val"], axis_in, axis_out)
    if change == "channels last":
        return site.call(torch.movedim, value, 1, -1)
    if change == "channels first":
        return site.call(torch.movedim, value, -1, 1)
    if change == "flatten":
        return site.call(torch.transpose, site.call(torch.flatten, value, 2), 1, 2)
    return value


def _pointwise(site: Site, value: fx.Node, weight: fx.Node, bias: fx.Node | None, axis: int) -> fx.Node:
    if axis == -1:
        return site.call(F.linear, value, weight, bias)
    spatial = value.meta["val"].ndim - 2
    if spatial not in CONVOLUTIONS:
        return site.call(F.linear, value, weight, bias)
    shaped = site.call(_as_kernel, weight, spatial)
    return site.call(CONVOLUTIONS[spatial], value, shaped, bias)


def _as_kernel(weight: Tensor, spatial: int) -> Tensor:
    """A matrix as a kernel of size 1."""
    return weight.reshape(*weight.shape, *[1] * spatial)


def _depthwise(site: Site, value: fx.Node, kernel: fx.Node) -> fx.Node:
    sizes = kernel.meta["val"].shape[2:]
    padding = [int(size) // 2 for size in sizes]
    ones = [1] * len(sizes)
    return site.call(
        CONVOLUTIONS[len(sizes)], value, kernel, None, ones, padding, ones, int(kernel.meta["val"].shape[0])
    )


def _normalised(
    site: Site, value: fx.Node, norm: ThinNorm, name: str, synthesis: ThinSynthesis | ThinWeights, axis: int
) -> fx.Node:
    module: nn.Module = norm.make(synthesis.width, axis, value.meta["val"].ndim)
    like = next(synthesis.parameters())
    module = module.to(dtype=like.dtype, device=like.device)
    return site.call_module(site.module(f"{name}_norm", module), value)
