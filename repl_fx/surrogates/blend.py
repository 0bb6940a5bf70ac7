"""`blend`: the block's own graph on a blend of its neighbours' weights (RepL's first form, arXiv 2410.01239).

    W = alpha * W_before + beta * W_after        for every weight of two or more dimensions

alpha and beta are learnable, one for each weight or one for each of its output channels. Norms, biases, scales and
buffers stay the block's own. Computes as much as the block did; stores almost nothing.

At initialisation alpha = beta = |W| / |W_before + W_after|, with |.| the Frobenius norm and W the weight that is
removed: 1/sqrt(2) for fresh, independent weights, 1/2 for trained ones that agree; either way the scale of the
output stays.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repl_fx.analysis.linear_operators import CONVOLUTIONS, is_norm, is_plain, matrix_like, mixer_of
from repl_fx.errors import BadInput
from repl_fx.surrogates.shared.functional_module import Rewired
from repl_fx.surrogates.shared.registry import Surrogate, register_surrogate
from repl_fx.surrogates.shared.site import Call, Site, shown
from repl_fx.surrogates.shared.synthesis import Synthesis

_GRANULARITIES = ("tensor", "channel")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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


class BlendSynthesis(Synthesis):
    """alpha * W_before + beta * W_after for a list of weights.

    Args:
        own: the weights that are removed; they give the scale.
        pairs: the neighbours' weights, before and after, for each.
        axes: the output axis of each weight, None for one gain a tensor.
        train_neighbours: see `Synthesis`.
    """

    def __init__(
        self, own: list[Tensor], pairs: list[tuple[Tensor, Tensor]], axes: list[int | None], train_neighbours: bool
    ) -> None:
        super().__init__(train_neighbours)
        gains = [_gain(w, *pair, axis) for w, pair, axis in zip(own, pairs, axes, strict=True)]
        self.alpha = nn.ParameterList(nn.Parameter(gain) for gain in gains)
        self.beta = nn.ParameterList(nn.Parameter(gain.clone()) for gain in gains)

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """Weights of the neighbours, (before, after, before, after, …), to one blended weight for each pair."""
        pairs = zip(self.alpha, weights[::2], self.beta, weights[1::2], strict=True)
        return tuple(alpha * self.given(a) + beta * self.given(b) for alpha, a, beta, b in pairs)


def _gain(own: Tensor, before: Tensor, after: Tensor, axis: int | None) -> Tensor:
    shape = [1] * own.ndim
    if axis is not None:
        shape[axis] = own.shape[axis]
    start = 1 / math.sqrt(2)
    if not own.is_meta:
        with torch.no_grad():
            mixed = (before.double() + after.double()).norm().item()
            start = own.double().norm().item() / mixed if mixed > 0 else start
    return torch.full(shape, start, dtype=own.dtype, device=own.device)


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


def output_axis(site: Site, name: str) -> int | None:
    """The axis of output channels of a weight of the block; None where its layer does not say which it is."""
    for node in site.block.nodes:
        mixer = mixer_of(site.graph_module, node)
        if mixer is not None and mixer.weight == name:
            return 1 if mixer.transposed else 0
        # No mixer of channels, yet its weight is (in, out, …); of groups, each has output channels of its own.
        if node.op == "call_module" and name == f"{node.target}.weight":
            module = site.graph_module.get_submodule(str(node.target))
            if isinstance(module, _TRANSPOSED) and module.groups == 1:
                return 1
    return None


def refuse_unlike(site: Site) -> str | None:
    """Why the neighbours' weights cannot be blended; None where they can."""
    names = weights_to_blend(site)
    if not names:
        return "it has no weight of two or more dimensions to blend"
    for name in names:
        for block in site.neighbours:
            other = site.counterpart_parameter(name, block)
            ours, theirs = (tuple(site.tensor(path).shape) for path in (name, other))
            if ours != theirs:
                return f"{other} is {shown(theirs)}, its own {name} is {shown(ours)}"
    return None


def weights_to_blend(site: Site) -> list[str]:
    """Parameters of the block that are blended, each once."""
    gm, names = site.graph_module, []
    norms = {
        str(n.target) for n in site.block.nodes if n.op == "call_module" and is_norm(gm.get_submodule(str(n.target)))
    }
    for name in dict.fromkeys(site.block.parameters):
        if matrix_like(site.tensor(name)) and name.rpartition(".")[0] not in norms:
            names.append(name)
    return names


def on_state(site: Site, call: Call, given: Mapping[str, fx.Node]) -> fx.Node | None:
    """The call of a module that reads some of its state from nodes, by path; None where it has none of that state."""
    if call.node.op != "call_module":
        return None
    module = site.graph_module.get_submodule(str(call.node.target))
    own = {n: f"{call.node.target}.{n}" for n, _ in (*module.named_parameters(), *module.named_buffers())}
    if given.keys().isdisjoint(own.values()):
        return None
    state = {name: given[path] if path in given else site.parameter(path) for name, path in own.items()}
    if is_plain(module) and isinstance(module, nn.Linear):
        return site.call(F.linear, call.args[0], state["weight"], state.get("bias"))
    if is_plain(module) and cast("nn.Conv2d", module).padding_mode == "zeros":
        conv = cast("nn.Conv2d", module)
        settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
        return site.call(
            CONVOLUTIONS[conv.weight.ndim - 2], call.args[0], state["weight"], state.get("bias"), *settings
        )
    path = site.module("call", Rewired(module, tuple(state)))
    return site.call_on_state(path, tuple(state.values()), call)
