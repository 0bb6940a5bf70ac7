"""Semantic segmentation: a class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from repl_fx.arguments import in_words
from repl_fx.errors import BadInput
from repl_fx.training.data.targets import IGNORED, require_masks
from repl_fx.training.tasks.task import Batch, MeanLoss, Task, logits_of, mean_cross_entropy

# Of the auxiliary head: torchvision's references/segmentation/train.py; Zhao et al. 2017 (arXiv 1612.01105) take 0.4.
_AUX = 0.5


class Segmentation(Task):
    """Cross-entropy of logits (batch, classes, height, width) with masks (batch, height, width); 255 has no class.

    Logits are a tensor, the first of several, or what is called `logits` (transformers) or `out` (torchvision); smaller
    ones are scaled up to the masks, bilinearly. In training half of the loss of `aux` is added, where there is one.

    Figures: `loss`, unsmoothed and without `aux`; `mean_iou`, the mean over classes of intersection by union, each over
    all pixels, without classes that neither the masks nor the predictions have; `pixel_accuracy`, the share of pixels.

    Args:
        classes: how many the masks have; the model may have more.
    """

    key = "segmentation"
    class_dimension = 1
    ignored = IGNORED

    def __init__(self, classes: int) -> None:
        # One class more, which both ignore: that of pixels without one, and in predictions of all that no mask has.
        # Checks of their values would wait for the device at each batch.
        options: Any = {"ignore_index": classes, "validate_args": False}
        iou = MulticlassJaccardIndex(classes + 1, **options)
        accuracy = MulticlassAccuracy(classes + 1, average="micro", **options)
        super().__init__(classes, loss=MeanLoss(), mean_iou=iou, pixel_accuracy=accuracy)

    def logits(self, outputs: Any) -> Tensor:
        """The logits, (batch, classes, height, width)."""
        return logits_of(outputs, "out")

    def classes_in(self, model: nn.Module, outputs: Any) -> int:
        """The second dimension of the logits; 0 where there is none."""
        logits = self.logits(outputs)
        return logits.shape[self.class_dimension] if logits.ndim == 4 else 0

    def loss(self, outputs: Any, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The mean cross-entropy of all pixels that have a class, and half of that of the auxiliary head."""
        masks = batch[1]
        loss = _cross_entropy(self.logits(outputs), masks, smoothing)
        aux = outputs.get("aux") if isinstance(outputs, Mapping) else None
        return loss if aux is None else loss + _AUX * _cross_entropy(aux, masks, smoothing)

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add the loss and the most likely classes."""
        masks, logits = batch[1], self.logits(outputs)
        self.metrics["loss"].update(_cross_entropy(logits, masks, 0.0), (masks != IGNORED).sum())
        found = _at_size_of(masks, logits).argmax(1).clamp_max(self.classes)
        masks = masks.clamp_max(self.classes)
        self.metrics["mean_iou"].update(found, masks)
        self.metrics["pixel_accuracy"].update(found, masks)

    def require_fit(self, model: nn.Module, outputs: Any, batch: Batch, name: str) -> None:
        """Refuse logits of another shape, or for fewer classes than there are."""
        logits, called = self.logits(outputs), type(model).__name__
        masks = batch[1]
        fits = logits.ndim == 4 and len(logits) == len(masks)
        if not fits or any(own > wanted for own, wanted in zip(logits.shape[2:], masks.shape[1:], strict=True)):
            raise BadInput(
                f"{called} returns logits of shape {tuple(logits.shape)}; wanted is (batch, classes, height, width), "
                f"not larger than the masks of {name}, {'x'.join(map(str, masks.shape[1:]))}"
            )
        self.require_classes(model, logits.shape[1], name, least=2)

    def require_targets(self, batch: Batch, name: str) -> None:
        """Refuse what is not one label for each pixel."""
        inputs, targets = batch
        if not isinstance(inputs, Tensor) or inputs.ndim != 4:
            raise BadInput(f"{name}: inputs are {in_words(inputs)}; give pictures (batch, channels, height, width)")
        require_masks(targets, self.classes, (len(inputs), *inputs.shape[2:]), name)


def _cross_entropy(logits: Tensor, masks: Tensor, smoothing: float) -> Tensor:
    # With one row for each pixel: the kernel for pictures is not deterministic on a GPU.
    rows = _at_size_of(masks, logits.float()).movedim(1, -1).flatten(0, -2)
    return mean_cross_entropy(rows, masks.flatten(), IGNORED, smoothing)


def _at_size_of(masks: Tensor, logits: Tensor) -> Tensor:
    if logits.shape[2:] == masks.shape[1:]:
        return logits
    return F.interpolate(logits, masks.shape[1:], mode="bilinear", align_corners=False)
