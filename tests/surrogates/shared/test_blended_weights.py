"""Blends of whole weights: which weights are blended, and the gains they begin with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import repl_fx
from repl_fx.surrogates.shared.blended_weights import BlendSynthesis
from tests.captures import transformed
from tests.stages import Stages, images


def test_blend_refuses_neighbours_of_another_size() -> None:
    with pytest.raises(repl_fx.NothingToReplace, match=r"its own units.1.conv1.weight is 4x4x3x3|units.2.conv1"):
        transformed(Stages(2, 2, 2), (images(),), surrogate="blend")


def test_gains_keep_the_scale_of_fresh_and_of_agreeing_weights() -> None:
    own = torch.randn(200, 200)
    fresh = BlendSynthesis([own], [(torch.randn(200, 200), torch.randn(200, 200))], [None], True)
    assert fresh.alpha[0].item() == pytest.approx(2**-0.5, rel=0.02)
    agreeing = BlendSynthesis([own], [(own, own)], [None], True)
    assert agreeing.alpha[0].item() == pytest.approx(0.5)
    assert BlendSynthesis([own * 0], [(own * 0, own * 0)], [None], True).alpha[0].item() == pytest.approx(2**-0.5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose2d(4, 6, 3, padding=1), (1, 6, 1, 1)),
        (nn.ConvTranspose1d(4, 6, 3, padding=1), (1, 6, 1)),
        (nn.Conv1d(4, 6, 3, padding=1), (6, 1, 1)),
        (nn.Linear(4, 6), (6, 1)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_gain_belongs_to_an_output_channel(layer: nn.Module, shape: tuple[int, ...]) -> None:
    back: Any = nn.Linear(6, 4) if isinstance(layer, nn.Linear) else type(layer)(6, 4, 3, padding=1)
    model = nn.Sequential(*(nn.Sequential(copy.deepcopy(layer), copy.deepcopy(back)) for _ in range(3)))
    gm = transformed(model, (torch.randn(2, 4, *[5] * len(shape[2:])),), surrogate="blend").graph_module
    assert tuple(gm.get_parameter("surrogates.1.blend.alpha.0").shape) == shape


def test_a_gain_behind_a_transposed_convolution_belongs_to_its_own_layer() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.ConvTranspose2d(4, 6, 1), nn.Conv2d(6, 4, 1)) for _ in range(3)))
    gm = transformed(model, (torch.randn(2, 4, 5, 5),), surrogate="blend").graph_module
    shapes = [tuple(gm.get_parameter(f"surrogates.1.blend.alpha.{i}").shape) for i in range(2)]
    assert shapes == [(1, 6, 1, 1), (4, 1, 1, 1)]


@pytest.mark.parametrize("normalised", [(6,), (5, 6), (4, 5, 6)], ids=str)
def test_weights_of_norms_of_any_shape_stay_the_blocks_own(normalised: tuple[int, ...]) -> None:
    layers = (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.LayerNorm(normalised)) for _ in range(3))
    model = nn.Sequential(*layers)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 4, 5, 6)
    gm = transformed(model, (x,), surrogate="blend").graph_module
    blend = gm.get_submodule("surrogates.1.blend")
    assert isinstance(blend, BlendSynthesis) and len(blend.alpha) == 1
    with torch.no_grad():
        before, own, after = (model.get_parameter(f"{i}.0.weight") for i in range(3))
        own.copy_(blend.alpha[0] * before + blend.beta[0] * after)
    torch.testing.assert_close(gm(x), model(x))
