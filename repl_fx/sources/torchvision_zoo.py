"""Models of torchvision: `torchvision:NAME`, with random weights or its own (`torchvision:resnet50.IMAGENET1K_V1`)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.errors import BadInput, SourceError, close_matches
from repl_fx.sources.input_shapes import InputShape
from repl_fx.sources.preprocessing import of_torchvision
from repl_fx.sources.source import Built, Request, created, fitting_note, import_zoo

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

    Behind the name may stand that of its weights, which `pretrained` asks for; else they are torchvision's default.

    Returns:
        The model with a batch of two images; two clips for a video model, two pairs for optical flow; for detection a
        list of two images and a list of what is to be found in each, which training needs.
    """
    models = import_zoo("torchvision", request.spec).models
    name, _, tag = request.name.partition(".")
    known = models.list_models()
    if name not in known:
        raise SourceError(f"torchvision has no model {name!r}{close_matches(name, known)}")
    weights = _weights(models, name, tag, request)
    fitted = _fitted(name, request)
    options = {**_defaults(models, name, request), **fitted, **request.options}
    create = partial(models.get_model, name, **{"weights": weights, **options})
    model = created(request.spec, create, getattr(weights, "url", ""), f"{torch.hub.get_dir()}/checkpoints")
    notes = () if weights is None else (f"weights are {weights} of torchvision",)
    return Built(
        model,
        _inputs(models, name, request, model),
        options={**fitted, **request.options},
        notes=(*notes, *fitting_note(fitted)),
        pretrained=bool(list(models.get_model_weights(name))),
        preprocessing=None if weights is None else of_torchvision(weights),
    )


def _weights(models: Any, name: str, tag: str, request: Request) -> Any:
    """The weights that a model is to have; None for random ones."""
    known = models.get_model_weights(name)
    if tag and tag not in known.__members__:
        close = close_matches(tag, known.__members__)
        raise BadInput(f"torchvision has no weights {tag!r} of {name}{close}; known are {', '.join(known.__members__)}")
    if not (request.pretrained and request.weights and list(known)):
        return None
    return known[tag] if tag else known.DEFAULT


def _fitted(name: str, request: Request) -> dict[str, Any]:
    """Arguments that make the model fit the data: classes, and the size of pictures where it is fixed."""
    if request.purpose is None:
        return {}
    sizes = _fixed_size(name, request.picture, request.spec) if request.shapes is None and request.picture else {}
    return request.fitted(num_classes=request.purpose.classes, **sizes)


def _fixed_size(name: str, sizes: Sequence[int], spec: str) -> dict[str, int | tuple[int, int]]:
    """The argument that gives a transformer the size of pictures; none for models that take any."""
    *_, height, width = sizes
    if name.startswith("vit_") and height != width:
        raise BadInput(f"{spec} takes square images, not {height}x{width}; change the input shape")
    size = height if name.startswith("vit_") else (height, width)
    return {argument: size for prefix, argument in _FIXED_SIZE.items() if name.startswith(prefix)}


def _defaults(models: Any, name: str, request: Request) -> dict[str, Any]:
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    options: dict[str, Any] = {}
    # Without it, a detection or segmentation model downloads a trained backbone.
    if "weights_backbone" in accepted:
        options["weights_backbone"] = None
    # The default, which torchvision warns about unless it is spelled out.
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    if request.shapes is not None and len(request.shapes[0].sizes) == 4:
        options |= _fixed_size(name, request.shapes[0].sizes, request.spec)
    return options


def _inputs(models: Any, name: str, request: Request, model: nn.Module) -> tuple[Any, ...]:
    kinds = ("video", "optical_flow", "detection")
    kind = next((k for k in kinds if name in models.list_models(module=getattr(models, k))), "image")
    sample = _SAMPLES.get(name, _CLIP if kind == "video" else (3, 224, 224))
    # Weights may have been made at another size.
    if isinstance(size := getattr(model, "image_size", None), int):
        sample = (3, size, size)
    if kind == "image" and request.picture:
        sample = request.picture
    shapes = request.shapes or (InputShape((2, *sample)),) * (2 if kind == "optical_flow" else 1)
    tensors = request.positional(shapes)
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
    inside = torch.rand(len(boxes), _KEYPOINTS, 2, generator=generator, device="cpu")
    points = boxes[:, None, :2] + inside * (boxes[:, None, 2:] - boxes[:, None, :2])
    keypoints = torch.cat([points, torch.ones(len(boxes), _KEYPOINTS, 1)], dim=2)
    return {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64), "masks": masks, "keypoints": keypoints}
