"""The U-Nets of three libraries: every block that repeats can be narrower. Skipped where a library is not installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx

pytestmark = pytest.mark.zoo


def _monai(library: Any, **settings: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    sizes = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2)}
    return library.UNet(**sizes, num_res_units=2, **settings), (torch.randn(2, 1, 16, 16),)


def _diffusers(library: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = library.UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )
    return model, (torch.randn(2, 3, 16, 16), torch.tensor(5))


def _segmentation(library: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = library.Unet("resnet18", encoder_weights=None, decoder_channels=(64, 32, 16, 8, 4))
    return model, (torch.randn(2, 3, 32, 32),)


MODELS: dict[str, tuple[str, Callable[[Any], tuple[nn.Module, tuple[Tensor, ...]]]]] = {
    "MONAI": ("monai.networks.nets", _monai),
    "MONAI, group norm": ("monai.networks.nets", lambda lib: _monai(lib, norm=("group", {"num_groups": 2}))),
    "diffusers": ("diffusers", _diffusers),
    "segmentation-models": ("segmentation_models_pytorch", _segmentation),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_every_block_of_a_unet_can_be_narrower(name: str) -> None:
    package, make = MODELS[name]
    pytest.importorskip(package.partition(".")[0])
    model, args = make(importlib.import_module(package))
    result = repl_fx.transform(model.eval(), args, surrogate="narrow", every=1)
    assert {one.surrogate for one in result.plan.replacements} == {"narrow"}
    blocks = [block for repeat in result.repeats for block in repeat.blocks]
    gone = {one.block for one in result.plan.replacements}
    nodes = {node for block in blocks if block.name in gone for node in block.nodes}
    assert blocks and all(nodes & block.node_set for block in blocks)
    whole: Any = {"settings": {"ratio": 1.0}, "captured": result.captured_parts}
    same: Any = repl_fx.transform(model, args, surrogate="narrow", every=1, **whole).graph_module.eval()
    with torch.no_grad():
        ours, theirs = (one(*args) for one in (same, model))
    assert torch.equal(*(out if isinstance(out, Tensor) else out["sample"] for out in (ours, theirs)))
