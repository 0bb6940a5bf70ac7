"""`blend`: the block's own graph on a blend of its neighbours' weights (RepL's first form, arXiv 2410.01239).

    W = alpha * W_before + beta * W_after        for every weight of two or more dimensions

alpha and beta are learnable, one for each weight or one for each of its output channels. Norms, biases, scales and
buffers stay the block's own. Computes as much as the block did; stores almost nothing.

At initialisation alpha = beta = |W| / |W_before + W_after|, with |.| the Frobenius norm and W the weight that is
removed: 1/sqrt(2) for fresh, independent weights, 1/2 for trained ones that agree; either way the scale of the
output stays.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import fx

from repl_fx.errors import BadInput
from repl_fx.surrogates.shared.blended_weights import (
    BlendSynthesis,
    on_state,
    output_axis,
    refuse_unlike,
    weights_to_blend,
)
from repl_fx.surrogates.shared.registry import Surrogate, register_surrogate
from repl_fx.surrogates.shared.site import Call, Site

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


@register_surrogate("blend", BlendConfig)
class Blend(Surrogate[BlendConfig]):
    """The same computation on blended weights."""

    keeps_inner_values = True

    def refuse(self, site: Site) -> str | None:
        """Refuse a block that has no weight to blend, or neighbours of another size."""
        return refuse_unlike(site)

    def kept_parameters(self, site: Site) -> Collection[str]:
        """All but the weights that are blended."""
        blended = set(weights_to_blend(site))
        return [path for path in site.block.parameters if path not in blended]

    def build(self, site: Site) -> tuple[fx.Node, ...]:
        """Swap the block's weights for blended ones; its nodes stay where they are."""
        block = site.block
        names = weights_to_blend(site)
        axes = [None if self.config.per == "tensor" else output_axis(site, name) for name in names]
        nodes = sorted({*block.nodes, *site.weight_nodes})
        with site.before_node(nodes[0]):
            paths = [site.counterpart_parameter(name, b) for name in names for b in site.neighbours]
            tensors = [site.tensor(path) for path in paths]
            synthesis = BlendSynthesis(
                [site.tensor(name) for name in names],
                list(zip(tensors[::2], tensors[1::2], strict=True)),
                axes,
                self.config.train_neighbours,
            )
            made = site.synthesise("blend", synthesis, *(site.parameter(path) for path in paths))
            weights = {name: site.call(operator.getitem, made, i) for i, name in enumerate(names)}
        made_by = {node: self._on_weights(site, node, weights) for node in nodes}
        return tuple(made_by[output] for output in block.outputs)

    def _on_weights(self, site: Site, node: fx.Node, weights: Mapping[str, fx.Node]) -> fx.Node:
        """Make one node of the block read blended weights; returns the node that has its value now."""
        for feeder in node.all_input_nodes:
            if feeder.op == "get_attr" and str(feeder.target) in weights:
                node.replace_input_with(feeder, weights[str(feeder.target)])
        with site.before_node(node):
            made = on_state(site, Call.of(node), weights)
        if made is None:
            return node
        node.replace_all_uses_with(made)
        return made
