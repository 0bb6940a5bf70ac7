from __future__ import annotations

from pathlib import Path

import pytest

from repl_fx.sources import load_source
from tests.zoo.checks import Case, check_capture, check_surrogate, transforms

EXAMPLES = Path(__file__).parents[2] / "examples"
REPEATS = {
    "resnet32": {"stage1": 5, "stage2": 4, "stage3": 4},
    "vit": {"blocks": 9},
    "gpt": {"blocks": 8},
    "mlp": {"blocks": 8},
    "plain_parameters": {"repeat_1": 6},
}


def _case(name: str) -> Case:
    path = str(EXAMPLES / f"{name}.py")
    return Case(
        name,
        lambda: load_source(path).model,
        lambda: ((source := load_source(path)).args, source.kwargs),
        REPEATS[name],
        modes_differ=name != "plain_parameters",
    )


CASES = [_case(name) for name in REPEATS]
TRANSFORMED = {"resnet32": "auto", "vit": "auto", "mlp": "identity", "plain_parameters": "bottleneck"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_captured_exactly_and_repeats_found(case: Case) -> None:
    check_capture(case)


@pytest.mark.parametrize(("case", "surrogate"), transforms(CASES, TRANSFORMED), ids=str)
def test_transformed(case: Case, surrogate: str, tmp_path: Path) -> None:
    check_surrogate(case, surrogate, tmp_path)
