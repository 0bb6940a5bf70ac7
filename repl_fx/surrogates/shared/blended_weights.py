"""Whole weights blended from those of the neighbours, and layers called on them (see `repl_fx.surrogates.blend`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from repl_fx.finding.linear_operators import is_norm, is_plain, linear_operator_of, matrix_like
from repl_fx.graph.captured import called_module, share_tensors
from repl_fx.graph.roles import LINEAR
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.fitted_starts import ChannelTerms, Term
from repl_fx.surrogates.shared.site import NodeCall, Site, Unfit, shown
from repl_fx.surrogates.shared.synthesis import BlendingSynthesis
from repl_fx.surrogates.shared.weight_slices import SliceBlend, WeightSlice

# Numbers of a piece; three of float64 fit a cache of a megabyte.
_PIECE = 1 << 15
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class BlendSynthesis(BlendingSynthesis):
    """alpha * W_before + beta * W_after for a list of weights, and then biases of its own, which start at zero.

    Args:
        removed: the weights that are removed; they give the scale.
        pairs: the neighbours' weights, before and after, for each.
        axes: the output axis of each weight, None for one gain a tensor.
        train_neighbours: see `Synthesis`.
        silent: which of the weights start at zero.
        biases: those that are removed.
    """

    def __init__(
        self,
        removed: Sequence[Tensor],
        pairs: Sequence[tuple[Tensor, Tensor]],
        axes: Sequence[int | None],
        train_neighbours: bool,
        silent: Container[int] = (),
        biases: Sequence[Tensor] = (),
    ) -> None:
        super().__init__(train_neighbours)
        gains = [_gain(w, *pair, axis) for w, pair, axis in zip(removed, pairs, axes, strict=True)]
        gains = [torch.zeros_like(gain) if i in silent else gain for i, gain in enumerate(gains)]
        self.alpha = nn.ParameterList(nn.Parameter(gain) for gain in gains)
        self.beta = nn.ParameterList(nn.Parameter(gain.clone()) for gain in gains)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros_like(bias)) for bias in biases)
        self.axes = tuple(axis or 0 for axis in axes)

    def blends(self, state: Mapping[str, Tensor], weights: Sequence[Tensor]) -> list[SliceBlend]:
        """One for each weight, of those of the neighbours, which come in pairs."""
        made = []
        for i, axis in enumerate(self.axes):
            pair = self.given(weights[2 * i]), self.given(weights[2 * i + 1])
            units = WeightSlice(axis, 0, pair[0].shape[axis])
            made.append(SliceBlend(units, (state[f"alpha.{i}"], state[f"beta.{i}"]), pair))
        return made

    def finish(self, state: Mapping[str, Tensor], blended: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        """The blended weights, and the biases."""
        return (*blended, *(state[f"biases.{i}"] for i in range(len(self.biases))))


def _gain(removed: Tensor, before: Tensor, after: Tensor, axis: int | None) -> Tensor:
    """The first gains, one for each output channel or a single one; of one dimension, see `Synthesis`."""
    start = 1 / math.sqrt(2)
    if not removed.is_meta:
        mixed = _norm_of_sum(before, after)
        start = _norm_of_sum(removed) / mixed if mixed > 0 else start
    return torch.full((1 if axis is None else removed.shape[axis],), start, dtype=removed.dtype, device=removed.device)


@torch.no_grad()
def _norm_of_sum(*weights: Tensor) -> float:
    """The norm of the sum of weights, in float64; on a CPU by pieces that stay in its cache, six times as fast."""
    first = weights[0]
    wide = torch.complex128 if first.is_complex() else torch.float64
    size = _PIECE if first.device.type == "cpu" else max(1, first.numel())
    pieces = zip(*(torch.split(weight.reshape(-1), size) for weight in weights), strict=True)
    norms = [functools.reduce(torch.add, (one.to(wide) for one in some)).norm() for some in pieces]
    return float(torch.stack(norms).norm())


@dataclass(frozen=True)
class BlendedWeight:
    """A weight of the block that is blended from those of both neighbours.

    Attributes:
        path: its own.
        before, after: those of the neighbours' weights.
        axis: of its output channels; None where its layer does not say which it is.
    """

    path: str
    before: str
    after: str
    axis: int | None


def find_weights(site: Site) -> tuple[BlendedWeight, ...]:
    """The block's weights that can be blended, each once; refuses none at all, and neighbours' of another size."""
    gm = site.graph_module
    norms = {
        str(n.target) for n in site.block.nodes if (module := called_module(gm, n)) is not None and is_norm(module)
    }
    found = []
    for path in dict.fromkeys(site.block.parameters):
        if not matrix_like(site.tensor(path)) or path.rpartition(".")[0] in norms or path in site.idle_parameters:
            continue
        others = site.counterpart_parameters(path)
        if all(site.tensor(other) is site.tensor(path) for other in others):
            # All blocks read it, as DeBERTa's table of distances: what a blend would make of it stands there already.
            continue
        for other in others:
            ours, theirs = (tuple(site.tensor(one).shape) for one in (path, other))
            if ours != theirs:
                raise Unfit(f"{other} is {shown(theirs)}, its own {path} is {shown(ours)}")
        found.append(BlendedWeight(path, *others, _output_axis(site, path)))
    if not found:
        raise Unfit("it has no weight of two or more dimensions to blend")
    return tuple(found)


def _output_axis(site: Site, path: str) -> int | None:
    """The axis of output channels of a weight of the block; None where its layer does not say which it is."""
    for node in site.block.nodes:
        linear = linear_operator_of(site.graph_module, node)
        if linear is not None and linear.weight == path:
            return 1 if linear.transposed else 0
        # No operator on channels, yet its weight is (in, out, …); of groups, each has output channels of its own.
        module = called_module(site.graph_module, node)
        if isinstance(module, _TRANSPOSED) and path == f"{node.target}.weight" and module.groups == 1:
            return 1
    return None


def blended(
    site: Builder,
    name: str,
    weights: Sequence[BlendedWeight],
    train_neighbours: bool,
    silent: Collection[str] = (),
    biases: Sequence[str] = (),
) -> dict[str, fx.Node]:
    """Nodes for blended weights, and for biases that start at zero, by path; `silent` weights start at zero too."""
    removed = [site.tensor(weight.path) for weight in weights]
    pairs = [(site.tensor(weight.before), site.tensor(weight.after)) for weight in weights]
    quiet = {i for i, weight in enumerate(weights) if weight.path in silent}
    own = [site.tensor(path) for path in biases]
    synthesis = BlendSynthesis(removed, pairs, [weight.axis for weight in weights], train_neighbours, quiet, own)
    given = [path for weight in weights for path in (weight.before, weight.after)]
    return site.synthesised(name, synthesis, given, [*(weight.path for weight in weights), *biases])


def fitted_gains(
    site: Site,
    weights: Sequence[BlendedWeight],
    exits: Collection[str],
    biases: Sequence[str] = (),
    silent: bool = True,
) -> ChannelTerms:
    """The gains of some of the weights that `blended` makes, and of its biases, as what can be fitted.

    Args:
        weights, biases: see `blended`.
        exits: the paths of those at the end of a branch, of weights and biases.
        silent: whether the branch is zero without them.
    """
    terms = []
    for i, weight in enumerate(weights):
        count = 1 if weight.axis is None else site.tensor(weight.path).shape[weight.axis]
        if weight.path in exits:
            terms += [Term(f"{name}.{i}", 0, count) for name in ("alpha", "beta")]
    terms += [Term(f"biases.{i}", 0, len(site.tensor(path))) for i, path in enumerate(biases) if path in exits]
    return ChannelTerms(tuple(terms), silent)


def on_state(site: Builder, call: NodeCall, given: Mapping[str, fx.Node]) -> fx.Node | None:
    """The call of a module that reads some of its state from nodes, by path; None where it has none of that state."""
    module = called_module(site.graph_module, call.node)
    if module is None:
        return None
    own = {n: f"{call.node.target}.{n}" for n, _ in (*module.named_parameters(), *module.named_buffers())}
    if given.keys().isdisjoint(own.values()):
        return None
    state = {name: given[path] if path in given else site.parameter(path) for name, path in own.items()}
    if is_plain(module) and isinstance(module, nn.Linear):
        return site.call(LINEAR, call.args[0], state["weight"], state.get("bias"))
    conv = cast("nn.Conv2d", module)
    if is_plain(module) and conv.padding_mode == "zeros":
        return site.convolved(conv, call.args[0], state["weight"], state.get("bias"), conv.groups)
    path = site.module("call", FunctionalModule(module, tuple(state)))
    return site.create("call_module", path, (*state.values(), *call.args), call.kwargs, call.value)


class FunctionalModule(nn.Module):
    """A module whose parameters and buffers are arguments.

    The module's own code runs, so whatever it does with its weights (standardise or mask them, drop some in training,
    run an LSTM's kernel on them) it does with the given ones, in either mode.

    Args:
        module: a leaf module; a copy without state is kept.
        names: the parameters and buffers that `forward` is given, in order.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.module = share_tensors(module)
        for state in (self.module._parameters, self.module._buffers):
            state.update(dict.fromkeys(state))
        if isinstance(self.module, nn.RNNBase):
            # A list of the weights beside the weights.
            self.module._flat_weights = [None] * len(self.module._flat_weights)

    def forward(self, *values: Any, **kwargs: Any) -> Any:
        """State, in the order of `names`, and then the module's own arguments."""
        state: dict[str, Tensor] = dict(zip(self.names, values, strict=False))
        before = dict(vars(self.module))
        if isinstance(self.module, nn.RNNBase):
            # The forward lists its weights anew when they are not those it refers to.
            vars(self.module)["_flat_weight_refs"] = [_nothing] * len(self.module._flat_weights)
        try:
            return torch.func.functional_call(self.module, state, values[len(self.names) :], kwargs)
        finally:
            # Some modules keep what they computed from their weights; that must not outlive the call.
            for name in vars(self.module).keys() - before.keys():
                del self.module.__dict__[name]
            self.module.__dict__.update(before)


def _nothing() -> None:
    """A weak reference to no weight."""
