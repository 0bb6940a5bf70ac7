"""Kernels of torchvision's operators: next to what its documentation says, and as torchvision calls them."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys

import pytest
import torch

from benchmarks.zoo_models.torchvision_ops import nms, roi_align

CALLS = """
import torch
def refuse(path):
    raise OSError("as beside another torch")
torch.ops.load_library = refuse
from benchmarks.zoo_models.torchvision_ops import give_kernels
print(give_kernels(), give_kernels())
from torchvision import ops
boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9], [8, 8, 9, 9]])
print(ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist())
image = torch.ones(1, 2, 8, 8, requires_grad=True)
pooled = ops.roi_align(image, [boxes], (2, 2))
pooled.sum().backward()
# The third region lies outside.
print(tuple(pooled.shape), float(image.grad.sum()))
try:
    ops.roi_pool(image, [boxes], (2, 2))
except RuntimeError as error:
    print(str(error).splitlines()[0][:40])
"""


@pytest.mark.zoo
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is missing")
def test_operators_with_a_kernel_run_and_the_others_say_that_the_library_is_missing() -> None:
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "True True",
        "[1, 2]",
        "(3, 2, 2, 2) 16.0",
        "Couldn't load custom C++ ops. This can h",
    ], done.stderr


def slow_nms(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    """From the documentation: of boxes that overlap by more than the threshold, the better one stays."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for j in kept:
            a, b = boxes[i], boxes[j]
            width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
            height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
            if width * height > threshold * (both - width * height):
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize(("count", "threshold"), [(0, 0.5), (1, 0.5), (40, 0.3), (700, 0.1), (700, 0.7)])
def test_nms_keeps_what_the_documentation_says(count: int, threshold: float) -> None:
    torch.manual_seed(count)
    corners = torch.rand(count, 2).double() * 8
    boxes = torch.cat([corners, corners + 0.5 + torch.rand(count, 2).double() * 3], 1)
    scores = torch.rand(count).double()
    kept = nms(boxes, scores, threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == slow_nms(boxes.tolist(), scores.tolist(), threshold)
    assert count < 2 or len(kept) < count


def test_nms_keeps_boxes_that_overlap_by_just_the_threshold_and_the_first_of_equal_scores() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1], [5, 5, 5, 5], [5, 5, 5, 5]])
    assert nms(boxes, torch.tensor([0.2, 0.2, 0.1, 0.1]), 0.5).tolist() == [0, 1, 2, 3]
    assert nms(boxes, torch.tensor([0.2, 0.2, 0.1, 0.1]), 0.49).tolist() == [0, 2, 3]


def slow_roi_align(
    maps: torch.Tensor, region: list[float], scale: float, bins: tuple[int, int], ratio: int, aligned: bool
) -> torch.Tensor:
    """One region, sample by sample; each is between four pixels, and counts as zero more than a pixel outside."""
    image = maps[int(region[0])]
    _, height, width = image.shape
    left, top, right, bottom = (value * scale - (0.5 if aligned else 0.0) for value in region[1:])
    wide, high = right - left, bottom - top
    if not aligned:
        wide, high = max(wide, 1.0), max(high, 1.0)
    ny = ratio if ratio > 0 else math.ceil(high / bins[0])
    nx = ratio if ratio > 0 else math.ceil(wide / bins[1])
    out = torch.zeros(image.shape[0], *bins, dtype=maps.dtype)
    for i in range(bins[0]):
        for j in range(bins[1]):
            for iy in range(ny):
                for ix in range(nx):
                    y = top + (i + (iy + 0.5) / ny) * high / bins[0]
                    x = left + (j + (ix + 0.5) / nx) * wide / bins[1]
                    if not (-1 <= y <= height and -1 <= x <= width):
                        continue
                    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
                    y0, x0 = math.floor(y), math.floor(x)
                    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
                    above = image[:, y0, x0] * (1 - (x - x0)) + image[:, y0, x1] * (x - x0)
                    below = image[:, y1, x0] * (1 - (x - x0)) + image[:, y1, x1] * (x - x0)
                    out[:, i, j] += above * (1 - (y - y0)) + below * (y - y0)
    return out / max(ny * nx, 1)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, -1])
def test_roi_align_averages_bilinear_samples(ratio: int, aligned: bool) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    # Inside, over each border, outside, thinner than a pixel.
    regions: list[list[float]] = [
        [0, 2, 2, 11, 9],
        [1, -6, -4, 5, 6],
        [1, 10, 8, 22, 17],
        [0, 40, 40, 50, 50],
        [0, 6.2, 4.2, 6.6, 9],
    ]
    rois = torch.tensor(regions, dtype=torch.float64)
    found = roi_align(maps, rois, 0.5, 3, 2, ratio, aligned)
    expected = torch.stack([slow_roi_align(maps, region, 0.5, (3, 2), ratio, aligned) for region in regions])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(found)
    (ours,) = torch.autograd.grad((found * weights).sum(), maps)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), maps)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_roi_align_of_no_regions_is_empty() -> None:
    maps = torch.randn(1, 3, 4, 4, requires_grad=True)
    for ratio in (2, -1):
        found = roi_align(maps, torch.zeros(0, 5), 1.0, 3, 2, ratio, False)
        assert found.shape == (0, 3, 3, 2)
        (grad,) = torch.autograd.grad(found.sum(), maps)
        assert not grad.any()
