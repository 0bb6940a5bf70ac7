"""What the benchmark of accuracy trains: pairs of a data set and a network, at three scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from benchmarks.training.data import Data, load_images, load_text
from benchmarks.training.models import convnext, gpt, resnet, vit
from benchmarks.training.recipe import Recipe


@dataclass(frozen=True)
class Task:
    """A data set and a network, at one scale.

    Attributes:
        name: `DATA/NETWORK`.
        about: the network's size, in words.
        build: makes the network.
        load: reads the data, from a directory, onto a device.
        recipe: how every variant is trained.
        epoch: steps that see all of the training data; 1 where there are no epochs.
    """

    name: str
    about: str
    build: Callable[[], nn.Module]
    load: Callable[[Path, str], Data]
    recipe: Recipe
    epoch: int = 1

    def shortened(self, epochs: int) -> Task:
        """The same with another number of epochs, or of steps where there are no epochs."""
        return replace(self, recipe=replace(self.recipe, steps=epochs * self.epoch))


@dataclass(frozen=True)
class Net:
    """A network for pictures, and what of the recipe is its own.

    Attributes:
        name, about: what tables call it, and its size in words.
        build: makes it for a height of pictures and a number of channels.
        rate: a learning rate that is usual for AdamW and such a network; it was not searched for.
        epochs: to train it.
        half: whether it sees the pictures at half size.
    """

    name: str
    about: str
    build: Callable[[int, int], nn.Module]
    rate: float
    epochs: int
    half: bool = False


def _resnet(depth: int, epochs: int, half: bool = False, width: int = 16) -> Net:
    layers = 6 * depth + 2
    about = f"{layers} layers, {width} to {4 * width} channels{', pictures at half size' if half else ''}"
    return Net(f"resnet{layers}", about, lambda side, channels: resnet(depth, channels, width), 4e-3, epochs, half)


def _vit(parts: int, depth: int, width: int, heads: int, epochs: int, name: str = "vit") -> Net:
    def build(side: int, channels: int) -> nn.Module:
        return vit(side, channels, patch=-(-side // parts), depth=depth, width=width, heads=heads)

    return Net(name, f"{depth} blocks of width {width}, up to {parts}x{parts} patches", build, 1e-3, epochs)


def _convnext(width: int, depths: tuple[int, ...], epochs: int) -> Net:
    about = f"{', '.join(map(str, depths))} blocks, width {width} and up, patches of 2"
    return Net("convnext", about, lambda side, channels: convnext(channels, width, depths), 2e-3, epochs)


# For each scale the number of pictures to train on (None for all), those in a batch, and the networks.
PICTURE_SCALES: dict[str, tuple[int | None, int, tuple[Net, ...]]] = {
    "gpu": (
        None,
        256,
        (_resnet(5, 50), _resnet(18, 50), _vit(8, 12, 192, 3, 50), _convnext(40, (3, 3, 9, 3), 50)),
    ),
    # Narrow, so that they can be trained until more blocks are worth something.
    "cpu": (
        None,
        64,
        (
            _resnet(3, 15, half=True, width=8),
            _vit(4, 9, 32, 2, 13),
            _vit(8, 9, 32, 2, 13, name="vit-fine"),
            _convnext(8, (3, 3, 9, 3), 8),
        ),
    ),
    "smoke": (64, 16, (_resnet(4, 1, half=True), _vit(2, 4, 24, 2, 1))),
}
# The GPT, the windows it is tested on, and its recipe; smoothed labels would be paid for in bits per byte. On a CPU it
# is small enough to be trained until more blocks are worth something: after 600 steps at width 96, fewer were better.
TEXT_SCALES: dict[str, tuple[dict[str, int], int, Recipe]] = {
    "gpu": ({"context": 256, "width": 384, "depth": 12, "heads": 6}, 4000, Recipe(4000, 64, 1e-3, smoothing=0.0)),
    "cpu": ({"context": 64, "width": 32, "depth": 9, "heads": 2}, 2000, Recipe(8000, 16, 1.5e-3, smoothing=0.0)),
    "smoke": ({"context": 16, "width": 16, "depth": 4, "heads": 2}, 10, Recipe(4, 2, 1e-3, smoothing=0.0)),
}
SCALES = tuple(TEXT_SCALES)
# Height, channels and number of the training pictures.
PICTURES = {"cifar10": (32, 3, 50_000), "fashion-mnist": (28, 1, 60_000)}


def tasks(scale: str) -> dict[str, Task]:
    """The tasks of a scale, by name."""
    limit, batch, nets = PICTURE_SCALES[scale]
    made = []
    for data, (side, channels, count) in PICTURES.items():
        for net in nets:
            epoch = min(limit or count, count) // batch
            build = partial(net.build, side // 2 if net.half else side, channels)
            load = partial(load_images, data, limit, net.half)
            recipe = Recipe(net.epochs * epoch, batch, net.rate)
            made.append(Task(f"{data}/{net.name}", net.about, build, load, recipe, epoch))
    sizes, windows, recipe = TEXT_SCALES[scale]
    about = f"{sizes['depth']} blocks of width {sizes['width']}, bytes, context {sizes['context']}"
    load_bytes = partial(load_text, sizes["context"], windows)
    made.append(Task("text/gpt", about, partial(gpt, **sizes), load_bytes, recipe))
    return {task.name: task for task in made}
