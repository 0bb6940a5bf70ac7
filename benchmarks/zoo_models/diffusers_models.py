"""Diffusion models of diffusers: U-Nets, transformers, autoencoders and control networks in small configurations.

Nothing is downloaded: each class is built from the sizes given here, weights are random, dropout is on where a model
has it. Images are latents of 16x16, texts seven tokens long.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_models.case import Built, Case
from benchmarks.zoo_models.weights import wake

SIDE = 16
TOKENS = 7
WIDTH = 32
LAYERS = 5

Inputs = Callable[[], dict[str, Any]]

_IMAGE_BLOCKS = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 2}
_TEXT_UNET = {
    **_IMAGE_BLOCKS,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 8,
    "transformer_layers_per_block": 3,
}
_AUTOENCODER = {
    **_IMAGE_BLOCKS,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
_HEADS = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": LAYERS}


def cases() -> list[Case]:
    """The models, by family."""
    return [
        _case("UNet2DModel", "unet", _noisy, _unet_2d()),
        _case(
            "UNet2DConditionModel", "unet", _told, {**_TEXT_UNET, **_ups("CrossAttnUpBlock2D", "2D"), "dropout": 0.1}
        ),
        _case("UNet1DModel", "unet", _sound, _unet_1d()),
        _case("UNet3DConditionModel", "unet", _film, _unet_3d()),
        _case("UNetMotionModel", "unet", _film_told_by_frame, _unet_motion()),
        _case("StableCascadeUNet", "unet", _cascade, _cascade_unet()),
        _case("UVit2DModel", "unet", _codes, _uvit()),
        _case(
            "ControlNetModel", "control", _controlled, {**_TEXT_UNET, "conditioning_embedding_out_channels": (8, 16)}
        ),
        _case("T2IAdapter", "control", _picture, {"channels": [16, 32], "num_res_blocks": 4, "downscale_factor": 4}),
        _case("DiTTransformer2DModel", "transformer", _labelled, _dit()),
        _case("PixArtTransformer2DModel", "transformer", _captioned, _pixart()),
        _case("SD3Transformer2DModel", "transformer", _pooled, _sd3()),
        _case("FluxTransformer2DModel", "transformer", _packed, _flux()),
        _case("SanaTransformer2DModel", "transformer", _flowing, _sana()),
        _case("AuraFlowTransformer2DModel", "transformer", _flowing, _aura_flow()),
        _case("LTXVideoTransformer3DModel", "transformer", _packed_film, _ltx()),
        _case("WanTransformer3DModel", "transformer", _film_first, _wan()),
        _case("CogVideoXTransformer3DModel", "transformer", _frames, _cog_video()),
        _case("StableAudioDiTModel", "transformer", _music, _stable_audio()),
        _case("PriorTransformer", "transformer", _prior, {**_HEADS, "embedding_dim": WIDTH, "num_embeddings": TOKENS}),
        _case("AutoencoderKL", "autoencoder", _picture_sample, {**_AUTOENCODER, "latent_channels": 4}),
        _case("VQModel", "autoencoder", _picture_sample, {**_AUTOENCODER, "num_vq_embeddings": 64}),
        _case("AutoencoderTiny", "autoencoder", _picture_sample, _tiny()),
        _case("AsymmetricAutoencoderKL", "autoencoder", _picture_sample, _asymmetric()),
    ]


def _case(name: str, family: str, inputs: Inputs, settings: dict[str, Any]) -> Case:
    return Case(f"diffusers:{name}", family, functools.partial(build, name, inputs, settings))


def build(name: str, inputs: Inputs, settings: dict[str, Any]) -> Built:
    """A model of diffusers and a batch of two of what it takes."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(diffusers, name)(**settings)
        wake(model)
        return model, (), inputs()


def _ups(attending: str, kind: str) -> dict[str, Any]:
    return {"up_block_types": (f"UpBlock{kind}", attending)}


def _unet_2d() -> dict[str, Any]:
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return {**_IMAGE_BLOCKS, "down_block_types": down, "up_block_types": up, "sample_size": SIDE, "dropout": 0.1}


def _unet_1d() -> dict[str, Any]:
    return {
        "block_out_channels": (16, 32, 64, 64),
        "in_channels": 6,
        "out_channels": 6,
        "time_embedding_type": "positional",
        "use_timestep_embedding": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1.0,
        "act_fn": "swish",
        "out_block_type": "OutConv1DBlock",
        "mid_block_type": "MidResTemporalBlock1D",
        "down_block_types": ("DownResnetBlock1D",) * 4,
        "up_block_types": ("UpResnetBlock1D",) * 3,
        "norm_num_groups": 8,
    }


