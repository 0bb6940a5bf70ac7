"""`reuse`: the block's attention becomes a few heads that mix thin values by the attention map of the block before.

    n = norm(x)                                                   the block's own pre-norm
    y = W_out concat over heads h of (A_h (W_values n + b_values)_h) + b_out

    W_values[j] = sum over neighbours of g[j] * W_value[j]        rows j of the heads h, in both neighbours

A_h is what head h of the kept block before attends to, as it is there: a mask, rotary positions and relative biases are
in it, and nothing is computed or kept for it again. So the layer costs its thin values alone, 2 d r for each position
with r channels in all its heads, and still mixes positions, which the kept blocks have fewer layers to do now. Learned
here: the gains g, W_out, and the biases. The block's other branches, such as its MLP, are dropped.

Both parts were measured (docs/results.md): a W_out that is made from the neighbours' too adds nothing to depth pruning;
values of weights of their own (`weights=own`, the control) are no better than values from the neighbours' weights.
Attention maps of neighbouring layers are alike, and have been shared without surrogates (LazyFormer, arXiv 2102.12702;
Xiao et al., arXiv 1906.11024).

W_out starts at zero: training begins with the depth-pruned network. Where parameters follow the branch (layer scale,
post-norm), they set how it begins, and W_out starts at random, as long as the weight it replaces.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx.analysis.attention import (
    Attention,
    distinct_heads,
    find_attention,
    gives_positions_in_order,
    product_settings,
)
from repl_fx.analysis.branches import Branch
from repl_fx.graph.decisions import is_choice
from repl_fx.surrogates.shared.branch_edits import starts_at_zero, without
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.initialisation import length, random_values
from repl_fx.surrogates.shared.norms import PreNorm, find_pre_norm, without_norm
from repl_fx.surrogates.shared.recompute import MapForm, RecomputedAttention
from repl_fx.surrogates.shared.registry import Match, Surrogate, check_thin_settings, register_surrogate
from repl_fx.surrogates.shared.site import Site, Unfit, unfit_is_refused
from repl_fx.surrogates.shared.synthesis import BlendingSynthesis
from repl_fx.surrogates.shared.weight_slices import SliceBlend, WeightSlice

# What a synthesis of values returns behind them, in order; the biases where there are any.
_BESIDE_VALUES = ("weight_out", "bias_values", "bias_out")


@dataclass(frozen=True)
class ReuseConfig:
    """Settings of `reuse`.

    Attributes:
        ratio: share of the attention's heads that are kept, at least one.
        heads: how many; overrides `ratio`.
        train_neighbours: whether gradients flow into the neighbours' weights.
        weights: `neighbours` to make W_values from those of the neighbours, `own` for parameters of the same size: the
            control that synthesis is measured against.
    """

    ratio: float = 0.125
    heads: int | None = None
    train_neighbours: bool = True
    weights: str = "neighbours"

    def __post_init__(self) -> None:
        check_thin_settings("reuse", self.ratio, "heads", self.heads, self.weights)


@dataclass(frozen=True)
class _Mixing:
    """A branch that becomes a few heads of thin values.

    Attributes:
        name: of the modules.
        branch: the branch.
        attention: its own.
        core: the counterpart of `attention.core` in the block before.
        heads: which heads of the values.
        pre_norm: the norm before the branch's span; None where there is none.
        zero_init: whether W_out starts at zero.
    """

    name: str
    branch: Branch
    attention: Attention
    core: fx.Node
    heads: tuple[int, ...]
    pre_norm: PreNorm | None
    zero_init: bool


@dataclass(frozen=True)
class ReuseMatch(Match):
    """The branches of a block that keep an attention, and those that go.

    Attributes:
        mixings: the former.
        dropped: the addition of each of the latter, and what is left of it.
    """

    mixings: tuple[_Mixing, ...]
    dropped: tuple[tuple[fx.Node, fx.Node], ...]


@register_surrogate("reuse", ReuseConfig)
class Reuse(Surrogate[ReuseConfig, ReuseMatch]):
    """Thin values, mixed by the attention map of the block before."""

    @unfit_is_refused
    def match(self, site: Site) -> ReuseMatch:
        """Refuse a block without self-attention of a known form, and neighbours of another size."""
        found = _find(site)
        skip = next((node for node in site.before.nodes if is_choice(node)), None)
        if skip is not None:
            raise Unfit(f"{site.before.name} may be skipped in training, and its attention map with it", skip)
        for attention in found.values():
            _require_own_map(attention)
        for attention in found.values():
            _require_like_neighbours(site, attention)
        left = {branch: without(branch) for branch in site.split.branches if branch not in found}
        for branch, passed in left.items():
            if passed is None:
                raise Unfit(f"the branch that ends in {branch.root.name} cannot be left out", branch.root)
        mixings = [self._mixing(site, *item, f"branch_{number}") for number, item in enumerate(found.items())]
        dropped = tuple((branch.join, passed) for branch, passed in left.items() if passed is not None)
        return ReuseMatch(tuple(mixings), dropped)

    def build(self, site: Builder, match: ReuseMatch) -> tuple[fx.Node, ...]:
        """Replace the span of each attention; drop the other branches."""
        for mixing in match.mixings:
            with site.before_node(mixing.branch.output):
                new = self._mixed(site, mixing)
            site.replace(mixing.branch.output, new)
        for join, passed in match.dropped:
            site.replace(join, passed)
        return site.block.outputs

    def _mixing(self, site: Site, branch: Branch, attention: Attention, name: str) -> _Mixing:
        gm = site.graph_module
        count = self.config.heads or max(1, round(self.config.ratio * len(attention.units)))
        heads = tuple(islice(distinct_heads(attention), count))
        core = site.counterpart(attention.core, site.before)
        zero_init = starts_at_zero(gm, branch, branch.output)
        return _Mixing(name, branch, attention, core, heads, find_pre_norm(gm, branch), zero_init)

    def _mixed(self, site: Builder, mixing: _Mixing) -> fx.Node:
        branch, attention, heads = mixing.branch, mixing.attention, mixing.heads
        synthesis, paths = self._weights(site, mixing)
        made = site.synthesise(mixing.name, synthesis, *(site.parameter(path) for path in paths))
        parts = {part: site.call(operator.getitem, made, i) for i, part in enumerate(synthesis.names)}
        values = parts["weight_values"], parts.get("bias_values")
        value, kind, eps, weight, bias = without_norm(site, branch.input, mixing.pre_norm, *values)
        settings: dict[str, Any] = {"scaled": attention.scaled, "batch_first": attention.batch_first}
        dims = branch.output.meta["val"].ndim
        settings["dims"] = None if dims == branch.input.meta["val"].ndim else dims
        if attention.scaled:
            product = product_settings(mixing.core)
            given = _scaled_product(site, product, heads)
            settings |= {"causal": bool(product["is_causal"]), "scale": product["scale"]}
        else:
            given = (_some_heads(site, _node(mixing.core.args[0]), heads),)
        module = RecomputedAttention(kind, eps, len(heads), MapForm(**settings))
        path = site.module(f"{mixing.name}_reuse", module)
        return site.call_module(path, value, weight, parts["weight_out"], bias, parts.get("bias_out"), *given)

    def _weights(self, site: Site, mixing: _Mixing) -> tuple[ValueSynthesis, list[str]]:
        """The synthesis of the weights, and the parameters it reads."""
        branch, linear = mixing.branch, mixing.attention.linear
        units = [unit for head in mixing.heads for unit in mixing.attention.units[head]]
        weight = str(linear.weight)
        free = self.config.weights == "own"
        exits = [site.tensor(str(m.weight)) for m in branch.exits if m.weight is not None]
        synthesis = ValueSynthesis(
            site.tensor(weight),
            units,
            1 if linear.transposed else 0,
            ValueForm(
                int(branch.output.meta["val"].shape[-1]),
                0.0 if mixing.zero_init else length(exits),
                free,
                linear.bias,
                any(m.bias for m in branch.exits),
            ),
            train_neighbours=self.config.train_neighbours,
        )
        return synthesis, [] if free else list(site.counterpart_parameters(weight))


@dataclass(frozen=True)
class ValueForm:
    """The weights beside the values of a few heads.

    Attributes:
        features: what W_out maps to.
        begin: Frobenius norm of W_out at the start; 0 for zeros.
        free: whether W_values is a parameter too; else it is synthesised.
        bias_values, bias_out: whether the layer adds biases.
    """

    features: int
    begin: float
    free: bool
    bias_values: bool
    bias_out: bool


class ValueSynthesis(BlendingSynthesis):
    """W_values and biases of a few heads, from the neighbours' weights, and a W_out of its own.

    Args:
        weight: the weight that makes the removed block's values; it gives the scale.
        units: which of its output units the heads are made of, r of them.
        axis: the axis of output units.
        form: the other weights.
        train_neighbours: see `Synthesis`.
    """

    def __init__(
        self, weight: Tensor, units: Sequence[int], axis: int, form: ValueForm, *, train_neighbours: bool
    ) -> None:
        super().__init__(train_neighbours)
        self.runs, self.axis = _runs(units, axis), axis
        count = len(units)
        taken = torch.cat([run.of(weight.detach()) for run in self.runs], axis)
        rows = taken.t() if axis else taken
        if form.free:
            self.weight_values: nn.Parameter | None = random_values(rows, count, rows.shape[1])
            self.register_parameter("gain", None)
        else:
            self.register_parameter("weight_values", None)
            # Of two rows that are independent the sum is longer by the root of two.
            self.gain = nn.Parameter(rows.new_full((2, count), math.sqrt(0.5)))
        self.weight_out = random_values(rows, form.features, count)
        self.bias_values = nn.Parameter(rows.new_zeros(count)) if form.bias_values else None
        self.bias_out = nn.Parameter(rows.new_zeros(form.features)) if form.bias_out else None
        if not weight.is_meta:
            with torch.no_grad():
                self.weight_out.mul_(form.begin / length([self.weight_out]) if form.begin else 0.0)
                if self.weight_values is not None:
                    self.weight_values.mul_(length([rows]) / length([self.weight_values]))

    @property
    def names(self) -> tuple[str, ...]:
        """The weights that `synthesise` returns, in order."""
        return ("weight_values", *(name for name in _BESIDE_VALUES if getattr(self, name) is not None))

    def blends(self, state: Mapping[str, Tensor], weights: Sequence[Tensor]) -> list[SliceBlend]:
        """One for each run of units that follow each other in the weight."""
        if not weights:
            return []
        given = tuple(self.given(weight) for weight in weights)
        gains = torch.split(state["gain"], [run.count for run in self.runs], 1)
        return [SliceBlend(run, (gain,), given) for run, gain in zip(self.runs, gains, strict=True)]

    def finish(self, state: Mapping[str, Tensor], blended: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        """W_values (r, d), W_out (features, r) and the biases."""
        if not blended:
            values = state["weight_values"]
        else:
            joined = blended[0] if len(blended) == 1 else torch.cat(list(blended), self.axis)
            values = joined.t() if self.axis else joined
        return (values, *(state[name] for name in _BESIDE_VALUES if name in state))


def _runs(units: Sequence[int], axis: int) -> tuple[WeightSlice, ...]:
    """Units as runs that follow each other."""
    starts = [i for i, unit in enumerate(units) if i == 0 or unit != units[i - 1] + 1]
    return tuple(WeightSlice(axis, units[a], b - a) for a, b in pairwise([*starts, len(units)]))


def _find(site: Site) -> dict[Branch, Attention]:
    """The branches with attention over their own positions.

    Raises:
        Unfit: the block has no such branch.
    """
    found, reasons = {}, []
    for branch in site.require_split().branches:
        attention = find_attention(branch)
        if isinstance(attention, str):
            reasons.append(Unfit(attention, branch.root))
        elif branch.exits[0].kind == "linear" and gives_positions_in_order(branch, attention):
            found[branch] = attention
        else:
            made = branch.output
            reasons.append(Unfit(f"{made.name} does not have the positions of {branch.input.name}", made))
    if not found:
        raise reasons[0]
    return found


def _require_like_neighbours(site: Site, attention: Attention) -> None:
    weight, core = str(attention.linear.weight), attention.core
    for path in site.counterpart_parameters(weight):
        if site.tensor(path).shape != site.tensor(weight).shape:
            raise Unfit(f"{path} is of another size than its own {weight}", attention.linear.node)
    before = site.counterpart(core, site.before)
    for ours, theirs in zip(_tensors(core), _tensors(before), strict=True):
        if str(ours.meta["val"].shape) != str(theirs.meta["val"].shape):
            raise Unfit(f"{theirs.name} is of another size than its own {ours.name}", core)


def _require_own_map(attention: Attention) -> None:
    """Refuse a map that all examples or heads share: the layer counts on one for each."""
    core = attention.core
    made = core.meta["val"].shape
    # Of queries and keys the heads may be others than those of the values.
    same = made[:1] if attention.scaled else made[:2]
    for node in core.args[: 2 if attention.scaled else 1]:
        value = _node(node).meta["val"]
        if value.ndim != len(made) or str(value.shape[: len(same)]) != str(same):
            raise Unfit(f"{core.name} has one attention map for several examples or heads", core)


def _scaled_product(site: Builder, settings: Mapping[str, object], heads: Sequence[int]) -> tuple[object, ...]:
    """Queries, keys, mask and dropout of some heads of the values."""
    queries, keys, values, mask = (settings[name] for name in ("query", "key", "value", "attn_mask"))
    # Several heads of queries may share one of keys and values; the first of each is taken.
    shared = _count(_node(queries)) // _count(_node(values))
    asking = [head * shared for head in heads]
    if isinstance(mask, fx.Node) and mask.meta["val"].ndim > 2 and str(mask.meta["val"].shape[-3]) != "1":
        mask = _some_heads(site, mask, asking)
    return (
        _some_heads(site, _node(queries), asking),
        _some_heads(site, _node(keys), heads),
        mask,
        settings["dropout_p"],
    )


def _node(value: object) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def _count(node: fx.Node) -> int:
    return int(node.meta["val"].shape[1])


def _some_heads(site: Builder, value: fx.Node, heads: Sequence[int]) -> fx.Node:
    """Some heads of (…, heads, positions, c): a view, where they lie at even distances."""
    step = heads[1] - heads[0] if len(heads) > 1 else 1
    before = [slice(None)] * (value.meta["val"].ndim - 3)
    if list(heads) == list(range(heads[0], heads[-1] + 1, step)):
        return site.call(operator.getitem, value, (*before, slice(heads[0], heads[-1] + 1, step)))
    return site.call(operator.getitem, value, (*before, list(heads)))


def _tensors(core: fx.Node) -> list[fx.Node]:
    return [node for node in core.all_input_nodes if isinstance(node.meta.get("val"), Tensor)]
