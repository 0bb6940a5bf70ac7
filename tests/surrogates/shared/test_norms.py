"""Norms that surrogates make again, or take into the layer behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.surrogates.shared.norms import ThinNorm, norm_at
from repl_fx.surrogates.shared.recompute import RecomputedBranch
from tests.nets import TokenNet, rewritten, tokens


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (nn.BatchNorm2d(8, eps=0.5, momentum=0.3), ThinNorm("batch", 0.5, 0.3)),
        (nn.GroupNorm(4, 8, eps=0.5), ThinNorm("group", 0.5, groups=4)),
        (nn.LayerNorm(8, eps=0.5), ThinNorm("layer", 0.5)),
        (nn.LayerNorm(8, bias=False), ThinNorm("layer", 1e-5, has_bias=False)),
        (nn.RMSNorm(8), ThinNorm("rms", 1e-6, has_bias=False)),
        (nn.LayerNorm((8, 8)), None),
        (nn.ReLU(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_norm_is_told_by_its_layer_or_its_function(layer: nn.Module, norm: ThinNorm | None) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + 1.0  # type: ignore[no-any-return]

    assert _norms(Net(), 8) == ([] if norm is None else [norm])
    assert _norms(Net(), 16) == []


def test_a_norm_without_a_layer_is_told_by_its_operator() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            state = self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias
            return F.batch_norm(x, *state, self.training, 0.25, 1e-3)

    assert _norms(Net(), 8) == [ThinNorm("batch", 1e-3, 0.25)]
    assert _norms(Net(), 16) == []


def _norms(model: nn.Module, channels: int) -> list[ThinNorm]:
    gm = repl_fx.capture(model, (torch.randn(2, 8, 8, 8),))
    found = (norm_at(gm, node, {channels}) for node in gm.graph.nodes)
    return [norm for norm in found if norm is not None]


class Doubled(nn.LayerNorm):
    """Is no layer norm, though it is called so."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Plain(nn.LayerNorm):
    """Is one, by code of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


@pytest.mark.parametrize(
    ("kind", "norm"), [(nn.LayerNorm, "layer"), (nn.RMSNorm, "rms"), (Plain, "layer"), (Doubled, "none")]
)
def test_the_norm_before_a_thin_layer_goes_into_it_where_it_is_known(kind: type[nn.Module], norm: str) -> None:
    model, x = TokenNet(depth=3), tokens()
    for block in model.blocks:
        block.norm1, block.norm2 = kind(16), kind(16)
    gm = rewritten(model, x, "bottleneck").graph_module
    assert {module.norm for module in gm.modules() if isinstance(module, RecomputedBranch)} == {norm}
