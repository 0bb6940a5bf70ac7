"""Small pieces of random networks: norms, activations, drops, and a function with a backward of its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Clipped(torch.autograd.Function):
    """A leaky ReLU whose gradient is not the derivative of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x > 0, x, 0.1 * x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, grads[0], 0.3 * grads[0]).clamp(-1.0, 1.0)


class ClippedActivation(nn.Module):
    """`Clipped` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return Clipped.apply(x)  # type: ignore[no-any-return]


class Swish(nn.Module):
    """An activation without parameters in a class of the user's."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class InPlaceRelu(nn.Module):
    """A ReLU that writes into what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu_()


class HandRMS(nn.Module):
    """An RMS norm written out, over the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale


class Channels(nn.Module):
    """A norm over channels for (batch, tokens, channels): the channels go to the second place and back."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class PictureLayerNorm(nn.LayerNorm):
    """A layer norm over the channels of (batch, channels, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth: whole samples go."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep


class FunctionalDrop(nn.Module):
    """Dropout by the functional form, of a kind that follows from the rank."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return F.dropout2d(x, self.p, self.training)
        return F.dropout(x, p=self.p, training=self.training)


class Noise(nn.Module):
    """Noise in training only, by control flow on the mode."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        return x


ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "relu_", "autograd", "user", "leaky", "glu_half", "softplus")
TOKEN_NORMS = ("layer", "rms", "hand_rms", "batch", "group", "plain_layer", "none")
PICTURE_NORMS = ("batch", "group", "instance", "layer", "batch_plain", "none")
DROPS = ("none", "none", "dropout", "path", "functional", "noise", "alpha")


class HalfGate(nn.Module):
    """The sigmoid of one half of the channels times the other, twice, so that the width stays."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * torch.sigmoid(b), b], dim=-1)


def activation(kind: str) -> nn.Module:
    """A layer for a name of `ACTIVATIONS`."""
    made: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "tanh": nn.Tanh,
        "autograd": ClippedActivation,
        "user": Swish,
        "leaky": nn.LeakyReLU,
        "relu_": InPlaceRelu,
        "softplus": nn.Softplus,
        "glu_half": HalfGate,
    }
    return made[kind]()


def token_norm(kind: str, width: int) -> nn.Module:
    """A norm of (batch, tokens, width) for a name of `TOKEN_NORMS`."""
    if kind == "layer":
        return nn.LayerNorm(width)
    if kind == "plain_layer":
        return nn.LayerNorm(width, elementwise_affine=False)
    if kind == "rms":
        return nn.RMSNorm(width, eps=1e-5)
    if kind == "hand_rms":
        return HandRMS(width)
    if kind == "batch":
        return Channels(nn.BatchNorm1d(width))
    if kind == "group":
        return Channels(nn.GroupNorm(2, width))
    return nn.Identity()


def picture_norm(kind: str, width: int) -> nn.Module:
    """A norm of (batch, width, height, width) for a name of `PICTURE_NORMS`."""
    if kind == "batch":
        return nn.BatchNorm2d(width)
    if kind == "batch_plain":
        return nn.BatchNorm2d(width, affine=False, momentum=None)
    if kind == "group":
        return nn.GroupNorm(2, width)
    if kind == "instance":
        return nn.InstanceNorm2d(width, affine=True, track_running_stats=True)
    if kind == "layer":
        return PictureLayerNorm(width)
    return nn.Identity()


def drop(kind: str, p: float) -> nn.Module:
    """A drop for a name of `DROPS`."""
    if kind == "dropout":
        return nn.Dropout(p)
    if kind == "path":
        return DropPath(p)
    if kind == "functional":
        return FunctionalDrop(p)
    if kind == "noise":
        return Noise()
    if kind == "alpha":
        return nn.AlphaDropout(p)
    return nn.Identity()
