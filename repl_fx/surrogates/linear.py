"""`linear`: one linear map of the stream in place of the block, to be fitted to a trained network in closed form.

    y = x (I + D) + b              full: D is (C, C)
    y = x + (x V) U + b            of rank r: V is (C, r), U is (r, C)
    y = x (1 + g) + b              scale: g is (C)

    x = s + W h + c     ->    y = s + (I + D)^T (W h + c) + b            merged
    y = p(x) (E + D) + b           of a block that changes sizes: D is (C, C'), or E + D = V U; p picks positions

along the channels C of the stream. All of it is of the surrogate's own, and zero at the start: before the fit
(`repl_fx.fit`) the map is the identity, and the network the depth-pruned one. Several blocks in a row are a stretch,
and one map stands for all of them: it is in the place of the last, and the others are taken out.

Merged, the map is of the value that the block before adds last to the stream s, and goes into the weights W and c of
the layer that makes it: the block is gone, and nothing is computed or kept for it (ReplaceMe, section 3.1).

A block, or a stretch, that changes the width and divides spatial sizes by a stride is one convolution of a single
pixel with that stride. It begins as E: the common channels pass, the others are zero. Under the stride p reads what the
block's own shortcut reads. The pixel: in two trained ResNets on digits such a map lost 0.17 to 0.34 of the variance
behind a block with a strided shortcut, and a map of means over windows 0.40 to 0.53. The mean, where the block takes an
average of its stream (ResNet-D), by the same layer: 0.16 to 0.30 were lost, and 0.35 to 0.57 with pixels. A stretch
that changes sizes reads pixels.

A map fitted by least squares on the activations of a few samples is what ReplaceMe puts in the place of blocks of
language models (arXiv 2505.02819, section 3), and a scale for each channel what LinearPatch does (arXiv 2505.24680);
here they map the stream, of any network. Weight decay draws a map to the identity, and not to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx.errors import BadInput, PlanMismatch
from repl_fx.finding.branches import split_branches
from repl_fx.finding.linear_operators import LinearOperator, linear_operator_of
from repl_fx.finding.node_table import passed, passes_through
from repl_fx.surrogates.shared.branch_edits import bias_paths
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.fitted_starts import WholeMap
from repl_fx.surrogates.shared.norms import norm_at
from repl_fx.surrogates.shared.sampling import Sampling, sampling_of
from repl_fx.surrogates.shared.site import Site, Unfit, shown, unfit_is_refused
from repl_fx.surrogates.shared.surrogate import Match, Surrogate, Traits, register_surrogate
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
        if self.merged and (self.form != "full" or self.rank is not None):
            raise BadInput("linear: merged is for form=full without a rank")


@dataclass(frozen=True)
class LinearMatch(Match):
    """The task of a map.

    Attributes:
        widths: the channels of the stream before and behind the block.
        axis: that of the channels: 1, or -1 for the last.
        sampling: which positions are read where the block changes sizes; None where it does not.
        layer: the layer that the map is merged into.
    """

    widths: tuple[int, int]
    axis: int
    sampling: Sampling | None = None
    layer: LinearOperator | None = None


@register_surrogate("linear", LinearConfig)
class Linear(Surrogate[LinearConfig, LinearMatch]):
    """A linear map along the channels of the stream."""

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config)
        # The error is that of the transformers in docs/block_errors.md; in its convolutional networks it is 0.6.
        self.traits = Traits("stream", reads_stream_alone=True, changes_neighbours=config.merged, error_left=0.3)

    @unfit_is_refused
    def match(self, site: Site) -> LinearMatch:
        """Refuse a block with several streams, with sizes that no stride makes, or with channels on no known axis."""
        given, made = site.require_one_stream()
        if given.ndim != made.ndim or given.dtype != made.dtype:
            raise Unfit(f"it turns {shown(given.shape)} into {shown(made.shape)}")
        if not given.dtype.is_floating_point:
            raise Unfit(f"its streamed value is {str(given.dtype).removeprefix('torch.')}")
        axis = _channel_axis(site, given)
        widths = given.shape[axis], made.shape[axis]
        if not isinstance(widths[0], int) or not isinstance(widths[1], int):
            raise Unfit("the number of its channels depends on the input")
        if self.config.rank is not None and self.config.rank >= min(widths):
            raise Unfit(f"rank {self.config.rank} is no bound for a map of {min(widths)} channels")
        sampling = self._sampling(site, site.input, axis)
        layer = _last_layer(site) if self.config.merged else None
        return LinearMatch((widths[0], widths[1]), axis, sampling, layer, kept_parameters=())

    def _sampling(self, site: Site, start: fx.Node, axis: int) -> Sampling | None:
        """The reading of a map from a node to the end of the block; None where the sizes are the same.

        Raises:
            Unfit: there is no such map, or none of this form.
        """
        given, made = start.meta["val"], site.block.output.meta["val"]
        if str(given.shape) == str(made.shape):
            return None
        turned = f"it turns {shown(given.shape)} into {shown(made.shape)}"
        if self.config.merged or self.config.form != "full":
            form = "merged=true" if self.config.merged else f"form={self.config.form}"
            raise Unfit(f"{turned}, and {form} needs equal widths and sizes")
        found = sampling_of(site, start, axis)
        if found is None:
            raise Unfit(f"{turned}, and no convolution of one pixel with a stride makes such sizes")
        return found

    def build(self, site: Builder, match: LinearMatch) -> tuple[fx.Node, ...]:
        """Put the map at the block's place."""
        stream, (_, made_width) = site.now(site.input), match.widths
        value = stream.meta["val"]
        dims = value.ndim
        # Behind the channels come as many axes of one as there are spatial ones.
        spatial = (1,) * (dims - 2) if match.axis == 1 else ()
        like = next((site.tensor(path) for path in site.block.parameters), None)
        made: dict[str, Any] = {"dtype": value.dtype, "device": None if like is None else like.device}
        if match.layer is not None:
            return self._merged(site, match.layer, MergedSynthesis(made_width, match.layer.transposed, **made))
        sampling = match.sampling
        if str(value.shape) != str(site.input.meta["val"].shape):
            # Blocks before that changed sizes are taken out: the map takes what they took.
            try:
                sampling = self._sampling(site, site.taken, match.axis)
            except Unfit as unfit:
                raise PlanMismatch(
                    f"{self.key} cannot stand in for {site.block.name} and those before it: {unfit}"
                ) from unfit
        widths = value.shape[match.axis], made_width
        with site.before_node(site.block.output):
            if sampling is not None and sampling.average is not None:
                stream = site.again(sampling.average, stream)
            strides = () if sampling is None else sampling.strides
            synthesis = self._synthesis(widths, spatial, sampling is not None, **made)
            first, *second, shift = site.synthesised("linear", synthesis, (), synthesis.names).values()
            site.fitted(shift, WholeMap(merged=False))
            if self.config.form == "scale":
                scaled = site.call(torch.ops.aten.mul.Tensor, stream, first)
                return (site.call(torch.ops.aten.add.Tensor, scaled, shift),)
            if not second:
                return (site.mix(stream, first, shift, stride=strides),)
            change = site.mix(site.mix(stream, first, None, stride=strides), second[0], shift)
            return (change if sampling is not None else site.call(torch.ops.aten.add.Tensor, stream, change),)

    def _synthesis(self, widths: tuple[int, int], spatial: tuple[int, ...], sampled: bool, **kind: Any) -> StreamMap:
        """The map of the form that is set; `sampled` where sizes change, and the stream does not pass beside it."""
        if self.config.form == "scale":
            return ScaleSynthesis(widths[1], spatial, **kind)
        if self.config.rank is None:
            return MapSynthesis(widths, spatial, **kind)
        thin = ThinProductSynthesis if sampled else ThinMapSynthesis
        return thin(widths, self.config.rank, spatial, **kind)

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
        widths: C and C', the channels before and behind the map.
        spatial: sizes of the axes behind the channels, all 1; none where the channels are the last.

    Attributes:
        form, rank: see `LinearConfig`.
    """

    form = "full"
    rank: int | None = None
    shift: Tensor

    def __init__(self, widths: tuple[int, int], spatial: tuple[int, ...]) -> None:
        super().__init__(train_neighbours=True)
        self.widths = widths
        self.spatial = spatial

    @property
    def start(self) -> Tensor:
        """The matrix that it begins with, (C, C'), in double precision: the common channels pass."""
        return torch.eye(*self.widths, dtype=torch.float64)

    @property
    def beside(self) -> Tensor:
        """The part of its matrix, (C, C'), that is no number of its own: of the rest the rank is bounded."""
        return self.start

    def set_to(self, matrix: Tensor, shift: Tensor) -> None:
        """Become the map x -> x @ matrix + shift.

        Args:
            matrix: (C, C'), which the form of the map can express.
            shift: (C').
        """
        raise NotImplementedError


class MapSynthesis(StreamMap):
    """weight = E + change, (C', C, …); shift, (C')."""

    names = ("weight", "shift")
    change: Tensor

    def __init__(self, widths: tuple[int, int], spatial: tuple[int, ...], **kind: Any) -> None:
        super().__init__(widths, spatial)
        taken, made = widths
        self.hold({"change": _zeros(made, taken, **kind), "shift": _zeros(made, **kind)})

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The weight of a linear layer, or of a convolution of one pixel."""
        # The ONNX exporter makes writes of a `diagonal_scatter`, and refuses them.
        weight = self.change + torch.eye(*self.change.shape, dtype=self.change.dtype, device=self.change.device)
        return weight.reshape(*weight.shape, *self.spatial), self.shift

    def set_to(self, matrix: Tensor, shift: Tensor) -> None:
        """Become any map."""
        _set(self, change=(matrix - self.start.to(matrix)).t(), shift=shift)


class ThinMapSynthesis(StreamMap):
    """down, (r, C, …), and up, (C', r, …), of a change of rank r; shift, (C')."""

    names = ("down", "up", "shift")
    down: Tensor
    up: Tensor

    def __init__(self, widths: tuple[int, int], rank: int, spatial: tuple[int, ...], **kind: Any) -> None:
        super().__init__(widths, spatial)
        self.rank = rank
        taken, made = widths
        # With both at zero neither would get a gradient.
        rows = _zeros(rank, taken, **kind)
        nn.init.orthogonal_(rows)
        self.hold({"down": rows, "up": _zeros(made, rank, **kind), "shift": _zeros(made, **kind)})

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The weights of two linear layers, or of convolutions of one pixel."""
        down, up = (weight.reshape(*weight.shape, *self.spatial) for weight in (self.down, self.up))
        return down, up, self.shift

    def set_to(self, matrix: Tensor, shift: Tensor) -> None:
        """Become the map whose own part is of the rank at most."""
        left, sizes, right = torch.linalg.svd(matrix - self.beside.to(matrix), full_matrices=False)
        left, right, root = left[:, : self.rank], right[: self.rank], sizes[: self.rank].sqrt()
        _set(self, down=(left * root).t(), up=(root[:, None] * right).t(), shift=shift)


class ThinProductSynthesis(ThinMapSynthesis):
    """down and up of a map of rank r with no stream beside it, as where sizes change; the first r channels pass."""

    def __init__(self, widths: tuple[int, int], rank: int, spatial: tuple[int, ...], **kind: Any) -> None:
        super().__init__(widths, rank, spatial, **kind)
        _set(self, down=torch.eye(rank, widths[0]), up=torch.eye(widths[1], rank))

    @property
    def start(self) -> Tensor:
        """The first r channels pass."""
        matrix = super().start
        matrix[self.rank :] = 0
        return matrix

    @property
    def beside(self) -> Tensor:
        """Nothing."""
        return torch.zeros(self.widths, dtype=torch.float64)


class MergedSynthesis(MapSynthesis):
    """Weight and bias of a linear layer with a map behind it: (I + change) W, (C, in); (I + change) c + shift, (C).

    Args:
        transposed: whether the layer's own weight is (in, C).
    """

    def __init__(self, channels: int, transposed: bool, **kind: Any) -> None:
        super().__init__((channels, channels), (), **kind)
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

    def __init__(self, channels: int, spatial: tuple[int, ...], **kind: Any) -> None:
        super().__init__((channels, channels), spatial)
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
    return _axis_of_norms(site, stream)


def _axis_of_norms(site: Site, stream: Tensor) -> int:
    """The axis of channels by the block's norms: 1 of a group norm, the last of others.

    What mixes the channels behind a group norm may see positions in a row; behind a layer norm a block may multiply by
    matrices itself (Falcon).

    Raises:
        Unfit: it has none.
    """
    for axis, kinds in ((1, ("group",)), (-1, ("layer", "rms"))):
        norms = (norm_at(site.graph_module, node, [stream.shape[axis]]) for node in site.block.nodes)
        if any(norm is not None and norm.kind in kinds for norm in norms):
            return axis
    raise Unfit(
        "no linear layer, convolution or norm of it reads its stream, so that the axis of channels is not known"
    )
