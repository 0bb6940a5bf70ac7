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

from repl_fx.finding.attention import (
    Attention,
    distinct_heads,
    find_attention,
    gives_positions_in_order,
    product_settings,
)
from repl_fx.finding.branches import Branch
from repl_fx.graph.decisions import is_choice
from repl_fx.surrogates.shared.borrowed_maps import BORROWS, BorrowedMap, Heads, selection
from repl_fx.surrogates.shared.branch_edits import by_span, starts_at_zero, without
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.fitted_starts import LastLayer
from repl_fx.surrogates.shared.norms import PreNorm, find_pre_norm
from repl_fx.surrogates.shared.recompute import MapForm, RecomputedAttention
from repl_fx.surrogates.shared.site import Site, Unfit, unfit_is_refused
from repl_fx.surrogates.shared.surrogate import Match, Surrogate, Traits, check_thin_settings, register_surrogate
from repl_fx.surrogates.shared.synthesis import BlendingSynthesis, OwnWeights, length, random_values
from repl_fx.surrogates.shared.weight_slices import SliceBlend, WeightSlice


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
    """A span that becomes a few heads of thin values.

    Attributes:
        name: of the modules.
        branch: the first branch of the span.
        core: the counterpart of `attention.core` in the block before.
        heads: which heads of the values.
        pre_norm: the norm before the branch's span.
        zero_init: whether W_out starts at zero.
    """

    name: str
    branch: Branch
    attention: Attention
    core: fx.Node
    heads: tuple[int, ...]
    pre_norm: PreNorm
    zero_init: bool


@dataclass(frozen=True)
class ReuseMatch(Match):
    """The branches of a block that keep an attention; of each other its addition, and what is left of that."""

    mixings: tuple[_Mixing, ...]
    dropped: tuple[tuple[fx.Node, fx.Node], ...]


@register_surrogate("reuse", ReuseConfig)
class Reuse(Surrogate[ReuseConfig, ReuseMatch]):
    """Thin values, mixed by the attention map of the block before."""

    traits = Traits(reads_stream_alone=True)

    def made_from(self, before: str, after: str) -> tuple[str, ...]:
        """See `Surrogate`; the map is that of the block before, whatever the values are made from."""
        return super().made_from(before, after) or (before,)

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
        spans = enumerate(by_span(found))
        mixings = [self._mixing(site, span, found[span[0]], f"branch_{number}") for number, span in spans]
        dropped = tuple((branch.join, passed) for branch, passed in left.items() if passed is not None)
        return ReuseMatch(tuple(mixings), dropped)

    def build(self, site: Builder, match: ReuseMatch) -> tuple[fx.Node, ...]:
        """Replace the span of each attention; drop the other branches."""
        for mixing in match.mixings:
            with site.before_node(mixing.branch.output):
                new = self._mixed(site, mixing)
            site.replace(mixing.branch.output, new)
        for join, passed in match.dropped:
            site.leave_out(join, passed)
        return site.block.outputs

    def _mixing(self, site: Site, span: tuple[Branch, ...], attention: Attention, name: str) -> _Mixing:
        gm, branch = site.graph_module, span[0]
        count = self.config.heads or max(1, round(self.config.ratio * len(attention.units)))
        heads = tuple(islice(distinct_heads(attention), count))
        core = site.counterpart(attention.core, site.before)
        zero_init = all(starts_at_zero(gm, one, one.output) for one in span)
        return _Mixing(name, branch, attention, core, heads, find_pre_norm(gm, branch), zero_init)

    def _mixed(self, site: Builder, mixing: _Mixing) -> fx.Node:
        branch, attention, heads = mixing.branch, mixing.attention, mixing.heads
        synthesis, paths = self._weights(site, mixing)
        parts = site.synthesised(mixing.name, synthesis, paths, synthesis.names)
        site.fitted(parts["weight_out"], LastLayer.among(parts, "weight_out", "bias_out"))
        norm = mixing.pre_norm
        weight, bias = norm.taken_in(site, parts["weight_values"], parts.get("bias_values"))
        source = _borrowed(mixing)
        settings: dict[str, Any] = {"scaled": attention.scaled, "batch_first": attention.batch_first}
        dims = branch.output.meta["val"].ndim
        settings["dims"] = None if dims == branch.input.meta["val"].ndim else dims
        if attention.scaled:
            product = product_settings(mixing.core.args, mixing.core.kwargs)
            given = _scaled_product(site, product, heads, source.queries.chosen)
            settings |= {"causal": bool(product["is_causal"]), "scale": product["scale"]}
        else:
            given = (_some_heads(site, _node(mixing.core.args[0]), heads),)
        module = RecomputedAttention(norm.kind, norm.eps, len(heads), MapForm(**settings))
        path = site.module(f"{mixing.name}_reuse", module)
        made = site.call_module(path, norm.input, weight, parts["weight_out"], bias, parts.get("bias_out"), *given)
        BORROWS.put(made, source)
        return made

    def _weights(self, site: Site, mixing: _Mixing) -> tuple[ValueSynthesis | OwnWeights, tuple[str, ...]]:
        """The synthesis of the weights, and the parameters it reads."""
        branch, linear = mixing.branch, mixing.attention.linear
        units = [unit for head in mixing.heads for unit in mixing.attention.units[head]]
        weight = str(linear.weight)
        exits = [site.tensor(str(m.weight)) for m in branch.exits if m.weight is not None]
        features, begin = int(branch.output.meta["val"].shape[-1]), 0.0 if mixing.zero_init else length(exits)
        form = ValueForm(features, begin, linear.bias, any(m.bias for m in branch.exits))
        runs = _runs(units, 1 if linear.transposed else 0)
        if self.config.weights == "own":
            return value_weights(site.tensor(weight), runs, form), ()
        synthesis = ValueSynthesis(site.tensor(weight), runs, form, train_neighbours=self.config.train_neighbours)
        return synthesis, site.counterpart_parameters(weight)


