"""Models of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from repl_fx.errors import BadInput, SourceError
from repl_fx.sources import Purpose, load_source
from tests.sources.model_file import run
from tests.sources.packages import needs

pytestmark = needs("torchvision")


def test_torchvision() -> None:
    source = load_source("torchvision:resnet18", options={"num_classes": 5}, input_shape="2x3x64x64")
    assert run(source).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("squeezenet1_1", [(2, 3, 224, 224)]),
        ("googlenet", [(2, 3, 224, 224)]),
        ("inception_v3", [(2, 3, 299, 299)]),
        ("r3d_18", [(2, 3, 16, 112, 112)]),
        ("raft_small", [(2, 3, 224, 224), (2, 3, 224, 224)]),
        ("lraspp_mobilenet_v3_large", [(2, 3, 224, 224)]),
    ],
)
def test_torchvision_inputs(name: str, shapes: list[tuple[int, ...]]) -> None:
    assert [a.shape for a in load_source(f"torchvision:{name}").args] == shapes


def test_torchvision_detection_takes_images_and_what_is_in_them() -> None:
    images, targets = load_source("torchvision:ssdlite320_mobilenet_v3_large", input_shape="2x3x64x96").args
    assert [image.shape for image in images] == [(3, 64, 96)] * 2
    for target in targets:
        left, top, right, bottom = target["boxes"].unbind(1)
        assert bool((left >= 0).all() and (left < right).all() and (right <= 96).all())
        assert bool((top >= 0).all() and (top < bottom).all() and (bottom <= 64).all())
        assert target["masks"].shape == (2, 64, 96) and target["keypoints"].shape == (2, 17, 3)
        assert all(mask.any() for mask in target["masks"])


def test_torchvision_builds_a_transformer_for_the_input_shape() -> None:
    assert run(load_source("torchvision:vit_b_32", input_shape="2x3x64x64")).shape == (2, 1000)
    with pytest.raises(BadInput, match="takes square images, not 64x32"):
        load_source("torchvision:vit_b_32", input_shape="2x3x64x32")


def test_torchvision_unknown_name() -> None:
    with pytest.raises(SourceError, match="torchvision has no model 'resnt18'; did you mean resnet18"):
        load_source("torchvision:resnt18")


def test_weights_come_from_the_cache_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    trained = load_source("torchvision:squeezenet1_1", seed=5).model
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(trained.state_dict(), tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    for spec in ("torchvision:squeezenet1_1", "torchvision:squeezenet1_1.IMAGENET1K_V1"):
        source = load_source(spec, pretrained=True, input_shape="2x3x64x64")
        assert all(torch.equal(a, b) for a, b in zip(source.model.parameters(), trained.parameters(), strict=True))
        assert source.notes == ("weights are SqueezeNet1_1_Weights.IMAGENET1K_V1 of torchvision",)
    bare = load_source("torchvision:squeezenet1_1", pretrained=True, weights=False)
    assert bare.notes == () and not torch.equal(next(bare.model.parameters()), next(trained.parameters()))

    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    message = rf"resnet18 are not in {tmp_path}/hub/checkpoints, and could not be downloaded .*fetch https://.*resnet18"
    with pytest.raises(SourceError, match=message):
        load_source("torchvision:resnet18", pretrained=True)
    with pytest.raises(BadInput, match=r"no weights 'IMAGENET1K_V2' of resnet18; .*known are IMAGENET1K_V1"):
        load_source("torchvision:resnet18.IMAGENET1K_V2")


@pytest.mark.slow
def test_a_model_is_built_for_its_data_where_nothing_else_is_said() -> None:
    source = load_source("torchvision:vit_b_32", purpose=Purpose("classification", 7, (3, 64, 64)))
    assert run(source).shape == (2, 7) and source.args[0].shape == (2, 3, 64, 64)
    assert source.options["options"] == {"num_classes": 7, "image_size": 64}
    with pytest.raises(BadInput, match=r"resnet18 takes no argument 'num_clases'; did you mean num_classes"):
        load_source("torchvision:resnet18", options={"num_clases": 3})
