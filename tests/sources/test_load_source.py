"""Model specifications: what each kind builds, and what each mistake is told."""

from __future__ import annotations

import json

import pytest
import torch

from repl_fx.errors import BadInput, SourceError
from repl_fx.sources import load_source
from tests.sources.model_file import MODEL, Write, run


def test_the_source_can_be_built_again_from_its_options(write: Write) -> None:
    source = load_source(str(write(MODEL)), input_shape="3x4", options={"width": 5}, seed=7)
    again = load_source(source.spec, **json.loads(json.dumps(source.options)))
    assert torch.equal(source.args[0], again.args[0])
    assert torch.equal(run(source), run(again))


def test_the_seed_decides_weights_and_inputs_and_the_global_state_stays(write: Write) -> None:
    path = str(write(MODEL))
    state = torch.get_rng_state()
    first, same, other = (load_source(path, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.args[0], same.args[0]) and torch.equal(run(first), run(same))
    assert not torch.equal(first.args[0], other.args[0])
    assert not torch.equal(first.model.get_parameter("weight"), other.model.get_parameter("weight"))


def test_nested_inputs_follow_the_device(write: Write) -> None:
    path = write(MODEL.replace("(torch.randn(2, 4),)", "({'a': [torch.ones(2, 4), 3]},)"))
    source = load_source(str(path), device="meta")
    assert source.args[0]["a"][0].device.type == "meta"
    assert source.args[0]["a"][1] == 3
    assert source.model.get_parameter("weight").device.type == "meta"


def test_empty_specification() -> None:
    with pytest.raises(SourceError, match="the model specification is empty"):
        load_source("")


def test_meta_parameters(write: Write) -> None:
    path = str(write(MODEL.replace("nn.Linear(4, width)", "nn.Linear(4, width, device='meta')")))
    with pytest.raises(SourceError, match=r"tensors on the meta device, without values: weight and 1 more; give them"):
        load_source(path)
    assert load_source(path, device="meta").model.get_parameter("weight").is_meta


def test_options_have_to_be_json(write: Write) -> None:
    with pytest.raises(BadInput, match="serialisable as JSON"):
        load_source(str(write(MODEL)), options={"width": torch.float32})


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there(write: Write, device: str) -> None:
    with pytest.raises(BadInput, match=f"device '{device}' cannot be used here .*'cpu' always can"):
        load_source(str(write(MODEL)), device=device)


@pytest.mark.gpu
def test_a_device_gets_the_same_weights_and_keeps_its_random_state(write: Write) -> None:
    path = str(write(MODEL))
    state = torch.cuda.get_rng_state()
    there, here = load_source(path, device="cuda"), load_source(path)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert there.args[0].is_cuda and torch.equal(there.args[0].cpu(), here.args[0])
    assert torch.equal(there.model.get_parameter("weight").cpu(), here.model.get_parameter("weight"))


@pytest.mark.parametrize("zoo", ["timm", "torchvision", "hf"])
def test_a_zoo_without_a_name(zoo: str) -> None:
    with pytest.raises(SourceError, match=f"names no model; write {zoo}:NAME"):
        load_source(f"{zoo}:")


def test_an_unknown_zoo() -> None:
    with pytest.raises(
        SourceError, match=r"no kind of model 'tim'; did you mean timm\?; known are timm:, torchvision:, hf:"
    ):
        load_source("tim:resnet18")


def test_a_model_takes_a_checkpoint_of_its_own(write: Write) -> None:
    path = str(write(MODEL))
    trained = load_source(path, seed=3)
    source = load_source(path, weights=trained.model.state_dict())
    assert torch.equal(source.model.get_parameter("weight"), trained.model.get_parameter("weight"))
    assert source.notes == ("weights are those of the given state, 2 tensors",)
    # The inputs are still those of the seed.
    assert torch.equal(source.args[0], load_source(path).args[0])
    assert load_source(source.spec, **source.options).notes == ()
    with pytest.raises(BadInput, match=r"does not fit Linear: 1 key of Linear is missing in it \(bias\)"):
        load_source(path, weights={"weight": torch.ones(8, 4)})
