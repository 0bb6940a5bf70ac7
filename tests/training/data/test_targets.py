"""Targets that cannot be, each in its line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repl_fx.errors import BadInput
from repl_fx.training.data.targets import require_boxes, require_labels, require_masks


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.tensor([0.0, 1.0]), "mine: targets are torch.float32; give an int64 tensor"),
        ([0, 1], "mine: targets are a list"),
        (torch.tensor([[0, 1]]), r"mine: targets are of shape \(1, 2\); wanted is \(2,\)"),
        (torch.tensor([0, 3]), "mine: label 3 is out of range; labels are 0 to 2"),
        (torch.tensor([-1, 0]), "mine: label -1 is out of range"),
    ],
)
def test_targets_that_cannot_be_are_a_line(targets: Any, said: str) -> None:
    require_labels(torch.tensor([0, 2]), 3, (2,), "mine")
    with pytest.raises(BadInput, match=said):
        require_labels(targets, 3, (2,), "mine")


def test_a_mask_may_have_pixels_without_a_class() -> None:
    mask = torch.tensor([[[0, 2], [255, 1]]])
    require_masks(mask, 3, (1, 2, 2), "mine")
    with pytest.raises(BadInput, match="mine: label 2 is out of range; labels are 0 to 1, and 255 for none"):
        require_masks(mask, 2, (1, 2, 2), "mine")
    with pytest.raises(BadInput, match=r"mine: targets are of shape \(1, 2, 2\); wanted is \(1, 2, 3\)"):
        require_masks(mask, 3, (1, 2, 3), "mine")
    with pytest.raises(BadInput, match=r"mine: targets are torch.uint8; give an int64 tensor"):
        require_masks(mask.byte(), 3, (1, 2, 2), "mine")


def _boxes(*boxes: tuple[float, ...], labels: tuple[int, ...] = (), **more: Any) -> dict[str, Any]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or (1,) * len(boxes), dtype=torch.long),
        **more,
    }


GOOD = (0.0, 1.0, 5.0, 6.0)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ([GOOD], r"mine: the target is a list; give a dict with boxes \(n, 4\) and labels \(n,\)"),
        ({"boxes": torch.zeros(1, 4)}, "mine: the target is a dict; give"),
        ({**_boxes(GOOD), "boxes": [GOOD]}, "mine: boxes are a list; give a float tensor"),
        ({**_boxes(GOOD), "boxes": torch.ones(1, 4).long()}, r"boxes are torch.int64 of shape \(1, 4\)"),
        ({**_boxes(GOOD), "boxes": torch.ones(1, 5)}, r"boxes are torch.float32 of shape \(1, 5\)"),
        (_boxes(GOOD, labels=(1, 2)), r"mine: labels: targets are of shape \(2,\); wanted is \(1,\)"),
        (_boxes(GOOD, labels=(0,)), "mine: label 0 is out of range; labels are 1 to 2"),
        (_boxes(GOOD, GOOD, labels=(1, 3)), "mine: label 3 is out of range"),
        (_boxes(GOOD, (0, 1, float("nan"), 6)), r"mine: box \[0.0, 1.0, nan, 6.0\] is not finite"),
        (_boxes((5, 1, 5, 6)), r"mine: box \[5.0, 1.0, 5.0, 6.0\] has no extent; give x1 < x2 and y1 < y2"),
        (_boxes((5, 6, 8, 1)), "has no extent"),
        (_boxes((20, 1, 25, 6)), r"mine: box \[20.0, 1.0, 25.0, 6.0\] lies outside the picture, 10x20"),
        (_boxes(GOOD, masks=torch.zeros(1, 9, 20)), r"masks are of shape \(1, 9, 20\); wanted is \(1, 10, 20\)"),
    ],
)
def test_boxes_that_cannot_be_are_a_line(target: Any, said: str) -> None:
    require_boxes(_boxes(GOOD, (-1, -1, 25, 11), labels=(1, 2)), 3, (10, 20), "mine")
    require_boxes(_boxes(), 3, (10, 20), "mine")
    require_boxes(_boxes(GOOD, labels=(90,)), 0, (10, 20), "mine")
    with pytest.raises(BadInput, match=said) as refused:
        require_boxes(target, 3, (10, 20), "mine")
    assert "\n" not in str(refused.value)
