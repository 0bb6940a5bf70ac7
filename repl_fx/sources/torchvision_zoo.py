"""Models of torchvision: `torchvision:NAME`, with random weights."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from repl_fx.errors import BadInput, SourceError, close_matches
from repl_fx.sources.input_shapes import InputShape, positional
from repl_fx.sources.source import Built, Request, import_zoo, package_code

# Shapes of one sample where it is not a 224×224 image: inception has a stem for 299, the video networks take clips.
_SAMPLES = {
    "inception_v3": (3, 299, 299),
    "quantized_inception_v3": (3, 299, 299),
    "s3d": (3, 16, 224, 224),
    "mvit_v1_b": (3, 16, 224, 224),
    "mvit_v2_s": (3, 16, 224, 224),
}
_CLIP = (3, 16, 112, 112)
# Of a person, in the data that keypoint detection is trained on.
_KEYPOINTS = 17
# Transformers whose size is fixed when they are built, and the argument that fixes it.
_FIXED_SIZE = {"vit_": "image_size", "maxvit_": "input_size"}


def build(request: Request) -> Built:
    """Create a model of torchvision; options are keyword arguments of its builder.

    Returns:
        The model with a batch of two images; two clips for a video model, two pairs for optical flow; for detection a
        list of two images and a list of what is to be found in each, which training needs.
    """
    spec = f"torchvision:{request.name}"
    models = import_zoo("torchvision", spec).models
    known = models.list_models()
    if request.name not in known:
        raise SourceError(f"torchvision has no model {request.name!r}{close_matches(request.name, known)}")
    options = {**_defaults(models, request, spec), **request.options}
    with package_code(f"{spec} could not be built"):
        model = models.get_model(request.name, **options)
    return Built(model, _inputs(models, request, options, spec))


def _defaults(models: Any, request: Request, spec: str) -> dict[str, Any]:
    accepted = inspect.signature(models.get_model_builder(request.name)).parameters
    options: dict[str, Any] = {"weights": None}
    # Without it, a detection or segmentation model downloads a trained backbone.
    if "weights_backbone" in accepted:
        options["weights_backbone"] = None
    # The default, which torchvision warns about unless it is spelled out.
    if request.name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    if request.shapes is not None:
        for prefix, argument in _FIXED_SIZE.items():
            if request.name.startswith(prefix) and len(request.shapes[0].sizes) == 4:
                *_, height, width = request.shapes[0].sizes
                if prefix == "vit_" and height != width:
                    raise BadInput(f"{spec} takes square images, not {height}x{width}; change the input shape")
                options[argument] = height if prefix == "vit_" else (height, width)
    return options


def _inputs(models: Any, request: Request, options: dict[str, Any], spec: str) -> tuple[Any, ...]:
    kinds = ("video", "optical_flow", "detection")
    kind = next((k for k in kinds if request.name in models.list_models(module=getattr(models, k))), "image")
    sample = _SAMPLES.get(request.name, _CLIP if kind == "video" else (3, 224, 224))
    if isinstance(size := options.get("image_size"), int):
        sample = (3, size, size)
    shapes = request.shapes or (InputShape((2, *sample)),) * (2 if kind == "optical_flow" else 1)
    tensors = positional(shapes, request.generator, spec)
    if kind == "detection":
        images: list[Tensor] = [image for batch in tensors for image in batch.unbind(0)]
        return images, [_objects(image, request.generator) for image in images]
    return tensors


def _objects(image: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Two objects of the first class in an image, with all that any detection model is trained on."""
    *_, height, width = image.shape
    corners = torch.tensor([[0.1, 0.1, 0.6, 0.5], [0.3, 0.4, 0.9, 0.9]])
    boxes = corners * torch.tensor([width, height, width, height])
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top : bottom + 1, left : right + 1] = 1
    inside = torch.rand(len(boxes), _KEYPOINTS, 2, generator=generator)
    points = boxes[:, None, :2] + inside * (boxes[:, None, 2:] - boxes[:, None, :2])
    keypoints = torch.cat([points, torch.ones(len(boxes), _KEYPOINTS, 1)], dim=2)
    return {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64), "masks": masks, "keypoints": keypoints}
