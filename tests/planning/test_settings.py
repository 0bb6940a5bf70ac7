"""Settings of a model and of a plan, as flags and YAML files give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from repl_fx.errors import BadInput
from repl_fx.plan import Plan
from repl_fx.planning.settings import ModelSettings, PlanSettings, converted, given_among


def test_flags_that_are_not_given_change_nothing() -> None:
    given: dict[str, Any] = {"every": 3, "blocks": None, "ignore": [], "checkpoint_blocks": False}
    assert given_among(given) == {"every": 3, "checkpoint_blocks": False}
    settings = PlanSettings(surrogate="blend").changed(**given)
    assert (settings.every, settings.surrogate, settings.ignore) == (3, "blend", ())


def test_options_are_those_of_transform(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps({"a": 1.0}))
    chosen = PlanSettings().changed(blocks="3,name", set=["ratio=0.5"], ignore=["*.x"], fixed="height, width")
    assert chosen.transform_options() == {
        **{"surrogate": "auto", "ignore": ("*.x",), "settings": {"ratio": 0.5}, "finder": None, "plan": None},
        **{"fixed": ("height", "width"), "graph": False, "checkpoint_blocks": False, "every": 2, "blocks": [3, "name"]},
    }
    limited = PlanSettings().changed(budget=["params=0.7"], scores=str(tmp_path / "scores.json"))
    options = limited.transform_options()
    assert options["budget"] == {"params": 0.7} and options["scores"] == {"a": 1.0} and "every" not in options
    (tmp_path / "plan.json").write_text(Plan((), (), "").to_json())
    assert PlanSettings().changed(plan=str(tmp_path / "plan.json")).transform_options()["plan"] == Plan((), (), "")


def test_options_of_a_source_are_those_of_load_source() -> None:
    settings = ModelSettings().changed(arg=["num_classes=10", "img_size=[32, 48]", "act=none"], weights="net.pt")
    assert settings.source_options() == {
        "input_shape": None,
        "options": {"num_classes": 10, "img_size": [32, 48], "act": None},
        "weights": Path("net.pt"),
        "pretrained": False,
    }
    assert ModelSettings().source_options()["weights"] is True


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"every": 0}, "the flags: every is 0; it must be int >= 1"),
        ({"evry": 2}, r"the flags: no setting 'evry'; did you mean every"),
        ({"plan": "p", "every": 3, "set": ["a=1"]}, "plan says which blocks go; leave out --every, --set"),
        ({"pretrained": True, "weights": "a"}, "pretrained and weights both say which weights the model has"),
    ],
)
def test_what_cannot_be_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        PlanSettings().changed(**given)


def test_a_file_is_named_and_its_settings_without_dashes() -> None:
    with pytest.raises(BadInput, match=r"^run.yaml: plan says which blocks go; leave out every$"):
        converted(PlanSettings, {"plan": "p", "every": 3}, "run.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ModelSettings(arg=("depth",)), "--arg 'depth' is no argument; write it like num_classes=10"),
        (ModelSettings(arg=("a=1", "a=2")), "--arg a is given twice; give each argument once"),
    ],
)
def test_arguments_that_are_none_are_named(settings: ModelSettings, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        settings.source_options()


def test_an_empty_name_of_a_dimension_is_refused() -> None:
    with pytest.raises(BadInput, match="has an empty item; write it like height,width"):
        PlanSettings(fixed="height,").transform_options()


def test_options_that_do_not_go_together() -> None:
    assert PlanSettings(budget=("params=0.5",)).planning_options() == {"budget": {"params": 0.5}}
    with pytest.raises(BadInput, match="leave out every, or the budget"):
        PlanSettings(every=3, budget=("params=0.5",)).planning_options()
