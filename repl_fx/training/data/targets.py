"""Targets that can be: labels, masks and boxes, each refused in one line where it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

import torch
from torch import Tensor

from repl_fx.arguments import in_words
from repl_fx.errors import BadInput

# The target of every input of data without targets.
NO_TARGET = -1
# The target of padding in texts, as in transformers: neither trained on nor counted.
NO_TOKEN = -100
# The class of pixels that have none, as in Pascal VOC and Cityscapes: neither trained on nor counted.
IGNORED = 255


def has_targets(targets: Any) -> bool:
    """Tell whether the targets of a batch are any."""
    return not (isinstance(targets, Tensor) and not targets.is_floating_point() and bool((targets == NO_TARGET).all()))


def no_targets(inputs: Sized) -> Tensor:
    """The targets of inputs that have none, (n,)."""
    return torch.full((len(inputs),), NO_TARGET)


def require_labels(targets: Any, classes: int, shape: tuple[int, ...], where: str) -> None:
    """Refuse targets that are not labels from 0, int64, of a shape.

    Raises:
        BadInput: names the type, the shape or the label found, and the one wanted.
    """
    _require_integers(targets, shape, where)
    require_range(targets, range(classes), where)


def require_masks(targets: Any, classes: int, shape: tuple[int, ...], where: str) -> None:
    """Refuse targets that are not masks: a label from 0 for each pixel, or 255 for none, int64, of a shape.

    Raises:
        BadInput: names the type, the shape or the label found, and the one wanted.
    """
    _require_integers(targets, shape, where)
    require_range(targets[targets != IGNORED], range(classes), where, f", and {IGNORED} for none")


def require_boxes(target: Any, classes: int, size: tuple[int, int], where: str) -> None:
    """Refuse a target that is not a mapping of `boxes` (n, 4) as x1, y1, x2, y2 in pixels, and `labels` (n,) from 1.

    Args:
        classes: with the background, which is class 0; 0 for any number.
        size: height and width of the picture.
        where: words that begin each error.

    Raises:
        BadInput: names the box or the label found, and the one wanted.
    """
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
        raise BadInput(f"{where}: the target is {in_words(target)}; give a dict with boxes (n, 4) and labels (n,)")
    boxes, labels = target["boxes"], target["labels"]
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point() or boxes.shape[1:] != (4,):
        found = f"{boxes.dtype} of shape {tuple(boxes.shape)}" if isinstance(boxes, Tensor) else in_words(boxes)
        raise BadInput(f"{where}: boxes are {found}; give a float tensor (n, 4)")
    _require_integers(labels, (len(boxes),), f"{where}: labels")
    # A model of a user's own may not tell how many classes it has.
    require_range(labels, range(1, classes or 2**31), where)
    x1, y1, x2, y2 = boxes.unbind(1)
    height, width = size
    for wrong, said in (
        (~boxes.isfinite().all(1), "is not finite"),
        ((x2 <= x1) | (y2 <= y1), "has no extent; give x1 < x2 and y1 < y2"),
        ((x1 >= width) | (y1 >= height) | (x2 <= 0) | (y2 <= 0), f"lies outside the picture, {height}x{width}"),
    ):
        if wrong.any():
            first = [round(value, 3) for value in boxes[int(wrong.nonzero()[0])].tolist()]
            raise BadInput(f"{where}: box {first} {said}")
    masks = target.get("masks")
    if masks is not None and tuple(masks.shape) != (len(boxes), *size):
        raise BadInput(f"{where}: masks are of shape {tuple(masks.shape)}; wanted is {(len(boxes), *size)}")


def require_range(labels: Tensor, known: range, where: str, besides: str = "") -> None:
    """Refuse labels outside a range.

    Raises:
        BadInput: names the first of the lowest or the highest.
    """
    if not labels.numel():
        return
    low, high = int(labels.min()), int(labels.max())
    if low < known.start or high >= known.stop:
        wrong = low if low < known.start else high
        raise BadInput(f"{where}: label {wrong} is out of range; labels are {known.start} to {known.stop - 1}{besides}")


def _require_integers(targets: Any, shape: tuple[int, ...], where: str) -> None:
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        found = targets.dtype if isinstance(targets, Tensor) else in_words(targets)
        raise BadInput(f"{where}: targets are {found}; give an int64 tensor")
    if tuple(targets.shape) != shape:
        raise BadInput(f"{where}: targets are of shape {tuple(targets.shape)}; wanted is {shape}")
