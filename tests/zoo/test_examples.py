from __future__ import annotations

from pathlib import Path

import pytest

from repl_fx.sources import load_source
from tests.zoo.checks import Case, check_model, with_surrogates

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
# The residual network is that of timm, there through every stage.
TRANSFORMED = {"vit": "auto", "mlp": "identity", "plain_parameters": "bottleneck"}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "surrogate"), with_surrogates(CASES, TRANSFORMED), ids=str)
def test_captured_exactly_and_through_every_stage(case: Case, surrogate: str | None, tmp_path: Path) -> None:
    check_model(case, surrogate, tmp_path)
