"""ResNet-32 for CIFAR: three stages of five basic blocks with 16, 32 and 64 channels.

He et al., Deep Residual Learning for Image Recognition (arXiv 1512.03385), section 4.2. The shortcut that changes shape
is option A of the paper: every other pixel, with zeros for the new channels, and no parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm beside a shortcut.

    Args:
        channels_in: channels of the input.
        channels: channels of the output, not fewer than those of the input.
        stride: 2 halves height and width.
    """

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels_in, h, w) to (batch, channels, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Bring the input to the shape of the output, without parameters."""
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return x


class ResNet(nn.Module):
    """The CIFAR residual network of 6 * depth + 2 layers.

    Args:
        depth: basic blocks in each of the three stages.
        classes: size of the output.
        width: channels in the first stage; each other stage has twice those of the stage before.
    """

    def __init__(self, depth: int = 5, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stage1 = self._stage(width, width, depth, stride=1)
        self.stage2 = self._stage(width, 2 * width, depth, stride=2)
        self.stage3 = self._stage(2 * width, 4 * width, depth, stride=2)
        self.head = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(channels_in: int, channels: int, depth: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(depth - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, 3, h, w) to logits (batch, classes)."""
        x = F.relu(self.bn(self.conv(images)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def model() -> nn.Module:
    """ResNet-32 with random weights."""
    return ResNet()


def example_inputs() -> tuple[Tensor, ...]:
    """Two CIFAR-sized images."""
    return (torch.randn(2, 3, 32, 32),)