def _unet_3d() -> dict[str, Any]:
    down, up = ("CrossAttnDownBlock3D", "DownBlock3D"), ("UpBlock3D", "CrossAttnUpBlock3D")
    sizes = {**_IMAGE_BLOCKS, "cross_attention_dim": WIDTH, "attention_head_dim": 8}
    return {**sizes, "down_block_types": down, "up_block_types": up}


def _unet_motion() -> dict[str, Any]:
    sizes = {**_IMAGE_BLOCKS, "cross_attention_dim": WIDTH, "num_attention_heads": 2, "motion_num_attention_heads": 2}
    down = ("CrossAttnDownBlockMotion", "DownBlockMotion")
    return {**sizes, "down_block_types": down, **_ups("CrossAttnUpBlockMotion", "Motion"), "motion_max_seq_length": 8}


def _cascade_unet() -> dict[str, Any]:
    return {
        "block_out_channels": (16, 32),
        "num_attention_heads": (2, 4),
        "down_num_layers_per_block": (2, 4),
        "up_num_layers_per_block": (4, 2),
        "conditioning_dim": WIDTH,
        "clip_text_pooled_in_channels": WIDTH,
    }


def _uvit() -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "cond_embed_dim": WIDTH,
        "encoder_hidden_size": WIDTH,
        "micro_cond_encode_dim": 8,
        "micro_cond_embed_dim": 40,
        "vocab_size": 65,
        "codebook_size": 64,
        "in_channels": WIDTH,
        "block_out_channels": WIDTH,
        "block_num_heads": 4,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "sample_size": 8,
    }


def _dit() -> dict[str, Any]:
    return {**_HEADS, "sample_size": SIDE, "num_embeds_ada_norm": 100, "dropout": 0.1}


def _pixart() -> dict[str, Any]:
    return {**_HEADS, "sample_size": SIDE, "cross_attention_dim": WIDTH, "caption_channels": WIDTH, "dropout": 0.1}


