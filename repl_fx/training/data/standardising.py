"""Standardisation of pictures: mean and deviation of each channel, of the training part alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, Split, Tensors, UserData, length
from repl_fx.training.train_config import Scale

# Inputs whose sums are taken at a time: the whole set as float64 is eight times as large as its bytes.
_PIECE = 4096
# Pictures that are read file by file, of which mean and deviation are estimated; spread evenly.
_SAMPLED = 200


_KNOWN: dict[Any, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((), ()),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def standardised(data: Data | UserData, wanted: Scale | None) -> Data | UserData:
    """The data, whose pictures are standardised or not.

    Args:
        data: as they were read.
        wanted: how they are standardised; None leaves it to the data, of which those with a name are by their own.

    Raises:
        BadInput: data that have no channels, or loaders, which give batches as they are.
    """
    if isinstance(data, UserData):
        if wanted not in (None, "none"):
            raise BadInput(f"--normalise is for data sets, and {data.name} gives batches; do it in its loader")
        return data
    if wanted is None or (wanted == "data" and data.mean):
        return data
    if len(data.shape) != 3 and wanted != "none":
        raise BadInput(f"--normalise is for pictures, and inputs of {data.name} are of shape {data.shape}; leave out")
    if wanted == "data":
        return with_scale(data)
    mean, std = (
        values * data.shape[0] if len(values) == 1 else values
        for values in (wanted if isinstance(wanted, tuple) else _KNOWN[wanted])
    )
    return replace(data, mean=mean, std=std)


def with_scale(data: Data, *, augment: bool = False) -> Data:
    """Data of pictures with mean and deviation of the channels of the training part."""
    mean, std = channel_scale(some_pictures(data.train))
    return replace(data, mean=mean, std=std, augment=augment)


def channel_scale(pictures: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of pictures (n, channels, height, width); of uint8 in units of 255 levels."""
    channels = pictures.shape[1]
    total, square = torch.zeros(2, channels, dtype=torch.float64)
    for piece in torch.split(pictures, _PIECE):
        values = piece.double() / (255 if pictures.dtype == torch.uint8 else 1)
        total += values.sum((0, 2, 3))
        square += values.square().sum((0, 2, 3))
    count = pictures.numel() // channels
    mean = total / count
    # A channel that is the same everywhere would be divided by nothing.
    deviation = (square / count - mean.square()).clamp_min(1e-8).sqrt()
    return tuple(mean.tolist()), tuple(deviation.tolist())


def some_pictures(split: Split) -> Tensor:
    """Pictures of a split, (n, channels, height, width): all of tensors, else some from all over it."""
    if isinstance(split, Tensors):
        return split.main
    count = length(split)
    found = [split[index][0] for index in range(0, count, max(1, count // _SAMPLED))]
    sizes = sorted({"x".join(map(str, one.shape)) for one in found})
    if len(sizes) > 1:
        raise BadInput(f"pictures are of sizes {' and '.join(sizes[:2])}; bring them to one with --size")
    return torch.stack(found)
