"""`blend`: the block's own graph on a blend of its neighbours' weights (RepL's first form, arXiv 2410.01239).

    W = alpha * W_before + beta * W_after        for every weight of two or more dimensions

alpha and beta are learnable, one for each weight or one for each of its output channels. Norms, biases, scales and
buffers stay the block's own. Computes as much as the block did; stores almost nothing.

At initialisation alpha = beta = |W| / |W_before + W_after|, with |.| the Frobenius norm and W the weight that is
removed: 1/sqrt(2) for fresh, independent weights, 1/2 for trained ones that agree; either way the scale of the
output stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from torch import Tensor, fx, nn

from repl_fx.errors import BadInput
from repl_fx.finding.linear_operators import linear_operator_of
from repl_fx.graph.notes import STANDS_FOR
from repl_fx.surrogates.shared.blended_weights import (
    BlendedWeight,
    blended,
    find_weights,
    fitted_gains,
    on_state,
)
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.site import NodeCall, Site, unfit_is_refused
from repl_fx.surrogates.shared.surrogate import Match, Surrogate, Traits, register_surrogate

_GRANULARITIES = ("tensor", "channel")


@dataclass(frozen=True)
class BlendConfig:
    """Settings of `blend`.

    Attributes:
        per: `tensor` for one alpha and beta a weight, `channel` for one of each for every output channel.
        train_neighbours: whether gradients flow into the neighbours' weights.
    """

    per: str = "channel"
    train_neighbours: bool = True

    def __post_init__(self) -> None:
        if self.per not in _GRANULARITIES:
            raise BadInput(f"blend: per is {self.per!r}; it can be {' or '.join(_GRANULARITIES)}")


@dataclass(frozen=True)
class BlendMatch(Match):
    """The weights of a block that are blended; the nodes that read them and the rest of the block, in program order.

    Attributes:
        exits: the weights at the end of each branch, or of the block where it has none.
    """

    weights: tuple[BlendedWeight, ...]
    nodes: tuple[fx.Node, ...]
    exits: tuple[frozenset[str], ...]


@register_surrogate("blend", BlendConfig)
class Blend(Surrogate[BlendConfig, BlendMatch]):
    """The same computation on blended weights."""

    traits = Traits(keeps_nodes=True)

    @unfit_is_refused
    def match(self, site: Site) -> BlendMatch:
        """Refuse a block that has no weight to blend, or neighbours of another size."""
        weights = find_weights(site)
        gone = {weight.path for weight in weights}
        kept = [path for path in site.block.parameters if path not in gone]
        nodes = tuple(sorted({*site.block.nodes, *site.weight_nodes}))
        return BlendMatch(weights, nodes, _exits(site), kept_parameters=kept)

    def build(self, site: Builder, match: BlendMatch) -> tuple[fx.Node, ...]:
        """Swap the block's weights for blended ones; its nodes stay where they are."""
        weights = match.weights
        if self.config.per == "tensor":
            weights = tuple(replace(weight, axis=None) for weight in weights)
        with site.before_node(match.nodes[0]):
            made = blended(site, "blend", weights, self.config.train_neighbours)
        found = [fitted_gains(site, weights, exits, silent=False) for exits in match.exits]
        site.fitted(next(iter(made.values())), *(terms for terms in found if terms.terms))
        for path, node in made.items():
            STANDS_FOR.put(node, path)
        for node in match.nodes:
            self._on_weights(site, node, made)
        return site.block.outputs

    def whole_weights(self, match: BlendMatch, own: nn.Module, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The blended weights."""
        given = [read(path) for weight in match.weights for path in (weight.before, weight.after)]
        return dict(zip((weight.path for weight in match.weights), own.get_submodule("blend")(*given), strict=True))

    def _on_weights(self, site: Builder, node: fx.Node, weights: Mapping[str, fx.Node]) -> None:
        """Make one node of the block read blended weights, or another in its place."""
        here = site.now(node)
        for feeder in here.all_input_nodes:
            if feeder.op == "get_attr" and str(feeder.target) in weights:
                here.replace_input_with(feeder, weights[str(feeder.target)])
        with site.before_node(node):
            made = on_state(site, NodeCall(here, here.args, here.kwargs, here.meta["val"]), weights)
        if made is not None:
            site.replace(node, made)


def _exits(site: Site) -> tuple[frozenset[str], ...]:
    """The weights that end each branch; of a block without branches that of its last linear operator."""
    if site.split.branches:
        ends = [branch.exits for branch in site.split.branches]
    else:
        found = (linear_operator_of(site.graph_module, node) for node in reversed(site.block.nodes))
        ends = [(last,) for last in islice((linear for linear in found if linear is not None), 1)]
    return tuple(frozenset(linear.weight for linear in some if linear.weight is not None) for some in ends)
