"""The preprocessing of pictures that weights come with, as timm, torchvision and transformers say it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from repl_fx.tracing.parts.origin import Preprocessing

_PROCESSOR = "preprocessor_config.json"
# Filters of PIL by the number that transformers has for them.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# The shorter side from which ConvNeXt squeezes pictures, and crops none.
_SQUEEZED_FROM = 384


def of_timm(model: Any, name: str) -> Preprocessing | None:
    """That of `timm.data.create_transform` for evaluation; None where it is another than resizing and cropping."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    height, width = config["input_size"][1:]
    scaled = tuple(math.floor(size / config["crop_pct"]) for size in (height, width))
    squeezed = config["crop_mode"] == "squash"
    if config["crop_mode"] not in ("center", "squash") or (scaled[0] != scaled[1] and not squeezed):
        return None
    known = config["interpolation"], (height, width), tuple(config["mean"]), tuple(config["std"])
    return Preprocessing(f"timm's {name}", scaled if squeezed else scaled[:1], *known)


def of_torchvision(weights: Any) -> Preprocessing | None:
    """That of the transforms of weights for classification or segmentation; None for those of other tasks."""
    preset = weights.transforms()
    resize, crop = (tuple(getattr(preset, name, None) or ()) for name in ("resize_size", "crop_size"))
    if type(preset).__name__ not in ("ImageClassification", "SemanticSegmentation") or not resize:
        return None
    known = tuple(preset.mean), tuple(preset.std)
    return Preprocessing(f"torchvision's {weights}", resize, preset.interpolation.value, 2 * crop[:1], *known)


def of_processor(directory: Path) -> Preprocessing | None:
    """That of the image processor beside a config; None where there is none, or one that does more than this."""
    file = directory / _PROCESSOR
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    scale = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1
    if not values.get("image_mean") or not math.isclose(scale, 1 / 255, rel_tol=1e-6):
        return None
    resize, crop = _sizes(values) if values.get("do_resize", True) else ((), _both(values.get("crop_size")))
    crop = crop if values.get("do_center_crop") or values.get("crop_pct") else ()
    standardised = values.get("do_normalize", True)
    mean, std = (tuple(values[name]) if standardised else () for name in ("image_mean", "image_std"))
    by, known = f"the {_PROCESSOR} of {directory.name}", (_FILTERS[values.get("resample", 2)], crop, mean, std)
    return Preprocessing(by, resize, *known, rounds=False)


def _sizes(values: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    size, share = values.get("size"), values.get("crop_pct")
    shorter = size.get("shortest_edge") if isinstance(size, dict) else None
    if shorter is None:
        return _both(size), _both(values.get("crop_size"))
    if share is None:
        return (shorter,), _both(values.get("crop_size"))
    # As ConvNeXt's.
    return ((shorter, shorter), ()) if shorter >= _SQUEEZED_FROM else ((int(shorter / share),), (shorter, shorter))


def _both(size: Any) -> tuple[int, ...]:
    """Height and width of a size; nothing where it has none."""
    if isinstance(size, int):
        return size, size
    known = isinstance(size, dict) and "height" in size and "width" in size
    return (size["height"], size["width"]) if known else ()
