"""Models of timm."""

from __future__ import annotations

from typing import Any

import pytest

from repl_fx.errors import BadInput, SourceError
from repl_fx.sources import load_source
from tests.sources.model_file import run
from tests.sources.packages import needs

pytestmark = needs("timm")


def test_timm() -> None:
    source = load_source("timm:resnet18", options={"num_classes": 5}, input_shape="2x3x64x64")
    assert run(source).shape == (2, 5)
    assert source.files == {} and source.absolute == source.spec
    assert load_source("timm:test_vit").args[0].shape == (2, 3, 160, 160)


def test_timm_builds_a_model_of_fixed_size_for_the_input_shape() -> None:
    source = load_source("timm:test_vit", input_shape="2x1x64x32")
    assert source.args[0].shape == (2, 1, 64, 32)
    assert run(source).shape == (2, 1000)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("timm:resnt18", {}, r"timm has no model 'resnt18'; did you mean resnet18"),
        ("timm:resnet18", {"no_such": 1}, r"timm:resnet18 could not be built: TypeError: .*no_such"),
    ],
)
def test_timm_errors(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load_source(spec, options=options)


def test_a_zoo_of_positional_inputs_takes_no_names() -> None:
    with pytest.raises(BadInput, match="takes its inputs by position; leave the name 'x' out"):
        load_source("timm:resnet18", input_shape="x:2x3x64x64")
