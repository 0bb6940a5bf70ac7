"""The preprocessing that weights come with: pictures come out as from the library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from repl_fx.sources.preprocessing import of_processor, of_timm, of_torchvision
from repl_fx.tracing.parts.origin import Preprocessing
from repl_fx.training.data.augmentation import Normalise
from repl_fx.training.data.pictures import Pictures

pytestmark = pytest.mark.zoo
SIZES = ((300, 211), (64, 97), (224, 224))


def _pictures() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [
        Image.fromarray(torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator).numpy())
        for width, height in SIZES
    ]


def _prepared(preprocessing: Preprocessing) -> list[Tensor]:
    """The pictures as a run gives them to a model."""
    pictures = Pictures([(one, 0) for one in _pictures()], lambda handle: handle, preprocessing)
    normalise = Normalise(preprocessing.mean, preprocessing.std)
    return [
        normalise(pictures[index][0].unsqueeze(0), torch.zeros(1), torch.Generator())[0][0]
        for index in range(len(SIZES))
    ]


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vit_tiny_patch16_224", "test_vit", "eva02_tiny_patch14_224"])
def test_pictures_are_those_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False)
    preprocessing = of_timm(model, name)
    assert preprocessing is not None
    own = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    for found, picture in zip(_prepared(preprocessing), _pictures(), strict=True):
        assert torch.equal(found, own(picture))


def test_pictures_that_timm_frames_have_no_preprocessing() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", pretrained=False)
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_mode": "border"}
    assert of_timm(model, "test_vit") is None


@pytest.mark.parametrize(
    "name", ["ResNet50_Weights", "ViT_B_16_Weights", "EfficientNet_B1_Weights", "FCN_ResNet50_Weights"]
)
def test_pictures_are_those_of_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    weights = models.get_weight(f"{name}.DEFAULT")
    preprocessing = of_torchvision(weights)
    assert preprocessing is not None and preprocessing.by == f"torchvision's {weights}"
    for found, picture in zip(_prepared(preprocessing), _pictures(), strict=True):
        assert torch.equal(found, weights.transforms()(picture))


def test_detection_of_torchvision_has_none() -> None:
    models = pytest.importorskip("torchvision.models")
    assert of_torchvision(models.detection.FasterRCNN_ResNet50_FPN_Weights.DEFAULT) is None


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViTImageProcessor", {"size": {"height": 48, "width": 48}}),
        ("ViTImageProcessor", {"do_normalize": False}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 60}, "crop_size": {"height": 48, "width": 48}}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}, "crop_pct": 0.875}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ],
)
def test_pictures_are_those_of_transformers(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, kind)(**options)
    processor.save_pretrained(tmp_path)
    preprocessing = of_processor(tmp_path)
    assert preprocessing is not None
    for found, picture in zip(_prepared(preprocessing), _pictures(), strict=True):
        own = processor(picture, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(found, own, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("text", [None, "{", '{"image_mean": [0.5], "rescale_factor": 1}', '{"feature_size": 80}'])
def test_another_processor_is_none(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    assert of_processor(tmp_path) is None


def test_sizes_are_said_in_words() -> None:
    assert str(Preprocessing("a", (235,), "bicubic", (224, 224))) == (
        "the shorter side brought to 235 pixels, bicubic, the middle 224 x 224 taken"
    )
    assert str(Preprocessing("a", (32, 48))) == "it is brought to 32 x 48 pixels, bilinear"
    assert str(Preprocessing("a")) == ""
