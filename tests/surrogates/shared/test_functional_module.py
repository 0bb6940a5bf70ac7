"""Leaf modules on state that comes from elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.surrogates.shared.blended_weights import BlendSynthesis
from repl_fx.surrogates.shared.functional_module import FunctionalModule
from tests.captures import transformed


class Standardised(nn.Conv2d):
    """Standardises its weight."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, padding=1)


class Masked(nn.Conv2d):
    """Sees no pixel to the right; the mask is a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)
        mask = torch.ones(3, 3)
        mask[:, 2] = 0
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * self.get_buffer("mask"), self.bias, padding=1)


def _conv(name: str) -> nn.Module:
    if name == "weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
    makers: dict[str, Callable[[], nn.Module]] = {
        "standardised": lambda: Standardised(4, 4, 3),
        "circular": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1),
        "same": lambda: nn.Conv2d(4, 4, 4, padding="same", dilation=2),
        "masked": lambda: Masked(4),
    }
    return makers[name]()


@pytest.mark.parametrize("kind", ["standardised", "circular", "transposed", "same", "masked"])
def test_layers_of_any_kind_run_their_own_code_on_blended_weights(kind: str) -> None:
    model = nn.Sequential(*(nn.Sequential(_conv(kind), nn.ReLU()) for _ in range(3)))
    x = torch.randn(2, 4, 6, 6)
    result = transformed(model, (x,), surrogate="blend")
    gm = result.graph_module
    blend = gm.get_submodule("surrogates.1.blend")
    assert isinstance(blend, BlendSynthesis)
    with torch.no_grad():
        before, own, after = (model.get_parameter(f"{i}.0.weight") for i in range(3))
        own.copy_(blend.alpha[0] * before + blend.beta[0] * after)
    assert torch.allclose(gm(x), model(x), atol=1e-6)
    assert torch.equal(repl_fx.fold(gm)(x[:1]), gm(x[:1]))
    assert "1.0.weight" not in dict(gm.named_parameters()) and "1.0.bias" in dict(gm.named_parameters())


def test_weights_computed_by_a_hook_are_blended_too() -> None:
    model = nn.Sequential(*(nn.Sequential(_conv("weight_norm"), nn.ReLU()) for _ in range(3)))
    x = torch.randn(2, 4, 6, 6)
    gm = transformed(model, (x,), surrogate="blend").graph_module
    gm(x).square().mean().backward()
    assert gm.get_parameter("surrogates.1.blend.alpha.0").grad is not None
    assert "1.0.weight_v" not in dict(gm.named_parameters()) and "1.0.weight_g" in dict(gm.named_parameters())


class Noisy(nn.Linear):
    """Adds noise in training."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input + torch.randn_like(input) if self.training else input)


def test_a_layer_with_a_mode_of_its_own_keeps_it() -> None:
    x = torch.randn(4, 8)
    for training in (True, False):
        model = nn.Sequential(*(nn.Sequential(Noisy(8, 8), nn.Tanh()) for _ in range(4))).train(training)
        gm = transformed(model, (x,), surrogate="blend").graph_module
        assert gm.training is training
        gm.eval()
        assert torch.equal(gm(x), gm(x))
        gm.train()
        assert not torch.equal(gm(x), gm(x))


def test_a_module_computes_with_the_state_it_is_given_and_keeps_none() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    call = FunctionalModule(layer, ("weight", "bias"))
    assert list(call.parameters()) == [] and len(list(layer.parameters())) == 2
    for _ in range(2):
        weight, bias = torch.randn(2, 3), torch.randn(2)
        assert torch.equal(call(weight, bias, x), F.linear(x, weight, bias))
    assert list(call.parameters()) == []
