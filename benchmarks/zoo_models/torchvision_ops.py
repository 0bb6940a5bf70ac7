"""Kernels of torchvision's `nms` and `roi_align`, for a torchvision whose C++ library does not load.

repl-fx lets such a torchvision be imported; its detection models need these two operators to run. They are made of
plain torch operators, for the CPU, and slower than the library's. The others fail when they are called, with a clear
error.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from repl_fx._foreign_libraries import make_importable

_ROI_ALIGN = (
    "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, int sampling_ratio, "
    "bool aligned) -> Tensor"
)
# Boxes that are compared with each other at a time.
_CHUNK = 256
# The modules of torchvision that refuse to call an operator with a kernel here, because the library is not there.
_USERS = ("torchvision.ops.boxes", "torchvision.ops.roi_align")


def give_kernels() -> bool:
    """Import torchvision and, where its library does not load, let `nms` and `roi_align` be called.

    Returns:
        Whether the kernels are those of this file.
    """
    make_importable()
    import torchvision

    if torchvision.extension._has_ops():
        return False
    if not hasattr(torch.ops.torchvision, "roi_align"):
        torch.library.define("torchvision::roi_align", _ROI_ALIGN)
        torch.library.impl("torchvision::nms", "CPU", nms)
        # Of differentiable operators, so that it needs no backward of its own.
        torch.library.impl("torchvision::roi_align", "CompositeImplicitAutograd", roi_align)
    for name in _USERS:
        module = sys.modules[name]
        for guard, answer in (("_assert_has_ops", None), ("_has_ops", True)):
            if hasattr(module, guard):
                setattr(module, guard, lambda answer=answer: answer)
    return True


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression, as `torchvision.ops.nms` documents it.

    Args:
        dets: boxes (x1, y1, x2, y2), shape (N, 4).
        scores: of the boxes, shape (N,).
        iou_threshold: a box goes when it overlaps a better one that stays by more than this.

    Returns:
        Indices of the boxes that stay, best first, int64.
    """
    if dets.ndim != 2 or dets.shape[1] != 4 or scores.shape != dets.shape[:1]:
        raise ValueError(f"nms takes boxes of shape (N, 4) and N scores, not {list(dets.shape)}, {list(scores.shape)}")
    order = scores.argsort(descending=True, stable=True)
    kept = []
    while order.numel():
        chunk, order = order[:_CHUNK], order[_CHUNK:]
        inside = _overlaps(dets, chunk, chunk, iou_threshold)
        stays = torch.ones_like(chunk, dtype=torch.bool)
        for i in range(len(chunk)):
            if stays[i]:
                stays[i + 1 :] &= ~inside[i, i + 1 :]
        kept.append(chunk[stays])
        order = order[~_overlaps(dets, kept[-1], order, iou_threshold).any(0)]
    return torch.cat(kept) if kept else scores.new_empty(0, dtype=torch.int64)


def _overlaps(dets: Tensor, ours: Tensor, theirs: Tensor, threshold: float) -> Tensor:
    """Whether each of our boxes overlaps each of theirs by more than the threshold, shape (ours, theirs)."""
    a, b = dets[ours][:, None], dets[theirs][None]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    both = _areas(a) + _areas(b) - shared
    # In double precision, as the threshold is given. Two boxes without an area have no ratio, and both stay.
    return (shared / both).double() > threshold


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average of bilinear samples in each bin of each region, as `torchvision.ops.roi_align` documents it.

    Args:
        input: feature maps, shape (N, C, H, W).
        rois: regions (index of the map, x1, y1, x2, y2), shape (K, 5).
        spatial_scale: what their coordinates are multiplied by.
        pooled_height, pooled_width: bins a region.
        sampling_ratio: samples a bin in each direction; 0 or less for one a pixel, rounded up.
        aligned: shift coordinates by half a pixel.

    Returns:
        Shape (K, C, pooled_height, pooled_width), differentiable in `input`.
    """
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"roi_align takes regions of shape (K, 5), not {list(rois.shape)}")
    rois = rois.detach()
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    left, top, right, bottom = corners.unbind(1)
    rows = _samples(top, bottom, pooled_height, sampling_ratio, aligned, input.shape[2])
    columns = _samples(left, right, pooled_width, sampling_ratio, aligned, input.shape[3])
    # One row a pixel, and for each bin the rows that its samples lie between: a weighted bag of rows.
    batch, channels, height, width = input.shape
    pixels = input.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    maps = rois[:, 0].long()[:, None, None] * (height * width)
    shape = (rois.shape[0], pooled_height, pooled_width, rows.most * columns.most)
    bags, weights = [], []
    for row, row_weight in rows.corners:
        for column, column_weight in columns.corners:
            place = maps[..., None, None] + row[:, :, None, :, None] * width + column[:, None, :, None, :]
            bags.append(place.reshape(shape))
            weights.append((row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]).reshape(shape))
    total = (rows.taken * columns.taken).clamp(min=1)[:, None, None, None]
    bag, weight = torch.cat(bags, 3), (torch.cat(weights, 3) / total).to(input.dtype)
    if bag.numel() == 0:
        return pixels.sum() * 0 + input.new_zeros(rois.shape[0], channels, pooled_height, pooled_width)
    pooled = functional.embedding_bag(bag.flatten(0, 2), pixels, per_sample_weights=weight.flatten(0, 2), mode="sum")
    return pooled.reshape(*shape[:3], channels).permute(0, 3, 1, 2)


class _Samples(NamedTuple):
    """Where the samples of each region lie along one axis.

    Attributes:
        most: samples a bin, of the region that takes most.
        taken: how many each region takes, shape (K,).
        corners: index and weight of the pixel before and of the pixel after each sample, shape (K, bins, count).
    """

    most: int
    taken: Tensor
    corners: tuple[tuple[Tensor, Tensor], ...]


def _samples(start: Tensor, end: Tensor, bins: int, ratio: int, aligned: bool, size: int) -> _Samples:
    """The samples of regions from `start` to `end` along an axis of `size` pixels."""
    length = end - start if aligned else (end - start).clamp(min=1.0)
    step = length / bins
    taken = torch.full_like(length, ratio) if ratio > 0 else step.ceil()
    count = ratio if ratio > 0 else int(taken.max()) if len(taken) else 0
    sample = torch.arange(count, device=start.device, dtype=start.dtype)
    first = start[:, None] + torch.arange(bins, device=start.device, dtype=start.dtype) * step[:, None]
    position = first[:, :, None] + ((sample + 0.5) * (step / taken)[:, None])[:, None, :]
    counts = (position >= -1.0) & (position <= size) & (sample < taken[:, None])[:, None, :]
    position = torch.where(counts, position, 0).clamp(min=0)
    low = position.long().clamp(max=size - 1)
    share = torch.where(low >= size - 1, 0, position - low)
    after = (low + 1).clamp(max=size - 1)
    corners = ((low, torch.where(counts, 1 - share, 0)), (after, torch.where(counts, share, 0)))
    return _Samples(count, taken, corners)
