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
from itertools import chain, islice, pairwise
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
from repl_fx.surrogates.shared.branch_edits import drop_branches, outputs_after, starts_at_zero, without
from repl_fx.surrogates.shared.initialisation import length, random_values
from repl_fx.surrogates.shared.norms import without_norm
from repl_fx.surrogates.shared.recompute import LeanAttention
from repl_fx.surrogates.shared.registry import Surrogate, check_thin_settings, register_surrogate
from repl_fx.surrogates.shared.site import Site
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


@register_surrogate("reuse", ReuseConfig)
class Reuse(Surrogate[ReuseConfig]):
    """Thin values, mixed by the attention map of the block before."""

    def refuse(self, site: Site) -> str | None:
        """Refuse a block without self-attention of a known form, and neighbours of another size."""
        found = _find(site)
        if isinstance(found, str):
            return found
        if any(is_choice(node) for node in site.before.nodes):
            return f"{site.before.name} may be skipped in training, and its attention map with it"
        maps = (_refuse_map(attention) for attention in found.values())
        neighbours = (_refuse_neighbours(site, attention) for attention in found.values())
        others = (_refuse_without(branch) for branch in site.split.branches if branch not in found)
        return next(filter(None, chain(maps, neighbours, others)), None)

    def build(self, site: Site) -> tuple[fx.Node, ...]:
        """Replace the span of each attention; drop the other branches."""
        found = _find(site)
        assert not isinstance(found, str)
        made = []
        for number, (branch, attention) in enumerate(found.items()):
            with site.before_node(branch.output):
                new = self._mixed(site, branch, attention, f"branch_{number}")
            branch.output.replace_all_uses_with(new)
            made.append((branch.output, new))
        made += drop_branches(b for b in site.split.branches if b not in found)
        return outputs_after(site.block, made)

    def _mixed(self, site: Site, branch: Branch, attention: Attention, name: str) -> fx.Node:
        core = site.counterpart(attention.core, site.before)
        heads = self._heads(attention)
        synthesis, paths = self._weights(site, branch, attention, heads)
        made = site.synthesise(name, synthesis, *(site.parameter(path) for path in paths))
        parts = {part: site.call(operator.getitem, made, i) for i, part in enumerate(synthesis.names)}
        value, kind, eps, weight, bias = without_norm(site, branch, parts["weight_values"], parts.get("bias_values"))
        settings: dict[str, Any] = {"scaled": attention.scaled, "batch_first": attention.batch_first}
        dims = branch.output.meta["val"].ndim
        settings["dims"] = None if dims == branch.input.meta["val"].ndim else dims
        if attention.scaled:
            product = product_settings(core)
            given = _scaled_product(site, product, heads)
            settings |= {"causal": bool(product["is_causal"]), "scale": product["scale"]}
        else:
            given = (_some_heads(site, _node(core.args[0]), heads),)
        module = LeanAttention(kind, eps, len(heads), **settings)
        path = site.module(f"{name}_reuse", module)
        return site.call_module(path, value, weight, parts["weight_out"], bias, parts.get("bias_out"), *given)

    def _heads(self, attention: Attention) -> tuple[int, ...]:
        count = self.config.heads or max(1, round(self.config.ratio * len(attention.units)))
        return tuple(islice(distinct_heads(attention), count))

    def _weights(
        self, site: Site, branch: Branch, attention: Attention, heads: Sequence[int]
    ) -> tuple[ValueSynthesis, list[str]]:
        """The synthesis of the weights, and the parameters it reads."""
        linear = attention.linear
        units = [unit for head in heads for unit in attention.units[head]]
        weight = str(linear.weight)
        own = self.config.weights == "own"
        exits = [site.tensor(str(m.weight)) for m in branch.exits if m.weight is not None]
        synthesis = ValueSynthesis(
            site.tensor(weight),
            units,
            1 if linear.transposed else 0,
            int(branch.output.meta["val"].shape[-1]),
            0.0 if starts_at_zero(site.graph_module, branch, branch.output) else length(exits),
            own=own,
            bias_values=linear.bias,
            bias_out=any(m.bias for m in branch.exits),
            train_neighbours=self.config.train_neighbours,
        )
        return synthesis, [] if own else list(site.counterpart_parameters(weight))


