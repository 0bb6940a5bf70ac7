from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.checks import Case, check_capture, check_surrogate, transforms
from tests.zoo.models import timm_case

pytestmark = pytest.mark.zoo

CASES = [
    timm_case("vit_tiny_patch16_224", {"blocks": 12}),
    # The stage of six alternates plain and shifted windows: three pairs. In the last stage no window is shifted. Beside
    # them the attentions with plain windows, all MLPs, and the attentions with shifted windows are alike.
    timm_case("swin_tiny_patch4_window7_224", {"layers.2.blocks": 3, "layers.3.blocks": 2}, (5, 12, 5), 6),
    timm_case("mixer_s32_224", {"blocks": 8}),
]

TRANSFORMED = {"vit_tiny_patch16_224": "auto"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_captured_exactly_and_repeats_found(case: Case) -> None:
    check_capture(case)


@pytest.mark.parametrize(("case", "surrogate"), transforms(CASES, TRANSFORMED), ids=str)
def test_transformed(case: Case, surrogate: str, tmp_path: Path) -> None:
    check_surrogate(case, surrogate, tmp_path)
