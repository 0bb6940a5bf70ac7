"""Blends of whole weights: which are blended, the gains they begin with, and leaf modules on blended state."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.surrogates.shared.blended_weights import BlendSynthesis, FunctionalModule
from tests.stages import Stages, images


def test_blend_refuses_neighbours_of_another_size() -> None:
    with pytest.raises(repl_fx.NothingToReplace, match=r"its own units.1.conv1.weight is 4x4x3x3|units.2.conv1"):
        repl_fx.transform(Stages(2, 2, 2), (images(),), surrogate="blend")


def test_gains_keep_the_scale_of_fresh_and_of_agreeing_weights() -> None:
    own = torch.randn(200, 200)
    fresh = BlendSynthesis([own], [(torch.randn(200, 200), torch.randn(200, 200))], [None], True)
    assert fresh.alpha[0].item() == pytest.approx(2**-0.5, rel=0.02)
    agreeing = BlendSynthesis([own], [(own, own)], [None], True)
    assert agreeing.alpha[0].item() == pytest.approx(0.5)
    assert BlendSynthesis([own * 0], [(own * 0, own * 0)], [None], True).alpha[0].item() == pytest.approx(2**-0.5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(4, 6, 3, padding=1),
        nn.ConvTranspose1d(4, 6, 3, padding=1),
        nn.Conv1d(4, 6, 3, padding=1),
        nn.Linear(4, 6),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_gain_belongs_to_an_output_channel(layer: nn.Module) -> None:
    back: Any = nn.Linear(6, 4) if isinstance(layer, nn.Linear) else type(layer)(6, 4, 3, padding=1)
    model = nn.Sequential(*(nn.Sequential(copy.deepcopy(layer), copy.deepcopy(back)) for _ in range(3)))
    x = torch.randn(2, 4, *[5] * (layer.get_parameter("weight").ndim - 2))
    gm = repl_fx.transform(model, (x,), surrogate="blend").graph_module
    assert tuple(gm.get_parameter("surrogates.1.blend.alpha.0").shape) == (6,)


def test_a_gain_behind_a_transposed_convolution_belongs_to_its_own_layer() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.ConvTranspose2d(4, 6, 1), nn.Conv2d(6, 4, 1)) for _ in range(3)))
    gm = repl_fx.transform(model, (torch.randn(2, 4, 5, 5),), surrogate="blend").graph_module
    shapes = [tuple(gm.get_parameter(f"surrogates.1.blend.alpha.{i}").shape) for i in range(2)]
    assert shapes == [(6,), (4,)]


@pytest.mark.parametrize("normalised", [(6,), (5, 6), (4, 5, 6)], ids=str)
def test_weights_of_norms_of_any_shape_stay_the_blocks_own(normalised: tuple[int, ...]) -> None:
    layers = (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.LayerNorm(normalised)) for _ in range(3))
    model = nn.Sequential(*layers)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 4, 5, 6)
    gm = repl_fx.transform(model, (x,), surrogate="blend").graph_module
    blend = gm.get_submodule("surrogates.1.blend")
    assert isinstance(blend, BlendSynthesis) and len(blend.alpha) == 1
    with torch.no_grad():
        before, own, after = (model.get_parameter(f"{i}.0.weight") for i in range(3))
        own.copy_(_blended(blend, before, after))
    torch.testing.assert_close(gm(x), model(x))


def _blended(blend: BlendSynthesis, before: Tensor, after: Tensor, axis: int = 0) -> Tensor:
    """The first weight, from gains along one of its axes."""
    pairs = ((blend.alpha[0], before), (blend.beta[0], after))
    made: Tensor = sum(gain * weight.movedim(axis, -1) for gain, weight in pairs).movedim(-1, axis)
    return made


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
    result = repl_fx.transform(model, (x,), surrogate="blend")
    gm = result.graph_module
    blend = gm.get_submodule("surrogates.1.blend")
    assert isinstance(blend, BlendSynthesis)
    with torch.no_grad():
        before, own, after = (model.get_parameter(f"{i}.0.weight") for i in range(3))
        own.copy_(_blended(blend, before, after, axis=int(kind == "transposed")))
    assert torch.allclose(gm(x), model(x), atol=1e-6)
    assert torch.equal(repl_fx.fold(gm)(x[:1]), gm(x[:1]))
    assert "1.0.weight" not in dict(gm.named_parameters()) and "1.0.bias" in dict(gm.named_parameters())


def test_weights_computed_by_a_hook_are_blended_too() -> None:
    model = nn.Sequential(*(nn.Sequential(_conv("weight_norm"), nn.ReLU()) for _ in range(3)))
    x = torch.randn(2, 4, 6, 6)
    gm = repl_fx.transform(model, (x,), surrogate="blend").graph_module
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
        gm = repl_fx.transform(model, (x,), surrogate="blend").graph_module
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


def test_gains_of_complex_weights_keep_their_scale() -> None:
    before, after = torch.randn(2, 8, 8, dtype=torch.complex64)
    made = BlendSynthesis([1j * (before + after)], [(before, after)], [None], True)
    assert made.alpha[0].item() == pytest.approx(1.0)
