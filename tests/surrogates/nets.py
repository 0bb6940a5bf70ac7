"""Networks that the tests of several surrogates use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets import ConvNet, TokenNet, images, tokens

CHANNELS = 16


class Residual(nn.Module):
    """x + inner(x), on pictures of 16 channels; what is between depends on the kind."""

    def __init__(self, *inner: nn.Module, relu: bool = False) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.inner(x)
        return F.relu(y) if self.relu else y


class HeadsBlock(nn.Module):
    """Attention alone, over the positions of a picture, with a layer each for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, CHANNELS)
        self.q, self.k, self.v = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.out = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (one(y).view(batch, -1, 4, channels // 4).transpose(1, 2) for one in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
        out: Tensor = x + self.out(y).transpose(1, 2).reshape(batch, channels, height, width)
        return out


class Diffusion(nn.Module):
    """Blocks that are handed what is made from the time."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS, 8)
        self.blocks = nn.ModuleList(make() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        time = self.embed(x.mean((2, 3)))
        for block in self.blocks:
            x = block(x, time)
        return x


class Shrinking(nn.Module):
    """Two stages of blocks of other widths, the first of a stage with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(Step(a, b) for a, b in ((8, 16), (16, 16), (16, 16), (16, 32), (32, 32), (32, 32)))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x).mean((2, 3))
        return out


class Step(nn.Module):
    """A basic block, with a stride and a projection where it changes the width."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        stride = 1 if inner == outer else 2
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inner, outer, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


class Strided(nn.Module):
    """Two convolutions beside a shortcut, and nothing behind their sum; of another width it has a stride.

    Args:
        average: whether the shortcut takes a mean over windows (ResNet-D), or pixels.
        padding: of the first convolution and the shortcut, which has no kernel without it.
    """

    def __init__(self, inner: int, outer: int, *, average: bool = False, padding: int = 1) -> None:
        super().__init__()
        stride = 1 if inner == outer else 2
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding if stride > 1 else 1)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 and average:
            pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
            self.skip = nn.Sequential(pool, nn.Conv2d(inner, outer, 1))
        elif stride > 1:
            self.skip = nn.Conv2d(inner, outer, 1, 2) if padding else nn.Conv2d(inner, outer, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.skip(x) + self.conv2(F.relu(self.conv1(x)))
        return out

    def flatten(self) -> Strided:
        """The block as the shortcut alone, which is linear."""
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)
        return self


class Halving(nn.Module):
    """Five residual blocks, of which the second and the fourth halve the picture: 9x9 is 5x5 and 3x3 then."""

    def __init__(self, **kind: Any) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(Strided(a, b, **kind) for a, b in ((8, 8), (8, 12), (12, 12), (12, 16), (16, 16)))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out


GRID = 17  # A class token and four by four patches.


class InPlace(nn.Module):
    """A residual block that writes where it can, with a pass over the stream between the branches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.norm(self.conv1(x)), inplace=True))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


class Scaled(nn.Module):
    """As in ConvNeXt: permutations, and a layer scale behind the last layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(F.gelu(self.fc1(self.norm(self.dw(x).permute(0, 2, 3, 1)))))
        out: Tensor = x + self.scale * y.permute(0, 3, 1, 2)
        return out


class Bare(nn.Module):
    """Weights of its own, and no layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out = (nn.Parameter(torch.randn(width, width, 1, 1) / width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + F.conv2d(F.relu(F.conv2d(x, self.into)), self.out)
        return out


class Patches(TokenNet):
    """A sequence of fixed length, as positions of its own make it."""

    def __init__(self, length: int = GRID, depth: int = 3, **sizes: Any) -> None:
        super().__init__(depth, **sizes)
        self.positions = nn.Parameter(torch.randn(1, length, sizes.get("width", 16)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x) + self.positions).mean(1))  # type: ignore[no-any-return]


def _pictures(block: Callable[[int], nn.Module], depth: int = 3, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *(block(width) for _ in range(depth)), nn.Flatten())


NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "batch norm": lambda: (ConvNet(depth=3), images(4)),
    "in place": lambda: (_pictures(InPlace), images(4)),
    "layer scale": lambda: (_pictures(Scaled), images(4)),
    "bare weights": lambda: (_pictures(Bare), images(4)),
    "tokens": lambda: (Patches(), tokens(length=GRID)),
    "sequence": lambda: (Patches(24), tokens(length=24)),
}
