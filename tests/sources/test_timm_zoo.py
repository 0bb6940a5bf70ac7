"""Models of timm."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from repl_fx.errors import BadInput, SourceError
from repl_fx.sources import Purpose, load_source
from tests.sources.hub import Hub
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
        ("timm:resnet18", {"num_clases": 1}, r"resnet18 takes no argument 'num_clases'; did you mean num_classes"),
        ("timm:resnet18", {"act_layer": "no"}, r"timm:resnet18 could not be built: "),
        (
            "timm:test_vit.r160_in2k",
            {},
            r"timm has no weights 'r160_in2k' of test_vit; did you mean test_vit.r160_in1k",
        ),
    ],
)
def test_timm_errors(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((SourceError, BadInput), match=message):
        load_source(spec, options=options)


def test_a_model_is_built_for_its_data_where_nothing_else_is_said() -> None:
    purpose = Purpose("classification", 7, (1, 64, 64))
    source = load_source("timm:test_vit", purpose=purpose)
    assert run(source).shape == (2, 7) and source.args[0].shape == (2, 1, 64, 64)
    assert source.notes == (
        "built with in_chans=1, img_size=(64, 64), num_classes=7, as the data want it (--arg says otherwise)",
    )
    # The same again, without the data.
    again = load_source(source.spec, **json.loads(json.dumps(source.options)))
    assert run(again).shape == (2, 7) and again.args[0].shape == (2, 1, 64, 64)
    assert run(load_source("timm:test_vit", purpose=purpose, options={"num_classes": 9})).shape == (2, 9)
    assert load_source("timm:test_vit", purpose=purpose, input_shape="2x3x160x160").args[0].shape[1] == 3


def test_weights_come_from_the_cache_of_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_source("timm:test_vit", seed=5).model
    place = hub.add("timm/test_vit.r160_in1k", "a" * 40)
    save_file(trained.state_dict(), place / "model.safetensors")
    source = load_source("timm:test_vit.r160_in1k", pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(source.model.parameters(), trained.parameters(), strict=True))
    assert source.notes == ("weights are those of timm/test_vit.r160_in1k",) and source.options["pretrained"]
    headed = load_source("timm:test_vit", pretrained=True, options={"num_classes": 4})
    assert headed.notes[1] == "its classifier is random: 4 classes, not 1000"
    # The artifact of such a model has its weights.
    bare = load_source("timm:test_vit", pretrained=True, weights=False)
    assert not torch.equal(next(bare.model.parameters()), next(trained.parameters()))
    with pytest.raises(SourceError, match=r"the weights of timm:test_vit2 are not in the cache .*fetch https://hug"):
        load_source("timm:test_vit2", pretrained=True)
    with pytest.raises(BadInput, match=r"timm has no weights of .*; leave out --pretrained"):
        load_source("timm:vit_giant_patch14_224", pretrained=True)


def test_a_zoo_of_positional_inputs_takes_no_names() -> None:
    with pytest.raises(BadInput, match="takes its inputs by position; leave the name 'x' out"):
        load_source("timm:resnet18", input_shape="x:2x3x64x64")
