"""Small networks of transformers.

bert     norms behind the additions, a mask
gpt2     weights that are (in, out)
llama    rotary positions, grouped heads, gated units
vit      a class token and patches
t5       an encoder and a decoder, with a table of positions that the first block makes for all
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.checks import Case, check_model, with_surrogates
from tests.zoo.models import TRANSFORMERS

pytestmark = pytest.mark.zoo

TRANSFORMED = {"bert": "auto", "llama": "blend", "vit": "bottleneck", "t5": "identity"}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "surrogate"), with_surrogates(TRANSFORMERS, TRANSFORMED), ids=str)
def test_captured_exactly_and_through_every_stage(case: Case, surrogate: str | None, tmp_path: Path) -> None:
    check_model(case, surrogate, tmp_path)
