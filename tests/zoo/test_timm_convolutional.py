from __future__ import annotations

from pathlib import Path

import pytest

import repl_fx
from tests.zoo.checks import SURROGATES, Case, check_capture, check_surrogate
from tests.zoo.models import timm_case

pytestmark = pytest.mark.zoo

CASES = [
    timm_case("resnet50", {"layer1": 2, "layer2": 3, "layer3": 5, "layer4": 2}),
    timm_case(
        "convnext_atto",
        {"stages.0.blocks": 2, "stages.1.blocks": 2, "stages.2.blocks": 6, "stages.3.blocks": 2},
    ),
    timm_case("efficientnet_b0", {"blocks.3": 2, "blocks.4": 2, "blocks.5": 3}),
]
# Two alike at most: there is no block with a kept one on both sides.
TOO_SHORT = [
    timm_case("resnet18", {"layer1": 2}, drop_path=0.0),
    timm_case("mobilenetv3_small_050", {"blocks.2": 2, "blocks.3": 2, "blocks.4": 2}),
]


# With drop path on, the first block of timm's ResNets has none, and so no two blocks of ResNet-18 are alike.
DROPPED = timm_case("resnet18", {})


@pytest.mark.parametrize("case", [*CASES, *TOO_SHORT, DROPPED], ids=str)
def test_captured_exactly_and_repeats_found(case: Case) -> None:
    check_capture(case)


@pytest.mark.parametrize("case", TOO_SHORT, ids=str)
def test_nothing_to_replace_says_what_was_found_and_why(case: Case) -> None:
    args, kwargs = case.inputs()
    name = next(iter(case.repeats))
    with pytest.raises(repl_fx.NothingToReplace) as caught:
        repl_fx.transform(case.build(), args, kwargs)
    assert f"found 2 blocks in {name}" in str(caught.value)
    assert f"{name}: it has 2 blocks, and a replaced block needs a kept one on both sides" in caught.value.reasons


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_transformed(case: Case, surrogate: str, tmp_path: Path) -> None:
    check_surrogate(case, surrogate, tmp_path)
