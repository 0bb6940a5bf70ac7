from __future__ import annotations

from pathlib import Path

import pytest

from repl_fx.sources import load_source
from tests.zoo.checks import SURROGATES, Case, check_capture, check_surrogate

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
    source = load_source(path)
    modes_differ = name != "plain_parameters"
    return Case(
        name, lambda: load_source(path).model, lambda: (source.args, source.kwargs), REPEATS[name], modes_differ
    )


@pytest.mark.parametrize("name", REPEATS)
def test_captured_exactly_and_repeats_found(name: str) -> None:
    check_capture(_case(name))


@pytest.mark.parametrize("name", REPEATS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_transformed(name: str, surrogate: str, tmp_path: Path) -> None:
    check_surrogate(_case(name), surrogate, tmp_path)
