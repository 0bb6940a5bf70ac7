"""Branches of blocks on pictures (batch, channels, height, width)."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.attack.parts import ACTIVATIONS, PICTURE_NORMS, activation, picture_norm

_ACTS = tuple(a for a in ACTIVATIONS if a != "glu_half")


class Basic(nn.Module):
    """Two convolutions, each with its norm behind or before it."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.before = rng.random() < 0.4
        norm = rng.choice(PICTURE_NORMS)
        groups = rng.choice([1, 1, 2])
        kernel = rng.choice([1, 3])
        self.conv1 = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=norm == "none")
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=norm == "none")
        self.norm1, self.norm2 = picture_norm(norm, width), picture_norm(norm, width)
        self.act = activation(rng.choice(_ACTS))

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = self.conv1(F.relu(self.norm1(x)))
            return self.conv2(self.act(self.norm2(x)))  # type: ignore[no-any-return]
        return self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, with a squeeze-and-excitation sometimes."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        inner = rng.choice([width // 2, width, 2 * width])
        depthwise = rng.random() < 0.4
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=inner if depthwise else 1, bias=False)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(inner), nn.BatchNorm2d(inner), nn.BatchNorm2d(width)
        self.act = activation(rng.choice(_ACTS))
        squeezed = rng.random() < 0.3
        self.se1 = nn.Conv2d(inner, 2, 1) if squeezed else None
        self.se2 = nn.Conv2d(2, inner, 1) if squeezed else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        y = self.act(self.norm2(self.conv2(y)))
        if self.se1 is not None and self.se2 is not None:
            y = y * torch.sigmoid(self.se2(F.relu(self.se1(y.mean((2, 3), keepdim=True)))))
        return self.norm3(self.conv3(y))  # type: ignore[no-any-return]


class ConvNext(nn.Module):
    """A depthwise convolution, then an MLP with channels last."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.5)) if rng.random() < 0.5 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(F.gelu(self.fc1(self.norm(self.conv(x).permute(0, 2, 3, 1)))))
        if self.gamma is not None:
            y = self.gamma * y
        return y.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """A mean over neighbours less the value, then a 1x1 convolution."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=rng.random() < 0.5)
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x) - x)  # type: ignore[no-any-return]


class Shuffled(nn.Module):
    """Grouped convolutions with a shuffle of the channels between them."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1, groups=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x))
        b, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.conv2(y)  # type: ignore[no-any-return]


class Standardised(nn.Module):
    """Convolutions on weights that are standardised at each call, or that a parametrization makes."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.parametrized = rng.random() < 0.5
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        if self.parametrized:
            parametrizations.weight_norm(self.conv)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.parametrized:
            return self.out(F.relu(self.conv(x)))  # type: ignore[no-any-return]
        weight = self.conv.weight
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return self.out(F.relu(F.conv2d(x, (weight - mean) / (std + 1e-5), self.conv.bias, padding=1)))  # type: ignore[no-any-return]


class Resampled(nn.Module):
    """Down by a pooling, up by an interpolation or a transposed convolution."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2) if rng.random() < 0.5 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(F.max_pool2d(x, 2, ceil_mode=True)))
        y = F.interpolate(y, scale_factor=2.0) if self.up is None else self.up(y)
        return y[:, :, : x.shape[2], : x.shape[3]]


class Pixels(nn.Module):
    """Self-attention over the pixels, by 1x1 convolutions."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        attention = (q.transpose(1, 2) @ k / x.shape[1] ** 0.5).softmax(-1)
        return self.proj((v @ attention.transpose(1, 2)).reshape(x.shape))  # type: ignore[no-any-return]


Factory = Callable[[random.Random, int], nn.Module]
BRANCHES: dict[str, Factory] = {
    "basic": Basic,
    "bottleneck": Bottleneck,
    "convnext": ConvNext,
    "pooled": Pooled,
    "shuffled": Shuffled,
    "standardised": Standardised,
    "resampled": Resampled,
    "pixels": Pixels,
}
