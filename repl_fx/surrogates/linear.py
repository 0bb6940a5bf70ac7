"""`linear`: one linear map of the stream in place of the block, to be fitted to a trained network in closed form.

    y = x (I + D) + b              full: D is (C, C)
    y = x + (x V) U + b            of rank r: V is (C, r), U is (r, C)
    y = x (1 + g) + b              scale: g is (C)

    x = s + W h + c     ->    y = s + (I + D)^T (W h + c) + b            merged

along the channels C of the stream. All of it is of the surrogate's own, and zero at the start: before the fit
(`repl_fx.fit`) the map is the identity, and the network the depth-pruned one. Several blocks in a row are a stretch,
and one map stands for all of them: it is in the place of the last, and the others are taken out.

Merged, the map is of the value that the block before adds last to the stream s, and goes into the weights W and c of
the layer that makes it: the block is gone, and nothing is computed or kept for it (ReplaceMe, section 3.1).

A map fitted by least squares on the activations of a few samples is what ReplaceMe puts in the place of blocks of
language models (arXiv 2505.02819, section 3), and a scale for each channel what LinearPatch does (arXiv 2505.24680);
here they map the stream, of any network. Weight decay draws a map to the identity, and not to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx.analysis.branches import split_branches
from repl_fx.analysis.linear_operators import LinearOperator, linear_operator_of
from repl_fx.analysis.node_table import passed, passes_through
from repl_fx.errors import BadInput
from repl_fx.surrogates.shared.branch_edits import bias_paths
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.fitted_starts import WholeMap
from repl_fx.surrogates.shared.registry import Match, Surrogate, register_surrogate
from repl_fx.surrogates.shared.site import Site, Unfit, shown, unfit_is_refused
from repl_fx.surrogates.shared.synthesis import Synthesis

_FORMS = ("full", "scale")


@dataclass(frozen=True)
class LinearConfig:
    """Settings of `linear`.

    Attributes:
        form: `full` for a map of all channels to all, `scale` for a factor of each channel.
        rank: r of a full map that is the product of two thin ones; None for one without such a bound.
        merged: whether a full map goes into the last layer of the block before. There has to be one, a linear layer
            right before its last residual addition; and the model to train is then the graph.
    """

    form: str = "full"
    rank: int | None = None
    merged: bool = False

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise BadInput(f"linear: form is {self.form!r}; it can be {' or '.join(_FORMS)}")
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise BadInput(f"linear: rank is {self.rank!r}; it must be a number, 1 or more")
        if self.rank is not None and self.form != "full":
            raise BadInput("linear: rank is for form=full alone")
        if not isinstance(self.merged, bool):
            raise BadInput(f"linear: merged is {self.merged!r}; it can be true or false")
        if self.merged and (self.form != "full" or self.rank is not None):
            raise BadInput("linear: merged is for form=full without a rank")


@dataclass(frozen=True)
class LinearMatch(Match):
    """The channels of the stream, and their axis: 1, or -1 for the last; the layer that the map is merged into."""

    channels: int
    axis: int
    layer: LinearOperator | None = None


@register_surrogate("linear", LinearConfig)
class Linear(Surrogate[LinearConfig, LinearMatch]):
    """A linear map along the channels of the stream."""

    reads_stream_alone = True
    needs_neighbours = False
    spans_stretches = True

    @property
    def changes_neighbours(self) -> bool:  # type: ignore[override]
        """Whether the map is merged."""
        return self.config.merged

    @unfit_is_refused
    def match(self, site: Site) -> LinearMatch:
        """Refuse a block with several streams, one that changes sizes, and one whose channels are on no known axis."""
        given, made = site.require_one_stream()
        if str(given.shape) != str(made.shape) or given.dtype != made.dtype:
            raise Unfit(f"it turns {shown(given.shape)} into {shown(made.shape)}")
        if not given.dtype.is_floating_point:
            raise Unfit(f"its streamed value is {str(given.dtype).removeprefix('torch.')}")
        axis = _channel_axis(site, given)
        channels = given.shape[axis]
        if not isinstance(channels, int):
            raise Unfit("the number of its channels depends on the input")
        if self.config.rank is not None and self.config.rank >= channels:
            raise Unfit(f"rank {self.config.rank} is no bound for a map of {channels} channels")
        layer = _last_layer(site) if self.config.merged else None
        return LinearMatch(channels, axis, layer, kept_parameters=())

    def build(self, site: Builder, match: LinearMatch) -> tuple[fx.Node, ...]:
        """Put the map at the block's place."""
        stream = site.input
        dims = stream.meta["val"].ndim
        # Behind the channels come as many axes of one as there are spatial ones.
        spatial = (1,) * (dims - 2) if match.axis == 1 else ()
        like = next((site.tensor(path) for path in site.block.parameters), None)
        made: dict[str, Any] = {"dtype": stream.meta["val"].dtype, "device": None if like is None else like.device}
        if match.layer is not None:
            return self._merged(site, match.layer, MergedSynthesis(match.channels, match.layer.transposed, **made))
        with site.before_node(site.block.output):
            if self.config.form == "scale":
                scale = ScaleSynthesis(match.channels, spatial, **made)
                factor, shift = site.synthesised("linear", scale, (), scale.names).values()
                site.fitted(shift, WholeMap(merged=False))
                scaled = site.call(torch.ops.aten.mul.Tensor, stream, factor)
                return (site.call(torch.ops.aten.add.Tensor, scaled, shift),)
            if self.config.rank is None:
                whole = MapSynthesis(match.channels, spatial, **made)
                weight, shift = site.synthesised("linear", whole, (), whole.names).values()
                site.fitted(shift, WholeMap(merged=False))
                return (site.mix(stream, weight, shift),)
            thin = ThinMapSynthesis(match.channels, self.config.rank, spatial, **made)
            down, up, shift = site.synthesised("linear", thin, (), thin.names).values()
            site.fitted(shift, WholeMap(merged=False))
            change = site.mix(site.mix(stream, down, None), up, shift)
            return (site.call(torch.ops.aten.add.Tensor, stream, change),)

    def _merged(self, site: Builder, layer: LinearOperator, synthesis: MergedSynthesis) -> tuple[fx.Node, ...]:
        """Let the layer have weights with the map in them, and the stream pass the block."""
        paths = [str(layer.weight), *(bias_paths(site, layer) if layer.bias else ())]
        with site.before_node(layer.node):
            weight, shift = site.synthesised("linear", synthesis, paths, synthesis.names).values()
            site.fitted(shift, WholeMap(merged=True))
            merged = site.mix(layer.input, weight, shift)
        site.put_instead(layer.node, merged)
        return site.block.inputs


