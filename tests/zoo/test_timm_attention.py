"""Attention and mixers of timm.

vit_tiny    blocks with stochastic depth and a class token; all stages of such a network are those of examples/vit.py
swin_tiny   windows, shifted ones, and stages of other widths
mixer_s32   products over positions, without attention
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.checks import Case, check_model
from tests.zoo.models import timm_case

pytestmark = pytest.mark.zoo

CASES = [
    timm_case("vit_tiny_patch16_224", {"blocks": 4}, depth=4),
    # The stage of six alternates plain and shifted windows: three pairs. In the last stage no window is shifted. Beside
    # them the attentions with plain windows, all MLPs, and the attentions with shifted windows are alike.
    timm_case("swin_tiny_patch4_window7_224", {"layers.2.blocks": 3, "layers.3.blocks": 2}, (7, 12, 5), 7),
    timm_case("mixer_s32_224", {"blocks": 8}),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_captured_exactly_and_repeats_found(case: Case, tmp_path: Path) -> None:
    check_model(case, None, tmp_path)
