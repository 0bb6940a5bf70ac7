"""Detection: boxes around objects, with their classes, by models of the kind that torchvision has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from repl_fx.arguments import in_words
from repl_fx.errors import BadInput
from repl_fx.training.data.samples import require_picture
from repl_fx.training.data.targets import require_boxes
from repl_fx.training.tasks.task import Batch, Task

_PREDICTED = ("boxes", "labels", "scores")
# Where a mask of torchvision's models begins: they give a probability for each pixel.
_THRESHOLD = 0.5
# The attributes of heads of torchvision's models that count classes, with the background.
_COUNTS = {
    "FastRCNNPredictor": "cls_score.out_features",
    "RetinaNetClassificationHead": "num_classes",
    "FCOSClassificationHead": "num_classes",
    "SSDClassificationHead": "num_columns",
    "SSDLiteClassificationHead": "num_columns",
}


class Detection(Task):
    """The losses that a model gives itself in training, and COCO's mean average precision in evaluation.

    A batch is a list of pictures (channels, height, width), floats from 0 to 1, of any sizes, and a list of dicts with
    `boxes` (n, 4) as x1, y1, x2, y2 in pixels and `labels` (n,) from 1; `masks` (n, height, width) for Mask R-CNN,
    and `keypoints` for Keypoint R-CNN. In training a model is called with both and gives a dict of losses, whose sum
    is the loss; else it is called with the pictures and gives a list of dicts with boxes, labels and scores.

    Figures: `map`, the mean over classes and over overlaps of 0.5, 0.55, …, 0.95, and `map_50`, at 0.5 alone;
    `mask_map` and `mask_map_50` where pictures and model have masks. There is no loss of held-out pictures: a model
    computes none in evaluation.

    Args:
        classes: with the background, class 0; 0 where nobody tells.
    """

    key = "detection"
    has_logits = False

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        try:
            # Of masks alone torchmetrics leaves out pictures with none, and so what is found there by mistake.
            self.boxes = MeanAveragePrecision(sync_on_compute=False)
            self.masks = MeanAveragePrecision(iou_type=("bbox", "segm"), sync_on_compute=False)
        except ModuleNotFoundError as missing:
            raise BadInput("detection needs torchvision and pycocotools; pip install 'repl-fx[zoo,train]'") from missing
        for metric in (self.boxes, self.masks):
            # COCO counts the best hundred of a picture; models may give more.
            metric.warn_on_many_detections = False

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """Losses by name in training, else what is found in each picture."""
        images, targets = batch
        return model(images, targets) if model.training else model(images)

    def logits(self, outputs: Any) -> Tensor:
        """Refused: there are none."""
        raise BadInput("detection models return no logits, which could stand for targets; give data with targets")

    def classes_in(self, model: nn.Module, outputs: Any) -> int:
        """The classes that the head of a model of torchvision counts, with the background; 0 for other models."""
        for module in model.modules():
            if path := _COUNTS.get(type(module).__name__):
                found: Any = module
                for name in path.split("."):
                    found = getattr(found, name, 0)
                return int(found)
        return 0

    def loss(self, outputs: Any, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The sum of the losses that the model gave."""
        if not isinstance(outputs, Mapping) or not all(isinstance(one, Tensor) for one in outputs.values()):
            raise BadInput(f"the model returns {in_words(outputs)} in training; wanted is a dict of losses")
        if smoothing:
            raise BadInput("detection models compute their own losses, without smoothing; leave out --label-smoothing")
        return torch.stack([one.float() for one in outputs.values()]).sum()

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add what was found, and what is there."""
        targets = batch[1]
        self.boxes.update(
            [_of(one, *_PREDICTED) for one in outputs], [_of(one, "boxes", "labels", "iscrowd") for one in targets]
        )
        if all("masks" in one for one in (*outputs, *targets)):
            self.masks.update(
                [{**_of(one, *_PREDICTED), "masks": one["masks"].squeeze(1) > _THRESHOLD} for one in outputs],
                [{**_of(one, "boxes", "labels", "iscrowd"), "masks": one["masks"].bool()} for one in targets],
            )

    def compute(self) -> dict[str, Tensor]:
        """Mean average precision of boxes, and of masks where there are any."""
        figures: dict[str, Tensor] = {}
        for prefix, kind, metric in (("", "", self.boxes), ("mask_", "segm_", self.masks)):
            if (every := _of_all_processes(metric)).update_called:
                found = every.compute()
                figures |= {f"{prefix}{name}": found[f"{kind}{name}"] for name in ("map", "map_50")}
            metric.reset()
        if figures and float(figures["map"]) < 0:
            raise BadInput("no held-out picture has a box, so that there is no precision; give some that have")
        return figures

    def require_fit(self, model: nn.Module, outputs: Any, batch: Batch, name: str) -> None:
        """Refuse what does not find boxes with labels and scores, knows fewer classes, or learns what is not there."""
        called = type(model).__name__
        listed = isinstance(outputs, Sequence) and len(outputs) == len(batch[0])
        if not listed or not all(isinstance(one, Mapping) and set(_PREDICTED) <= one.keys() for one in outputs):
            raise BadInput(
                f"{called} returns {in_words(outputs)}; wanted is a list with a dict of {', '.join(_PREDICTED)} for "
                "each picture, as torchvision's detection models give it"
            )
        for kind in ("masks", "keypoints"):
            # Models of torchvision that find them want them in all targets.
            if any(kind in one for one in outputs) and not all(kind in one for one in batch[1]):
                raise BadInput(f"{called} finds {kind}, and {name} has none to learn from; take a model of boxes alone")
        known = self.classes_in(model, outputs)
        if known and known < self.classes:
            raise BadInput(f"{called} tells {known} classes apart, and {name} has {self.classes}, with the background")

    def require_targets(self, batch: Batch, name: str) -> None:
        """Refuse what is not a list of pictures and one of boxes with labels."""
        images, targets = batch
        if not isinstance(images, list) or not isinstance(targets, list) or len(images) != len(targets):
            found = f"{in_words(images)} and {in_words(targets)}"
            raise BadInput(f"{name} is {found}; give a list of pictures and one of dicts, of the same length")
        for number, (image, target) in enumerate(zip(images, targets, strict=True)):
            where = f"{name}: sample {number}"
            require_picture(image, where)
            require_boxes(target, self.classes, tuple(image.shape[1:]), where)


def _of_all_processes(metric: MeanAveragePrecision) -> MeanAveragePrecision:
    """A metric of the pictures of all processes; torchmetrics' own way to it needs as many pictures in each."""
    if not (dist.is_available() and dist.is_initialized()):
        return metric
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, metric)
    every = next((part for part in parts if part.update_called), metric).to(metric.device)
    for name in metric.metric_state:
        setattr(every, name, [one for part in parts for one in getattr(part, name)])
    return every


def _of(one: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    # COCO's figures are computed on the CPU, and processes exchange what is there.
    return {name: one[name].cpu() for name in names if name in one}