class StreamMap(Synthesis):
    """Base of the syntheses of a linear map, which read no neighbours.

    Args:
        spatial: sizes of the axes behind the channels, all 1; none where the channels are the last.

    Attributes:
        form, rank: see `LinearConfig`.
    """

    form = "full"
    rank: int | None = None
    shift: Tensor

    def __init__(self, spatial: tuple[int, ...]) -> None:
        super().__init__(train_neighbours=True)
        self.spatial = spatial

    def set_to(self, matrix: Tensor, shift: Tensor) -> None:
        """Become the map x -> x @ matrix + shift.

        Args:
            matrix: (C, C), which the form of the map can express.
            shift: (C).
        """
        raise NotImplementedError


class MapSynthesis(StreamMap):
    """weight = I + change, (C, C, …); shift, (C)."""

    names = ("weight", "shift")
    change: Tensor
    shift: Tensor

    def __init__(self, channels: int, spatial: tuple[int, ...], **kind: Any) -> None:
        super().__init__(spatial)
        self.hold({"change": _zeros(channels, channels, **kind), "shift": _zeros(channels, **kind)})

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The weight of a linear layer, or of a convolution of one pixel."""
        weight = self.change.diagonal_scatter(self.change.diagonal() + 1)
        return weight.reshape(*weight.shape, *self.spatial), self.shift

    def set_to(self, matrix: Tensor, shift: Tensor) -> None:
        """Become any map."""
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        _set(self, change=(matrix - identity).t(), shift=shift)


class ThinMapSynthesis(StreamMap):
    """down, (r, C, …), and up, (C, r, …), of a change of rank r; shift, (C)."""

    names = ("down", "up", "shift")
    down: Tensor
    up: Tensor
    shift: Tensor

    def __init__(self, channels: int, rank: int, spatial: tuple[int, ...], **kind: Any) -> None:
        super().__init__(spatial)
        self.rank = rank
        # With both at zero neither would get a gradient.
        rows = _zeros(rank, channels, **kind)
        nn.init.orthogonal_(rows)
        self.hold({"down": rows, "up": _zeros(channels, rank, **kind), "shift": _zeros(channels, **kind)})

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The weights of two linear layers, or of convolutions of one pixel."""
        down, up = (weight.reshape(*weight.shape, *self.spatial) for weight in (self.down, self.up))
        return down, up, self.shift

    def set_to(self, matrix: Tensor, shift: Tensor) -> None:
        """Become the map whose change is of the rank at most."""
        change = matrix - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        left, sizes, right = torch.linalg.svd(change)
        left, right, root = left[:, : self.rank], right[: self.rank], sizes[: self.rank].sqrt()
        _set(self, down=(left * root).t(), up=(root[:, None] * right).t(), shift=shift)