@dataclass(frozen=True)
class ValueForm:
    """The weights beside the values of a few heads.

    Attributes:
        features: what W_out maps to.
        begin: Frobenius norm of W_out at the start; 0 for zeros.
        bias_values, bias_out: whether the layer adds biases.
    """

    features: int
    begin: float
    bias_values: bool
    bias_out: bool

    @torch.no_grad()
    def weights(self, rows: Tensor) -> dict[str, Tensor]:
        """W_out and the biases at the start, by name, for values that `rows` make."""
        count = len(rows)
        weight_out = random_values(rows, self.features, count)
        if not rows.is_meta:
            weight_out.mul_(self.begin / length([weight_out]) if self.begin else 0.0)
        sizes = {"bias_values": count if self.bias_values else 0, "bias_out": self.features if self.bias_out else 0}
        return {"weight_out": weight_out} | {name: rows.new_zeros(size) for name, size in sizes.items() if size}


class ValueSynthesis(BlendingSynthesis):
    """W_values and biases of a few heads, from the neighbours' weights, and a W_out of its own.

    Args:
        weight: the weight that makes the removed block's values; it gives the scale.
        runs: which of its output units the heads are made of, r of them.
        form: the other weights.
        train_neighbours: see `Synthesis`.
    """

    weight_out: Tensor
    bias_values: Tensor
    bias_out: Tensor

    def __init__(self, weight: Tensor, runs: Sequence[WeightSlice], form: ValueForm, *, train_neighbours: bool) -> None:
        super().__init__(train_neighbours)
        self.runs = tuple(runs)
        rows = _rows([run.of(weight.detach()) for run in runs], runs)
        # Of two rows that are independent the sum is longer by the root of two.
        self.gain = nn.Parameter(rows.new_full((2 * len(rows),), math.sqrt(0.5)))
        self.names = ("weight_values", *self.hold(form.weights(rows)))

    def blends(self, state: Mapping[str, Tensor], weights: Sequence[Tensor]) -> list[SliceBlend]:
        """One for each run of units that follow each other in the weight."""
        given = tuple(self.given(weight) for weight in weights)
        gains = torch.split(state["gain"].reshape(2, -1), [run.count for run in self.runs], 1)
        return [SliceBlend(run, (gain,), given) for run, gain in zip(self.runs, gains, strict=True)]

    def finish(self, state: Mapping[str, Tensor], blended: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        """W_values (r, d), W_out (features, r) and the biases."""
        return (_rows(blended, self.runs), *(state[name] for name in self.names[1:]))


def value_weights(weight: Tensor, runs: Sequence[WeightSlice], form: ValueForm) -> OwnWeights:
    """Weights as `ValueSynthesis` makes, as parameters of their own; W_values as long as the units of the weight."""
    rows = _rows([run.of(weight.detach()) for run in runs], runs)
    values = random_values(rows, *rows.shape)
    if not weight.is_meta:
        with torch.no_grad():
            values.mul_(length([rows]) / length([values]))
    return OwnWeights({"weight_values": values, **form.weights(rows)})


def _rows(slices: Sequence[Tensor], runs: Sequence[WeightSlice]) -> Tensor:
    """Slices of a stored weight as rows, one for each unit."""
    joined = slices[0] if len(slices) == 1 else torch.cat(list(slices), runs[0].axis)
    return joined.t() if runs[0].axis else joined


def _runs(units: Sequence[int], axis: int) -> tuple[WeightSlice, ...]:
    """Units as runs that follow each other."""
    starts = [i for i, unit in enumerate(units) if i == 0 or unit != units[i - 1] + 1]
    return tuple(WeightSlice(axis, units[a], b - a) for a, b in pairwise([*starts, len(units)]))


def _find(site: Site) -> dict[Branch, Attention]:
    """The branches with attention over their own positions, one at least."""
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
    nodes = (core, site.counterpart(core, site.before))
    read = ([n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)] for node in nodes)
    for ours, theirs in zip(*read, strict=True):
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


def _borrowed(mixing: _Mixing) -> BorrowedMap:
    """The node that makes the map, for a surrogate that stands in the model's own tree."""
    attention, heads = mixing.attention, mixing.heads
    count = len(attention.units)
    # Several heads of queries may share one of keys and values; the first of each is taken.
    asked = int(_node(mixing.core.args[0]).meta["val"].shape[1])
    queries = Heads(tuple(head * asked // count for head in heads), asked)
    return BorrowedMap.made_at(mixing.core, queries, Heads(heads, count), scaled=attention.scaled)


def _scaled_product(
    site: Builder, settings: Mapping[str, object], heads: Sequence[int], asking: Sequence[int]
) -> tuple[object, ...]:
    """Queries, keys, mask and dropout of some heads of the values, and of those that ask by these."""
    queries, keys, mask = (settings[name] for name in ("query", "key", "attn_mask"))
    if isinstance(mask, fx.Node) and mask.meta["val"].ndim > 2 and str(mask.meta["val"].shape[-3]) != "1":
        mask = _some_heads(site, mask, asking)
    compared = _some_heads(site, _node(queries), asking), _some_heads(site, _node(keys), heads)
    return (*compared, mask, settings["dropout_p"])


def _node(value: object) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def _some_heads(site: Builder, value: fx.Node, heads: Sequence[int]) -> fx.Node:
    """Some heads of (…, heads, positions, c): a view, where they lie at even distances."""
    before = [slice(None)] * (value.meta["val"].ndim - 3)
    return site.call(operator.getitem, value, (*before, selection(heads)))
