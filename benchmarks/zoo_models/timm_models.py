"""The models of timm: the smallest of each model file, and those that are used most. Random weights, dropout on.

`SMALLEST` was chosen with timm 1.0.31: of the entry points that a file registers, the one with the fewest parameters,
all built on the meta device; `python -m benchmarks.zoo_models.timm_models` prints the table again. Left out of that
choice are the `test_*` models, which timm keeps for its own tests: one block a stage, so nothing in them repeats.

Images are 96x96 where the model takes them, which is all but those in `SIZES`: it is built for them where its
constructor has an `img_size`, and is fully convolutional otherwise.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from benchmarks.zoo_models.case import PICTURES, Built, Case
from benchmarks.zoo_models.weights import wake

# Model file -> its smallest model.
SMALLEST = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_zepto_rms",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "mobilenetv2_035",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
# Among the most downloaded of timm on Hugging Face, one of each kind and size; those above are not repeated.
MOST_USED = (
    "resnet18",
    "resnet50",
    "resnet101",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "seresnet50",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_base_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "deit_small_patch16_224",
    "eva02_tiny_patch14_224",
    "mixer_b16_224",
    "convnext_tiny",
    "convnextv2_tiny",
    "efficientnet_b0",
    "tf_efficientnetv2_s",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "regnety_040",
    "maxvit_tiny_tf_224",
    "coatnet_0_rw_224",
)
SIZE = 96
# Images of another size: its attention, its tables or its patches fit no smaller one.
SIZES = {
    "halonet_h1": 256,
    "crossvit_tiny_240": 240,
    "efficientformer_l1": 224,
    "deepseek_vit_412m": 112,
    "eva02_tiny_patch14_224": 112,
    "vit_base_patch14_reg4_dinov2": 112,
    "maxvit_tiny_tf_224": 224,
    "coatnet_0_rw_224": 128,
}
# Fewer blocks, so that parameters, gradients and copies of them fit into memory.
SHRUNK: dict[str, tuple[dict[str, Any], str]] = {
    "deepseek_vit_412m": ({"depth": 6}, "depth 6"),
}
RATES = {"drop_rate": 0.1, "drop_path_rate": 0.1}


def cases() -> list[Case]:
    """The models, the smallest of each file first."""
    listed = [(file, name) for file, name in SMALLEST.items()]
    listed += [("most used", name) for name in MOST_USED if name not in SMALLEST.values()]
    return [
        Case(f"timm:{name}", file, functools.partial(build, name), SHRUNK.get(name, ({}, ""))[1], PICTURES)
        for file, name in listed
    ]


def build(name: str) -> Built:
    """A model of timm with dropout and drop path where its constructor has them, and two images."""
    import timm

    torch.manual_seed(0)
    config: Any = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    size, options = size_of(name), {**RATES, **SHRUNK.get(name, ({}, ""))[0]}
    if size != config.input_size[-1]:
        options["img_size"] = size
    model = created(timm, name, options)
    wake(model)
    return model, (torch.randn(2, config.input_size[0], size, size),), {}


def size_of(name: str) -> int:
    """The height and width that a model's images have here."""
    return SIZES.get(name, SIZE)


def created(timm: Any, name: str, options: dict[str, Any]) -> nn.Module:
    """A model of timm with those of the options that its constructor takes."""
    options = dict(options)
    while True:
        try:
            model: nn.Module = timm.create_model(name, **options)
        except TypeError as problem:
            foreign = [option for option in options if f"'{option}'" in str(problem)]
            if not foreign:
                raise
            del options[foreign[0]]
        else:
            return model


def _choose() -> None:
    import timm
    from timm.models import _registry

    for file in sorted(_registry._module_to_models):
        sizes = {}
        for name in timm.list_models(module=file):
            if not name.startswith("test_"):
                with torch.device("meta"):
                    sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
        print(f'    "{file}": "{min(sizes, key=lambda n: sizes[n])}",')


if __name__ == "__main__":
    _choose()
