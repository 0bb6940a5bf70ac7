"""What is kept of where a module came from."""

from __future__ import annotations

import copy

import msgspec
import pytest

from repl_fx.plan import Plan
from repl_fx.tracing.parts.inputs import Inputs
from repl_fx.tracing.parts.origin import CONFIG, Described, Model, Origin, SourceOptions

OPTIONS = SourceOptions(None, 0, {})


@pytest.mark.parametrize(
    ("spec", "files", "beside"),
    [
        (f"hf:{CONFIG}:GPT2Model", {CONFIG: "0"}, True),
        (f"hf:{CONFIG}:LlamaModel", {CONFIG: "0"}, False),
        (f"hf:{CONFIG}:GPT2Model", {CONFIG: "0", "code.py": "1"}, False),
        ("hf:gpt2", {CONFIG: "0"}, False),
    ],
    ids=["beside", "another class", "code too", "elsewhere"],
)
def test_only_a_config_beside_the_manifest_is_no_code(spec: str, files: dict[str, str], beside: bool) -> None:
    assert Model(spec, OPTIONS, "GPT2Model", files).is_beside is beside


def test_an_origin_describes_itself_by_the_fields_of_a_manifest_alone() -> None:
    inputs = Inputs(args=(), kwargs={})
    origin = Origin(code="0", parts=(), eager=(), inputs=inputs, plan=Plan((), (), ""), structure=("a",), made=())
    assert origin.described().keys() == {field.name for field in msgspec.structs.fields(Described)}
    assert origin.described()["code"] == "0" and origin.described()["in_place"] is False
    assert copy.deepcopy(origin) is origin


def test_a_field_that_is_not_known_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `more`"):
        msgspec.convert({"input_shape": None, "seed": 0, "options": {}, "more": 1}, SourceOptions)
