"""Find the norm that follows a branch's entry and make one like it at another width."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import fixed_size
from repl_fx.finding.branches import Branch, behind_entries
from repl_fx.graph.captured import called_module, parameters_read
from repl_fx.graph.roles import BATCH_NORM
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.fitted_starts import ChannelTerms, Term

_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class ThinNorm:
    """A norm to be made again at another width.

    Attributes:
        kind: `batch`, `layer`, `group` or `rms`.
        eps: the original's.
        momentum: of batch statistics; None for a cumulative average.
        groups: of a group norm.
        has_bias: whether the norm shifts, so that a bias before it is idle.
    """

    kind: str
    eps: float
    momentum: float | None = 0.1
    groups: int = 1
    has_bias: bool = True

    def fresh(self, value: fx.Node, axis: int, like: Tensor) -> nn.Module:
        """A fresh norm for a value with channels along `axis`, stored as `like` is."""
        given = value.meta["val"]
        width = int(given.shape[axis])
        made: nn.Module
        if self.kind == "batch" and axis == 1:
            made = _BATCH_NORMS[given.ndim](width, eps=self.eps, momentum=self.momentum)
        elif axis == -1:
            made = nn.RMSNorm(width, eps=self.eps) if self.kind == "rms" else nn.LayerNorm(width, eps=self.eps)
        else:
            made = nn.GroupNorm(math.gcd(self.groups, width), width, eps=self.eps)
        return made.to(dtype=like.dtype, device=like.device)

    def applied(
        self, site: Builder, name: str, value: fx.Node, axis: int, like: Tensor, *, zero_init: bool = False
    ) -> fx.Node:
        """A call of a fresh norm; one of zeros, at the end of a branch, makes zeros, and can be fitted."""
        norm = self.fresh(value, axis, like)
        if zero_init and isinstance(norm.weight, nn.Parameter):
            nn.init.zeros_(norm.weight)
        made = site.call_module(site.module(name, norm), value)
        if zero_init:
            terms = (Term(name, 0, parameter.numel()) for name, parameter in norm.named_parameters())
            site.fitted(made, ChannelTerms(tuple(terms)))
        return made


def find_norm(gm: fx.GraphModule, branch: Branch) -> ThinNorm | None:
    """The norm over all channels of an entry's result that comes before the next operator; None where there is none."""
    operators = {linear.node for linear in branch.operators}
    channels = [m.node.meta["val"].shape[m.axis] for m in branch.entries]
    found = (norm_at(gm, node, channels) for node in behind_entries(branch, operators))
    return next((norm for norm in found if norm is not None), None)


@dataclass(frozen=True)
class PreNorm:
    """The norm over channels that makes a span's input.

    Attributes:
        input: the value that the norm normalises; the span's input where there is no norm.
        kind: `layer`, `rms`, or `none`.
        eps: its own.
        scale, shift: paths of its parameters; None where it has none.
    """

    input: fx.Node
    kind: str = "none"
    eps: float = 0.0
    scale: str | None = None
    shift: str | None = None

    def taken_in(self, site: Builder, weight: fx.Node, bias: fx.Node | None) -> tuple[fx.Node, fx.Node | None]:
        """Weight (rows, channels) and bias of a layer on the span's input, with the norm's scale and shift in them."""
        if self.shift is not None:
            moved = site.call(torch.ops.aten.mv.default, weight, site.parameter(self.shift))
            bias = moved if bias is None else site.call(torch.ops.aten.add.Tensor, bias, moved)
        if self.scale is not None:
            weight = site.call(torch.ops.aten.mul.Tensor, weight, site.parameter(self.scale))
        return weight, bias


def find_pre_norm(gm: fx.GraphModule, branch: Branch) -> PreNorm:
    """The norm over the last axis right before a span, where it is torch's own."""
    node, module = branch.input, called_module(gm, branch.input)
    if node not in branch.nodes or len(node.args) != 1 or node.kwargs:
        return PreNorm(node)
    if not isinstance(module, nn.LayerNorm | nn.RMSNorm) or len(module.normalized_shape) != 1:
        return PreNorm(node)
    given = node.args[0]
    value = given.meta.get("val") if isinstance(given, fx.Node) else None
    if not isinstance(given, fx.Node) or not isinstance(value, Tensor) or not _computes_as_its_base(module):
        return PreNorm(node)
    eps = torch.finfo(value.dtype).eps if module.eps is None else module.eps
    own = parameters_read(gm, node)
    scale, shift = (path if path in own else None for path in (f"{node.target}.weight", f"{node.target}.bias"))
    return PreNorm(given, "layer" if isinstance(module, nn.LayerNorm) else "rms", eps, scale, shift)


def find_post_norm(gm: fx.GraphModule, branch: Branch) -> fx.Node | None:
    """The batch norm that alone reads a span's output; it cannot take values that start at zero."""
    if len(branch.output.users) != 1:
        return None
    (node,) = branch.output.users
    is_norm = node in branch.nodes and isinstance(called_module(gm, node), nn.modules.batchnorm._BatchNorm)
    return node if is_norm else None


def _computes_as_its_base(module: nn.LayerNorm | nn.RMSNorm) -> bool:
    """Tell whether a norm does what torch's own does: asked of the module itself where it has code of its own."""
    base = nn.LayerNorm if isinstance(module, nn.LayerNorm) else nn.RMSNorm
    if type(module).forward is base.forward:
        return True
    state = [*module.parameters(), *module.buffers()]
    if not state or state[0].is_meta:
        return False
    probe = torch.linspace(-2, 3, module.normalized_shape[0], dtype=state[0].dtype, device=state[0].device)[None]
    try:
        with torch.no_grad():
            made: Tensor = module(probe)
            return torch.equal(made, cast(Any, base).forward(module, probe))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False


def norm_at(gm: fx.GraphModule, node: fx.Node, sizes: Iterable[int | torch.SymInt]) -> ThinNorm | None:
    """The norm that a node is, over as many channels as one of some sizes, which may vary; None where it is none."""
    channels = {known for size in sizes if (known := fixed_size(size)) is not None}
    if node.target is BATCH_NORM:
        momentum, eps = 6, 7
        given = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
        if not isinstance(given, Tensor) or fixed_size(given.shape[1]) not in channels or len(node.args) <= eps:
            return None
        return ThinNorm("batch", float(str(node.args[eps])), float(str(node.args[momentum])))
    module = called_module(gm, node)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.num_features in channels:
        return ThinNorm("batch", module.eps, module.momentum)
    if isinstance(module, nn.GroupNorm) and module.num_channels in channels:
        return ThinNorm("group", module.eps, groups=module.num_groups)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and math.prod(module.normalized_shape) in channels:
        layer = isinstance(module, nn.LayerNorm)
        return ThinNorm("layer" if layer else "rms", module.eps or 1e-6, has_bias=layer and module.bias is not None)
    return None
