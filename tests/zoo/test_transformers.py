from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.checks import Case, check_capture, check_surrogate, transforms
from tests.zoo.models import TRANSFORMERS

pytestmark = pytest.mark.zoo

TRANSFORMED = {"bert": "auto", "llama": "blend", "vit": "bottleneck", "t5": "identity"}


@pytest.mark.parametrize("case", TRANSFORMERS, ids=str)
def test_captured_exactly_and_repeats_found(case: Case) -> None:
    check_capture(case)


@pytest.mark.parametrize(("case", "surrogate"), transforms(TRANSFORMERS, TRANSFORMED), ids=str)
def test_transformed(case: Case, surrogate: str, tmp_path: Path) -> None:
    check_surrogate(case, surrogate, tmp_path)
