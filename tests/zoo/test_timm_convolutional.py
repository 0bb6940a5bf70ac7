"""Convolutional networks of timm.

resnet18            blocks of two convolutions, their norms and additions behind them
resnet50            blocks of three, of four widths
mobilenetv3_small   inverted residuals with squeeze and excitation, which are those of the EfficientNets, too
convnext_atto       channels last, layer scale, stochastic depth
"""

from __future__ import annotations

from pathlib import Path

import pytest

import repl_fx
from tests.zoo.checks import Case, check_model, with_surrogates
from tests.zoo.models import timm_case

pytestmark = pytest.mark.zoo

CASES = [
    # All its blocks are alike up to width and stride; the second of each stage but the last can go.
    timm_case("resnet18", {"layer1": 2}, (8,), 3, size=96),
    timm_case("resnet50", {"layer1": 2, "layer2": 3, "layer3": 5, "layer4": 2}, (16,), 5, size=96),
    timm_case("mobilenetv3_small_050", {"blocks.2": 2, "blocks.3": 2, "blocks.4": 2}, (6,), 2, size=96),
    timm_case(
        "convnext_atto",
        {"stages.0.blocks": 2, "stages.1.blocks": 2, "stages.2.blocks": 6, "stages.3.blocks": 2},
        (12,),
        5,
        size=96,
    ),
]

TRANSFORMED = {"resnet18": "auto", "mobilenetv3_small_050": "auto", "convnext_atto": "blend"}


@pytest.mark.slow
def test_nothing_to_replace_says_what_was_found_and_why() -> None:
    args, kwargs = CASES[0].inputs()
    with pytest.raises(repl_fx.NothingToReplace) as caught:
        repl_fx.transform(CASES[0].build(), args, kwargs, surrogate="blend")
    assert "found 2 blocks in layer1, 8 blocks in similar_1" in str(caught.value)
    assert "layer1: it has 2 blocks, and a replaced block needs a kept one on both sides" in caught.value.reasons
    assert any("its own layer2.1.conv1.weight is 128x128x3x3" in reason for reason in caught.value.reasons)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "surrogate"), with_surrogates(CASES, TRANSFORMED), ids=str)
def test_captured_exactly_and_through_every_stage(case: Case, surrogate: str | None, tmp_path: Path) -> None:
    check_model(case, surrogate, tmp_path)