def _sd3() -> dict[str, Any]:
    text = {"joint_attention_dim": WIDTH, "caption_projection_dim": WIDTH, "pooled_projection_dim": WIDTH}
    return {**_HEADS, **text, "sample_size": SIDE, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": SIDE}


def _flux() -> dict[str, Any]:
    text = {"joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "axes_dims_rope": (2, 2, 4)}
    return {**_HEADS, **text, "num_single_layers": LAYERS, "in_channels": 16}


def _sana() -> dict[str, Any]:
    cross = {"num_cross_attention_heads": 4, "cross_attention_head_dim": 8, "cross_attention_dim": WIDTH}
    return {**_HEADS, **cross, "in_channels": 4, "out_channels": 4, "caption_channels": WIDTH, "sample_size": SIDE}


def _aura_flow() -> dict[str, Any]:
    sizes = {"attention_head_dim": 8, "num_attention_heads": 4, "num_mmdit_layers": 4, "num_single_dit_layers": LAYERS}
    text = {"joint_attention_dim": WIDTH, "caption_projection_dim": WIDTH, "pos_embed_max_size": 64}
    return {**sizes, **text, "sample_size": SIDE, "in_channels": 4, "out_channels": 4}


def _ltx() -> dict[str, Any]:
    return {**_HEADS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": WIDTH, "caption_channels": WIDTH}


def _wan() -> dict[str, Any]:
    sizes = {**_HEADS, "in_channels": 4, "out_channels": 4, "ffn_dim": 64, "freq_dim": 16, "rope_max_seq_len": 32}
    return {**sizes, "text_dim": WIDTH, "attention_head_dim": 12}


def _cog_video() -> dict[str, Any]:
    sizes = {"in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": WIDTH, "dropout": 0.1}
    film = {"sample_width": SIDE, "sample_height": SIDE, "sample_frames": 9, "max_text_seq_length": TOKENS}
    return {**_HEADS, **sizes, **film}


def _stable_audio() -> dict[str, Any]:
    sizes = {**_HEADS, "num_key_value_attention_heads": 2, "sample_size": SIDE, "in_channels": 4, "out_channels": 4}
    return {**sizes, "cross_attention_dim": WIDTH, "cross_attention_input_dim": WIDTH, "global_states_input_dim": WIDTH}


def _tiny() -> dict[str, Any]:
    channels = (16, 16)
    blocks = {"num_encoder_blocks": (1, 4), "num_decoder_blocks": (4, 1)}
    return {**blocks, "encoder_block_out_channels": channels, "decoder_block_out_channels": channels}


def _asymmetric() -> dict[str, Any]:
    kinds = {name: _AUTOENCODER[name] for name in ("down_block_types", "up_block_types", "norm_num_groups")}
    down = {"down_block_out_channels": (16, 32), "layers_per_down_block": 2}
    return {**kinds, **down, "up_block_out_channels": (16, 32), "layers_per_up_block": 3}


def _steps() -> Tensor:
    """Two steps of the noise schedule."""
    return torch.tensor([10, 700])


def _text() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH)


def _latents(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, SIDE, SIDE)


def _noisy() -> dict[str, Any]:
    return {"sample": _latents(3), "timestep": _steps()}


def _told() -> dict[str, Any]:
    return {"sample": _latents(), "timestep": _steps(), "encoder_hidden_states": _text()}


def _sound() -> dict[str, Any]:
    return {"sample": torch.randn(2, 6, SIDE), "timestep": _steps()}


def _film() -> dict[str, Any]:
    return {"sample": torch.randn(2, 4, 3, SIDE, SIDE), "timestep": _steps(), "encoder_hidden_states": _text()}


def _film_told_by_frame() -> dict[str, Any]:
    return {**_film(), "encoder_hidden_states": _text().repeat_interleave(3, 0)}


def _cascade() -> dict[str, Any]:
    text = {"clip_text_pooled": torch.randn(2, 1, WIDTH)}
    return {"sample": torch.randn(2, 16, 8, 8), "timestep_ratio": torch.tensor([0.1, 0.7]), **text}


def _codes() -> dict[str, Any]:
    text = {"encoder_hidden_states": _text(), "pooled_text_emb": torch.randn(2, WIDTH)}
    return {"input_ids": torch.randint(0, 64, (2, 8, 8)), **text, "micro_conds": torch.rand(2, 5)}


def _controlled() -> dict[str, Any]:
    return {**_told(), "controlnet_cond": torch.randn(2, 3, 2 * SIDE, 2 * SIDE)}


def _picture() -> dict[str, Any]:
    return {"x": torch.randn(2, 3, 2 * SIDE, 2 * SIDE)}


def _picture_sample() -> dict[str, Any]:
    return {"sample": torch.randn(2, 3, 2 * SIDE, 2 * SIDE)}


def _labelled() -> dict[str, Any]:
    return {"hidden_states": _latents(), "timestep": _steps(), "class_labels": torch.tensor([3, 8])}


def _captioned() -> dict[str, Any]:
    mask = torch.ones(2, TOKENS)
    mask[1, 4:] = 0
    given = {"hidden_states": _latents(), "encoder_hidden_states": _text(), "timestep": _steps()}
    return {**given, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}, "encoder_attention_mask": mask}


def _pooled() -> dict[str, Any]:
    text = {"encoder_hidden_states": _text(), "pooled_projections": torch.randn(2, WIDTH)}
    return {"hidden_states": _latents(), **text, "timestep": _steps()}


def _packed() -> dict[str, Any]:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    places = torch.stack([torch.zeros(4, 4), rows, columns], dim=-1).flatten(0, 1)
    text = {"encoder_hidden_states": _text(), "pooled_projections": torch.randn(2, WIDTH)}
    image = {"hidden_states": torch.randn(2, 16, 16), "timestep": torch.tensor([0.1, 0.7])}
    return {**image, **text, "img_ids": places, "txt_ids": torch.zeros(TOKENS, 3)}


def _flowing() -> dict[str, Any]:
    return {"hidden_states": _latents(), "encoder_hidden_states": _text(), "timestep": torch.tensor([0.1, 0.7])}


def _packed_film() -> dict[str, Any]:
    text = {"encoder_hidden_states": _text(), "encoder_attention_mask": torch.ones(2, TOKENS)}
    size = {"num_frames": 2, "height": 4, "width": 4}
    return {"hidden_states": torch.randn(2, 32, 8), **text, "timestep": _steps(), **size}


def _film_first() -> dict[str, Any]:
    return {"hidden_states": torch.randn(2, 4, 2, 8, 8), "timestep": _steps(), "encoder_hidden_states": _text()}


def _frames() -> dict[str, Any]:
    return {"hidden_states": torch.randn(2, 3, 4, SIDE, SIDE), "encoder_hidden_states": _text(), "timestep": _steps()}


def _music() -> dict[str, Any]:
    sound = {"hidden_states": torch.randn(2, 4, SIDE), "timestep": torch.tensor([0.1, 0.7])}
    return {**sound, "encoder_hidden_states": _text(), "global_hidden_states": torch.randn(2, 1, WIDTH)}


def _prior() -> dict[str, Any]:
    image = {"hidden_states": torch.randn(2, WIDTH), "timestep": _steps()}
    return {**image, "proj_embedding": torch.randn(2, WIDTH), "encoder_hidden_states": _text()}
