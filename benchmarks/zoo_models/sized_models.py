"""Models that take other sizes than they are captured with, small ones: the list of `python -m benchmarks.zoo --sizes`.

Convolutional and hybrid networks of timm and torchvision, segmentation networks of torchvision and of
segmentation-models, U-Nets of MONAI and diffusers, files of `examples/`, and the zoo's decoders. Where a model's depth
or width can be set, one stage has blocks enough to repeat.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo_models import diffusers_models, hugging_face, timm_models
from benchmarks.zoo_models.case import Built, Case
from benchmarks.zoo_models.weights import wake

_DEEP = (3, 1, 1, 1)
# Built for pictures of another size than those of the capture: at its own size its code goes a way of its own.
_VIT = {"dynamic_img_size": True, "img_size": 48, "depth": 4, "embed_dim": 48, "num_heads": 3}
TIMM: dict[str, dict[str, Any]] = {
    "resnet10t": {"layers": _DEEP},
    "resnetv2_18": {"layers": _DEEP},
    "convnext_zepto_rms": {"depths": _DEEP},
    "mobilenetv2_035": {},
    "mobilenetv3_small_050": {},
    "regnetx_002": {},
    "ghostnet_050": {},
    "edgenext_xx_small": {"depths": (2, 2, 3, 2)},
    "mobilevit_xxs": {},
    "poolformerv2_s12": {},
    "mambaout_femto": {"depths": _DEEP},
    "starnet_s050": {},
    "fasternet_t0": {"depths": _DEEP},
    "pvt_v2_b0": {"depths": (1, 3, 1, 1)},
    "xcit_nano_12_p8_224": {"depth": 4},
    "vit_tiny_patch16_224": _VIT,
    "vit_small_patch16_dinov3": {**_VIT, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        **{"img_size": 64, "depths": (2, 6), "embed_dim": 24, "num_heads": (2, 2), "window_size": 4},
        "strict_img_size": False,
    },
}
TORCHVISION: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "mobilenet_v3_small": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "mnasnet0_5": {},
    "regnet_y_400mf": {},
    "fcn_resnet50": {},
    "deeplabv3_mobilenet_v3_large": {},
    "lraspp_mobilenet_v3_large": {},
}
SEGMENTATION = ("Unet", "UnetPlusPlus", "FPN", "Linknet", "PSPNet", "MAnet")
_FLAT = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_LEVELS = {"channels": (8, 16, 32), "strides": (2, 2)}
_STEPS = {"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2)}
MONAI: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "UNet": ({**_FLAT, **_LEVELS, "num_res_units": 3}, (32, 48)),
    "BasicUNet": ({**_FLAT, "features": (8, 8, 16, 16, 32, 8)}, (32, 48)),
    "AttentionUnet": ({**_FLAT, **_LEVELS}, (32, 48)),
    "SegResNet": ({**_FLAT, "init_filters": 8, "blocks_down": (3, 1, 1), "blocks_up": (1, 1)}, (32, 48)),
    "DynUNet": ({**_FLAT, **_STEPS, "filters": (8, 16, 32), "res_block": True}, (32, 48)),
    "HighResNet": ({"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, (12, 16, 20)),
}
# Of the zoo: decoders, and what of diffusers takes pictures or sounds.
DECODERS = (
    *("gpt2", "gpt-neo", "gptj", "gpt-neox", "bloom", "opt", "falcon", "llama", "mistral", "qwen2", "qwen3", "phi"),
)
DIFFUSERS = (
    *("UNet2DModel", "UNet2DConditionModel", "UNet1DModel", "AutoencoderKL", "VQModel", "AsymmetricAutoencoderKL"),
    "ControlNetModel",
)
EXAMPLES = ("nano_gpt", "gpt", "resnet32")


class PlainUNet(nn.Module):
    """A U-Net as people write it: three levels, padded to the size of what skips one."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        steps = [(width, 2 * width), (2 * width, 4 * width)]
        self.stem = _convolutions(3, width)
        self.down = nn.ModuleList(_convolutions(before, after) for before, after in steps)
        self.middle = nn.Sequential(*(_Residual(4 * width) for _ in range(4)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(after, before, 2, stride=2) for before, after in reversed(steps))
        self.join = nn.ModuleList(_convolutions(2 * before, before) for before, _ in reversed(steps))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures (batch, 3, height, width) to classes of pixels (batch, 2, height, width)."""
        x = self.stem(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(F.max_pool2d(x, 2))
        x = self.middle(x)
        for up, join in zip(self.up, self.join, strict=True):
            x, skip = up(x), skips.pop()
            high, wide = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
            x = join(torch.cat([skip, F.pad(x, [0, wide, 0, high])], dim=1))
        logits: Tensor = self.head(x)
        return logits


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = _convolutions(width, width)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.inside(x)
        return changed


def _convolutions(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


def cases() -> list[Case]:
    """The models, library by library; those of the zoo have their names there with `sized` in front."""
    zoo = {case.name: case for module in (hugging_face, diffusers_models) for case in module.cases()}
    found = [(f"timm:{name}", functools.partial(_timm, name)) for name in TIMM]
    found += [(f"torchvision:{name}", functools.partial(_torchvision, name)) for name in TORCHVISION]
    found += [(f"smp:{name}", functools.partial(_segmentation, name)) for name in SEGMENTATION]
    found += [(f"monai:{name}", functools.partial(_monai, name)) for name in MONAI]
    found += [(f"diffusers:{name}", functools.partial(zoo[f"diffusers:{name}"].build)) for name in DIFFUSERS]
    found += [(f"hf:{name}", functools.partial(zoo[f"hf:{name}"].build)) for name in DECODERS]
    found += [(f"own:{name}", functools.partial(_example, name)) for name in EXAMPLES]
    found.append(("own:plain_unet", functools.partial(_made, PlainUNet, (3, 32, 48))))
    return [Case(f"sized:{name}", name.partition(":")[0], build) for name, build in found]


def _made(make: Callable[[], nn.Module], sizes: tuple[int, ...]) -> Built:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        wake(model)
        return model, (torch.randn(2, *sizes),), {}


def _timm(name: str) -> Built:
    import timm

    rates = {} if name.startswith("swin") else timm_models.RATES
    return _made(lambda: timm_models.created(timm, name, {**rates, **TIMM[name]}), (3, 64, 64))


def _torchvision(name: str) -> Built:
    from torchvision import models

    options = {"weights_backbone": None} if name.startswith(("fcn", "deeplab", "lraspp")) else {}
    return _made(lambda: models.get_model(name, weights=None, **options, **TORCHVISION[name]), (3, 64, 64))


def _segmentation(name: str) -> Built:
    library: Any = import_module("segmentation_models_pytorch")
    return _made(lambda: getattr(library, name)("resnet18", encoder_weights=None), (3, 64, 64))


def _monai(name: str) -> Built:
    library: Any = import_module("monai.networks.nets")
    settings, sizes = MONAI[name]
    return _made(lambda: getattr(library, name)(**settings), (1, *sizes))


def _example(name: str) -> Built:
    file: Any = import_module(f"examples.{name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return file.model(), tuple(file.example_inputs()), {}
