"""What the benchmark of accuracy trains: pairs of a data set and a network, at three scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from benchmarks.training.data import TEXT, load, thinned
from benchmarks.training.models import convnext, gpt, resnet, vit
from repl_fx.training.data import Data
from repl_fx.training.train_config import TrainConfig

# Most inputs to train on, and held out; None for all.
Limits = tuple[int | None, int | None]


@dataclass(frozen=True)
class Task:
    """A data set and a network, at one scale.

    Attributes:
        name: `DATA/NETWORK`.
        about: the network's size, in words.
        build: makes the network.
        config: how every variant is trained.
        limits: of the data.
    """

    name: str
    about: str
    build: Callable[[], nn.Module]
    config: TrainConfig
    limits: Limits = (None, None)

    def load(self, folder: Path, *, download: bool = False) -> Data:
        """The data; see `benchmarks.training.data.load`."""
        data = self.name.partition("/")[0]
        return thinned(load(data, folder, self.config.context, download=download), *self.limits)


@dataclass(frozen=True)
class Net:
    """A network for pictures, and what of the recipe is its own.

    Attributes:
        name, about: what tables call it, and its size in words.
        build: makes it for a height of pictures and a number of channels.
        rate: a learning rate that is usual for AdamW and such a network; it was not searched for.
        epochs: to train it.
    """

    name: str
    about: str
    build: Callable[[int, int], nn.Module]
    rate: float
    epochs: int


def _resnet(depth: int, epochs: int, half: bool = False, width: int = 16) -> Net:
    layers = 6 * depth + 2
    about = f"{layers} layers, {width} to {4 * width} channels{', pictures at half size' if half else ''}"

    def build(side: int, channels: int) -> nn.Module:
        network = resnet(depth, channels, width)
        return nn.Sequential(nn.AvgPool2d(2), network) if half else network

    return Net(f"resnet{layers}", about, build, 4e-3, epochs)


def _vit(parts: int, depth: int, width: int, heads: int, epochs: int, name: str = "vit") -> Net:
    def build(side: int, channels: int) -> nn.Module:
        return vit(side, channels, patch=-(-side // parts), depth=depth, width=width, heads=heads)

    return Net(name, f"{depth} blocks of width {width}, up to {parts}x{parts} patches", build, 1e-3, epochs)


def _convnext(width: int, depths: tuple[int, ...], epochs: int) -> Net:
    about = f"{', '.join(map(str, depths))} blocks, width {width} and up, patches of 2"
    return Net("convnext", about, lambda side, channels: convnext(channels, width, depths), 2e-3, epochs)


# For each scale the limits (see `Task`), the pictures in a batch, and the networks.
PICTURE_SCALES: dict[str, tuple[Limits, int, tuple[Net, ...]]] = {
    "gpu": (
        (None, None),
        256,
        (
            _resnet(5, 50),
            _resnet(9, 50),
            _resnet(18, 50),
            _vit(8, 12, 192, 3, 50),
            _vit(8, 12, 384, 6, 50, name="vit-small"),
            _convnext(40, (3, 3, 9, 3), 50),
        ),
    ),
    # Narrow, so that they can be trained until more blocks are worth something.
    "cpu": (
        (None, None),
        64,
        (
            _resnet(3, 15, half=True, width=8),
            _vit(4, 9, 32, 2, 13),
            _vit(8, 9, 32, 2, 13, name="vit-fine"),
            _convnext(8, (3, 3, 9, 3), 8),
        ),
    ),
    "smoke": ((64, 64), 16, (_resnet(4, 1, half=True), _vit(2, 4, 24, 2, 1))),
}
# The GPT, the limits of its windows, and how it is trained; smoothed labels would be paid for in bits per byte. On a
# CPU it is small enough to be trained until more blocks are worth something: after 600 steps at width 96, fewer were
# better.
TEXT_SCALES: dict[str, tuple[dict[str, int], Limits, TrainConfig]] = {
    "gpu": (
        {"context": 256, "width": 384, "depth": 12, "heads": 6},
        (None, 4000),
        TrainConfig(epochs=6, batch_size=64, lr=1e-3, warmup=0.1),
    ),
    "cpu": (
        {"context": 64, "width": 32, "depth": 9, "heads": 2},
        (128_000, 2000),
        TrainConfig(epochs=1, batch_size=16, lr=1.5e-3, warmup=0.1),
    ),
    "smoke": (
        {"context": 16, "width": 16, "depth": 4, "heads": 2},
        (8, 10),
        TrainConfig(epochs=1, batch_size=2, lr=1e-3, warmup=0.1, log_every=1),
    ),
}
SCALES = tuple(TEXT_SCALES)
# Height and channels of the pictures.
PICTURES = {"cifar10": (32, 3), "fashion-mnist": (28, 1)}


def tasks(scale: str) -> dict[str, Task]:
    """The tasks of a scale, by name."""
    limits, batch, nets = PICTURE_SCALES[scale]
    shared = TrainConfig(batch_size=batch, warmup=0.1, label_smoothing=0.1, log_every=1 if scale == "smoke" else 10)
    made = [
        Task(
            f"{data}/{net.name}",
            net.about,
            partial(net.build, *shape),
            shared.changed(epochs=net.epochs, lr=net.rate),
            limits,
        )
        for data, shape in PICTURES.items()
        for net in nets
    ]
    sizes, windows, config = TEXT_SCALES[scale]
    about = f"{sizes['depth']} blocks of width {sizes['width']}, bytes, context {sizes['context']}"
    of_text = config.changed(context=sizes["context"])
    made.append(Task(f"{TEXT}/gpt", about, partial(gpt, **sizes), of_text, windows))
    return {task.name: task for task in made}
