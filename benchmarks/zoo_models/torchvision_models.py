"""Every model of torchvision except the quantized ones: classification, segmentation, detection, video, optical flow.

Random weights, dropout and stochastic depth at the defaults of torchvision, auxiliary heads on. Images are 96x96 and
clips 8x64x64 where the model takes them. Detection models get images with targets, which training needs, and keep boxes
of low score, because with random weights there are no others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.zoo_models.case import PICTURES, Built, Case
from benchmarks.zoo_models.weights import wake

KINDS = ("segmentation", "detection", "video", "optical_flow", "quantization")
SIZE = 96
# Other sizes of images, where a pooling or a window of fixed size needs them.
SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 112}
CLIP = (3, 8, 64, 64)
CLIPS = {"s3d": (3, 16, 224, 224)}
PAIR = (3, 128, 128)
# The argument that fixes the size of images when a model is built.
FIXED = {"vit_": "image_size"}
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": True},
    "inception_v3": {"init_weights": True},
}
SMALL = {"min_size": 128, "max_size": 160}
LOW = 0.001


def cases() -> list[Case]:
    """The models in the order of their kinds, by name."""
    return [
        Case(
            f"torchvision:{name}",
            kind,
            functools.partial(build, name, kind),
            data=PICTURES if kind == "classification" else "",
        )
        for name, kind in _models()
    ]


def _models() -> list[tuple[str, str]]:
    from torchvision import models

    kind_of = {name: kind for kind in KINDS for name in models.list_models(module=getattr(models, kind))}
    listed = [(name, kind_of.get(name, "classification")) for name in models.list_models()]
    order = ("classification", *KINDS)
    return sorted((pair for pair in listed if pair[1] != "quantization"), key=lambda p: (order.index(p[1]), p[0]))


def build(name: str, kind: str) -> Built:
    """A model of torchvision and a batch of two of what it takes."""
    from torchvision import models

    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None, **OPTIONS.get(name, {})}
    if kind in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if kind == "segmentation" and not name.startswith("lraspp"):
        options["aux_loss"] = True
    if kind == "detection":
        options.update(_detection(name))
    for prefix, argument in FIXED.items():
        if name.startswith(prefix):
            options[argument] = SIZES.get(name, SIZE)
    with _sized_clips(models.video.mvit):
        model = models.get_model(name, **options)
    wake(model)
    if kind == "detection":
        return model, _targets(keypoints="keypoint" in name, masks="mask" in name), {}
    if kind == "optical_flow":
        # Each update is the same layers again.
        return model, (torch.rand(2, *PAIR), torch.rand(2, *PAIR)), {"num_flow_updates": 4}
    size = SIZES.get(name, SIZE)
    sample = CLIPS.get(name, CLIP) if kind == "video" else (3, size, size)
    return model, (torch.randn(2, *sample),), {}


@contextmanager
def _sized_clips(mvit: ModuleType) -> Iterator[None]:
    """Let MViT be built for smaller clips: its functions pass the size of Kinetics on, and no other."""
    original = mvit._mvit

    def sized(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "spatial_size": CLIP[2:], "temporal_size": CLIP[1]})

    with patch.object(mvit, "_mvit", sized):
        yield


def _detection(name: str) -> dict[str, Any]:
    if name.startswith(("ssd", "fcos", "retinanet")):
        return {"score_thresh": LOW, "detections_per_img": 20, **({} if name.startswith("ssd") else SMALL)}
    return {"box_score_thresh": LOW, "box_detections_per_img": 20, **SMALL}


def _targets(*, keypoints: bool, masks: bool) -> tuple[Any, ...]:
    images = [torch.rand(3, 96, 128), torch.rand(3, 112, 96)]
    targets = []
    for image in images:
        boxes = torch.tensor([[4.0, 6.0, 50.0, 60.0], [20.0, 10.0, 90.0, 80.0]])
        target = {"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64)}
        if masks:
            target["masks"] = torch.randint(0, 2, (2, *image.shape[1:]), dtype=torch.uint8)
        if keypoints:
            points = torch.rand(2, 17, 3)
            points[..., :2] = boxes[:, None, :2] + points[..., :2] * 40
            points[..., 2] = 1
            target["keypoints"] = points
        targets.append(target)
    return images, targets
