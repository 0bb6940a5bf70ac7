"""Segmentation: logits of any size, pixels without a class, figures over all pixels, and what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from repl_fx.errors import BadInput
from repl_fx.training.tasks.semantic_segmentation import Segmentation
from tests.training.runs import PixelNet

MASKS = torch.tensor([[[0, 1, 1], [2, 255, 0]], [[1, 1, 1], [0, 0, 255]]])


def _saying(classes: Tensor, known: int = 3) -> Tensor:
    """Logits (batch, known, height, width) of which the given class is the largest."""
    return F.one_hot(classes, known).movedim(-1, 1).float() * 4


def test_the_loss_is_that_of_the_pixels_that_have_a_class() -> None:
    logits, batch = torch.randn(2, 3, 2, 3), (torch.zeros(2, 3, 2, 3), MASKS)
    task = Segmentation(3)
    wanted = F.cross_entropy(logits, MASKS, ignore_index=255)
    torch.testing.assert_close(task.loss(logits, batch), wanted)
    smoothed = F.cross_entropy(logits, MASKS, ignore_index=255, label_smoothing=0.2)
    torch.testing.assert_close(task.loss(logits, batch, 0.2), smoothed)
    aux = torch.randn(2, 3, 2, 3)
    both = wanted + 0.5 * F.cross_entropy(aux, MASKS, ignore_index=255)
    torch.testing.assert_close(task.loss({"out": logits, "aux": aux}, batch), both)
    assert float(task.loss(logits, (batch[0], torch.full_like(MASKS, 255)))) == 0


def test_smaller_logits_are_scaled_up() -> None:
    logits, masks = torch.randn(1, 3, 2, 2), torch.randint(3, (1, 4, 6))
    large = F.interpolate(logits, (4, 6), mode="bilinear")
    task = Segmentation(3)
    torch.testing.assert_close(task.loss(logits, (masks, masks)), task.loss(large, (masks, masks)))
    for some in (logits, large):
        task.update(some, (masks, masks))
        assert task.compute()["pixel_accuracy"] == (large.argmax(1) == masks).float().mean()


def _figures(found: Tensor, masks: Tensor, classes: int, known: int = 3) -> dict[str, float]:
    task = Segmentation(classes)
    # Picture by picture: a mean of means would be another number.
    for one, mask in zip(found, masks, strict=True):
        task.update(_saying(one[None], known), (mask[None], mask[None]))
    return {name: float(value) for name, value in task.compute().items()}


def test_figures_are_over_all_pixels() -> None:
    found = torch.tensor([[[0, 1, 0], [2, 1, 0]], [[1, 1, 1], [2, 0, 0]]])
    # 0: 3 of 3 + 1 + 1, 1: 4 of 5, 2: 1 of 2; the pixels of 255 count nowhere.
    assert _figures(found, MASKS, 3)["mean_iou"] == pytest.approx((3 / 5 + 4 / 5 + 1 / 2) / 3)
    assert _figures(found, MASKS, 3)["pixel_accuracy"] == pytest.approx(8 / 10)


def test_classes_that_are_nowhere_do_not_count() -> None:
    assert _figures(MASKS.clamp_max(2), MASKS, 9, known=9)["mean_iou"] == 1
    # Only the second picture: class 2 is nowhere but in a wrong prediction, where it counts.
    found = torch.tensor([[[1, 1, 1], [0, 2, 0]]])
    assert _figures(found, MASKS[1:], 3)["mean_iou"] == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_a_model_may_have_more_classes_than_the_data() -> None:
    found = torch.tensor([[[1, 1, 1], [0, 20, 20]]])
    figures = _figures(found, MASKS[1:], 2, known=21)
    assert figures["mean_iou"] == pytest.approx((1 + 1 / 2) / 2) and figures["pixel_accuracy"] == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (torch.zeros(2, 3), r"PixelNet returns logits of shape \(2, 3\); wanted is \(batch, classes, height, width\)"),
        (torch.zeros(2, 3, 4, 3), "not larger than the masks of mine, 2x3"),
        (torch.zeros(2, 2, 2, 3), "PixelNet returns 2 logits, and mine has 3 classes"),
        ({"boxes": torch.zeros(2, 4)}, "the model returns a dict, which holds no logits"),
    ],
)
def test_what_does_not_fit_is_a_line(outputs: Any, said: str) -> None:
    task, batch, model = Segmentation(3), (torch.zeros(2, 3, 2, 3), MASKS), PixelNet()
    task.require_fit(model, {"logits": torch.zeros(2, 5, 1, 2)}, batch, "mine")
    with pytest.raises(BadInput, match=said):
        task.require_fit(model, outputs, batch, "mine")


def test_the_classes_and_the_masks_of_a_loader() -> None:
    assert Segmentation(0).classes_in(PixelNet(), torch.zeros(2, 5, 1, 2)) == 5
    with pytest.raises(BadInput, match="PixelNet returns 1 logits, and mine has 2 classes"):
        Segmentation(1).require_fit(PixelNet(), torch.zeros(2, 1, 2, 3), (torch.zeros(2, 3, 2, 3), MASKS), "mine")
    Segmentation(3).require_targets((torch.zeros(2, 3, 2, 3), MASKS), "mine")
    with pytest.raises(BadInput, match="mine: label 2 is out of range; labels are 0 to 1, and 255 for none"):
        Segmentation(2).require_targets((torch.zeros(2, 3, 2, 3), MASKS), "mine")
    with pytest.raises(BadInput, match="mine: inputs are a list; give pictures"):
        Segmentation(2).require_targets(([torch.zeros(3, 2, 3)], MASKS), "mine")
