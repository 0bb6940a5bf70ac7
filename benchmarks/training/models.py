"""The models that the benchmarks of training run: those of `examples/` at several sizes, and real ones.

Nothing is downloaded: all weights are random.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True)
class Network:
    """A model to train.

    Attributes:
        name: what `--models` calls it.
        build: makes it, with fresh random weights.
        inputs: makes inputs for a batch size.
        classes: size of the last dimension of its output.
        language: whether inputs are ids (batch, length) and the output is for the id after each; else they are
            images, and the output is for the image.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    classes: int
    language: bool = False

    def targets(self, inputs: Tensor) -> Tensor:
        """Random targets for inputs."""
        shape = inputs.shape if self.language else inputs.shape[:1]
        return torch.randint(0, self.classes, shape, device=inputs.device)


def example(name: str) -> ModuleType:
    """A module of `examples/`."""
    known = f"repl_fx_example_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[known] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[known]


def resnet(depth: int, channels: int = 3, width: int = 16) -> nn.Module:
    """The CIFAR ResNet of 6 * depth + 2 layers, for pictures of any number of channels."""
    model: nn.Module = example("resnet32").ResNet(depth, width=width)
    if channels != 3:
        first = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        model.conv = first
    return model


def vit(image: int = 32, channels: int = 3, **sizes: Any) -> nn.Module:
    """The vision transformer of `examples/vit.py`, without dropout of features (one recipe for all networks)."""
    model: nn.Module = example("vit").VisionTransformer(image=image, **{"dropout": 0.0, "drop_path": 0.0} | sizes)
    if channels != 3:
        old = model.patches
        assert isinstance(old, nn.Conv2d)
        model.patches = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride)  # type: ignore[arg-type]
    return model


def convnext(channels: int = 3, width: int = 48, depths: tuple[int, ...] = (3, 3, 9)) -> nn.Module:
    """The ConvNeXt of torchvision with patches of 2 and three stages, for pictures of 28x28 or 32x32."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths = [width * 2**i for i in range(len(depths))]
    stages = [CNBlockConfig(w, after, d) for w, after, d in zip(widths, [*widths[1:], None], depths, strict=True)]
    model = ConvNeXt(stages, num_classes=10)
    stem = model.features[0]
    assert isinstance(stem, nn.Sequential)
    stem[0] = nn.Conv2d(channels, width, 2, stride=2)
    made: nn.Module = model
    return made


def gpt(**sizes: Any) -> nn.Module:
    """The GPT of `examples/gpt.py`, without dropout."""
    model: nn.Module = example("gpt").GPT(**{"dropout": 0.0} | sizes)
    return model


def _torchvision(name: str) -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model


def _timm(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name)
    return model


def _images(size: int, batch: int) -> Tensor:
    return torch.randn(batch, 3, size, size)


def _ids(length: int, batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, length))


def networks() -> dict[str, Network]:
    """The models whose cost of training is measured, by name."""
    known = (
        Network("resnet50", partial(_torchvision, "resnet50"), partial(_images, 224), 1000),
        Network("resnet110", partial(resnet, 18), partial(_images, 32), 10),
        Network("vit_small", partial(_timm, "vit_small_patch16_224"), partial(_images, 224), 1000),
        Network("vit_base", partial(_timm, "vit_base_patch16_224"), partial(_images, 224), 1000),
        Network(
            "gpt12",
            partial(gpt, context=1024, width=768, depth=12, heads=12),
            partial(_ids, 1024),
            256,
            language=True,
        ),
    )
    return {network.name: network for network in known}


def small_networks() -> dict[str, Network]:
    """Models of the same kinds that a CPU trains in well under a second a step, by name."""
    known = (
        Network("resnet32", partial(resnet, 5), partial(_images, 32), 10),
        Network("vit", vit, partial(_images, 32), 10),
        Network("gpt", partial(gpt, context=256), partial(_ids, 256), 256, language=True),
    )
    return {network.name: network for network in known}