class MergedSynthesis(MapSynthesis):
    """Weight and bias of a linear layer with a map behind it: (I + change) W, (C, in); (I + change) c + shift, (C).

    Args:
        transposed: whether the layer's own weight is (in, C).
    """

    def __init__(self, channels: int, transposed: bool, **kind: Any) -> None:
        super().__init__(channels, (), **kind)
        self.transposed = transposed

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The weights of the layer with the map, from its weight, and its bias where it has one."""
        (whole, shift), (weight, *bias) = super().synthesise(), weights
        weight = whole @ (weight.t() if self.transposed else weight)
        return weight, torch.addmv(shift, whole, bias[0]) if bias else shift


class ScaleSynthesis(StreamMap):
    """factor = 1 + gain and shift, both (C, …)."""

    names = ("factor", "shift")
    form = "scale"
    gain: Tensor
    shift: Tensor

    def __init__(self, channels: int, spatial: tuple[int, ...], **kind: Any) -> None:
        super().__init__(spatial)
        self.hold({"gain": _zeros(channels, **kind), "shift": _zeros(channels, **kind)})

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """A factor and a term for each channel, beside the axes that follow them."""
        return (1 + self.gain).reshape(-1, *self.spatial), self.shift.reshape(-1, *self.spatial)

    def set_to(self, matrix: Tensor, shift: Tensor) -> None:
        """Become the diagonal of a map."""
        _set(self, gain=matrix.diagonal() - 1, shift=shift)


def _zeros(*sizes: int, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    return torch.zeros(sizes, dtype=dtype, device=device)


def _set(module: nn.Module, **values: Tensor) -> None:
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name).copy_(value)


def _last_layer(site: Site) -> LinearOperator:
    """The linear layer whose value the block before adds last to the stream.

    Raises:
        Unfit: the block before ends otherwise.
    """
    name = site.before.name
    split = split_branches(site.graph_module, site.before)
    if split.reason:
        raise Unfit(f"{name}, which it would be merged into, cannot: {split.reason}")
    branch = split.branches[-1]
    layer, value = branch.exits[-1], passed(branch.root)
    if branch.join is not passed(site.before.output):
        raise Unfit(f"{name} ends in more than an addition, so that nothing can be merged into its last layer")
    if layer.node is not value or layer.kind != "linear" or layer.weight is None or len(branch.exits) > 1:
        raise Unfit(f"{name} does not end in a linear layer before its last addition, into which it could be merged")
    if any(user is not branch.join and not passes_through(user) for user in value.users):
        raise Unfit(f"the last layer of {name} is read by more than its addition")
    if layer.bias and len(bias_paths(site, layer)) != 1:
        raise Unfit(f"the last layer of {name} has a bias that is computed")
    return layer


def _channel_axis(site: Site, stream: Tensor) -> int:
    """The axis along which the block's convolutions or linear layers mix values that are as large as the stream.

    Raises:
        Unfit: none reads such a value.
    """
    found = set()
    for node in site.block.nodes:
        linear = linear_operator_of(site.graph_module, node)
        value = None if linear is None else linear.input.meta.get("val")
        if linear is None or linear.kind == "other" or not isinstance(value, Tensor):
            continue
        if value.ndim == stream.ndim and str(value.shape[linear.axis]) == str(stream.shape[linear.axis]):
            found.add(linear.axis)
    # Of a block with both (ConvNeXt, behind a permutation) the convolutions see the stream as it is.
    if 1 in found and stream.ndim > 2:
        return 1
    if found or stream.ndim == 2:
        return -1
    raise Unfit("no linear layer or convolution of it reads its stream, so that the axis of channels is not known")