class ValueSynthesis(BlendingSynthesis):
    """W_values and biases of a few heads, from the neighbours' weights, and a W_out of its own.

    Args:
        weight: the weight that makes the removed block's values; it gives the scale.
        units: which of its output units the heads are made of, r of them.
        axis: the axis of output units.
        features: what W_out maps to.
        begin: Frobenius norm of W_out at the start; 0 for zeros.
        own: whether W_values is a parameter too; else it is synthesised.
        bias_values, bias_out: whether the layer adds biases.
        train_neighbours: see `Synthesis`.
    """

    def __init__(
        self,
        weight: Tensor,
        units: Sequence[int],
        axis: int,
        features: int,
        begin: float,
        *,
        own: bool,
        bias_values: bool,
        bias_out: bool,
        train_neighbours: bool,
    ) -> None:
        super().__init__(train_neighbours)
        self.runs, self.axis = _runs(units, axis), axis
        count = len(units)
        taken = torch.cat([run.of(weight.detach()) for run in self.runs], axis)
        rows = taken.t() if axis else taken
        if own:
            self.weight_values: nn.Parameter | None = random_values(rows, count, rows.shape[1])
            self.register_parameter("gain", None)
        else:
            self.register_parameter("weight_values", None)
            # Of two rows that are independent the sum is longer by the root of two.
            self.gain = nn.Parameter(rows.new_full((2, count), math.sqrt(0.5)))
        self.weight_out = random_values(rows, features, count)
        self.bias_values = nn.Parameter(rows.new_zeros(count)) if bias_values else None
        self.bias_out = nn.Parameter(rows.new_zeros(features)) if bias_out else None
        if not weight.is_meta:
            with torch.no_grad():
                self.weight_out.mul_(begin / length([self.weight_out]) if begin else 0.0)
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
        return [SliceBlend(run, gain, given) for run, gain in zip(self.runs, gains, strict=True)]

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


def _find(site: Site) -> dict[Branch, Attention] | str:
    """The branches with attention over their own positions; a reason where there is none."""
    if site.split.reason:
        return site.split.reason
    found, reasons = {}, []
    for branch in site.split.branches:
        attention = find_attention(branch)
        if isinstance(attention, str):
            reasons.append(attention)
        elif branch.exits[0].kind == "linear" and gives_positions_in_order(branch, attention):
            found[branch] = attention
        else:
            reasons.append(f"{branch.output.name} does not have the positions of {branch.input.name}")
    return found or reasons[0]


def _refuse_neighbours(site: Site, attention: Attention) -> str | None:
    weight = str(attention.linear.weight)
    for path in site.counterpart_parameters(weight):
        if site.tensor(path).shape != site.tensor(weight).shape:
            return f"{path} is of another size than its own {weight}"
    before = site.counterpart(attention.core, site.before)
    for ours, theirs in zip(_tensors(attention.core), _tensors(before), strict=True):
        if str(ours.meta["val"].shape) != str(theirs.meta["val"].shape):
            return f"{theirs.name} is of another size than its own {ours.name}"
    return None


def _refuse_map(attention: Attention) -> str | None:
    """Refuse a map that all examples or heads share: the layer counts on one for each."""
    core = attention.core
    made = core.meta["val"].shape
    # Of queries and keys the heads may be others than those of the values.
    same = made[:1] if attention.scaled else made[:2]
    for node in core.args[: 2 if attention.scaled else 1]:
        value = _node(node).meta["val"]
        if value.ndim != len(made) or str(value.shape[: len(same)]) != str(same):
            return f"{core.name} has one attention map for several examples or heads"
    return None


def _refuse_without(branch: Branch) -> str | None:
    return f"the branch that ends in {branch.root.name} cannot be left out" if without(branch) is None else None


def _scaled_product(site: Site, settings: Mapping[str, object], heads: Sequence[int]) -> tuple[object, ...]:
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


def _some_heads(site: Site, value: fx.Node, heads: Sequence[int]) -> fx.Node:
    """Some heads of (…, heads, positions, c): a view, where they lie at even distances."""
    step = heads[1] - heads[0] if len(heads) > 1 else 1
    before = [slice(None)] * (value.meta["val"].ndim - 3)
    if list(heads) == list(range(heads[0], heads[-1] + 1, step)):
        return site.call(operator.getitem, value, (*before, slice(heads[0], heads[-1] + 1, step)))
    return site.call(operator.getitem, value, (*before, list(heads)))


def _tensors(core: fx.Node) -> list[fx.Node]:
    return [node for node in core.all_input_nodes if isinstance(node.meta.get("val"), Tensor)]
