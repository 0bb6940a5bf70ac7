"""Hugging Face transformers: small configurations of many architectures, with every dropout on.

Nothing is downloaded: a config is made by its own class, what it has for sizes is set to the small values below, and
weights are random. Attention, caches and output classes are left at what the library does by default.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_models.case import PICTURES, TEXT, TOKENS, Built, Case

LAYERS = 4
LENGTH = 12
IMAGE = 32
WIDTH = 32
VOCABULARY = 100

# Applied to whatever a config class takes of it.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "sep_token_id": 3,
    "cls_token_id": 1,
    "forced_eos_token_id": None,
    "image_size": IMAGE,
    "patch_size": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "hidden_size": WIDTH,
    "d_model": WIDTH,
    "n_embd": WIDTH,
    "dim": WIDTH,
    "embedding_size": WIDTH,
    "projection_dim": WIDTH,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "d_ff": 64,
    "d_inner": 64,
    "hidden_dim": 64,
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "num_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
}
_DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "activation_dropout"),
    *("hidden_dropout", "resid_dropout", "embed_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "emb_pdrop"),
    *("dropout_rate", "embedding_dropout", "mlp_dropout", "drop_path_rate", "classifier_dropout"),
    *("feat_proj_dropout", "final_dropout", "positional_dropout"),
)
# What the commands that read data give models of these classes.
_DATA = {"LMHeadModel": TEXT, "ForCausalLM": TEXT, "ForMaskedLM": TOKENS, "ForImageClassification": PICTURES}
# Codes of sound, and an encoder of anything.
_NO_TEXT = ("musicgen-decoder", "perceiver")
_LAYER_DROPS = ["layerdrop", "encoder_layerdrop", "decoder_layerdrop"]


def config_of(name: str, **settings: Any) -> Any:
    """A small config of a class of transformers; settings override."""
    import transformers

    config_class = getattr(transformers, name)
    parameters = inspect.signature(config_class).parameters
    chosen = {key: value for key, value in _SIZES.items() if key in parameters}
    for key in (*_DROPOUTS, *_LAYER_DROPS):
        default = parameters[key].default if key in parameters else None
        if isinstance(default, (int, float)):
            chosen[key] = 0.2 if key in _LAYER_DROPS else 0.1
    return config_class(**{**chosen, **settings})


def _case(
    name: str,
    config: str | Callable[[], Any],
    model: str,
    inputs: Callable[[], Mapping[str, Tensor]],
    note: str = "",
    **settings: Any,
) -> Case:
    def build() -> Built:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = config() if callable(config) else config_of(config, **settings)
            import transformers

            built: nn.Module = getattr(transformers, model)(made)
            return built, (), dict(inputs())

    data = "" if name in _NO_TEXT else next((data for ending, data in _DATA.items() if model.endswith(ending)), "")
    return Case(f"hf:{name}", name, build, note, data)


def _ids(length: int = LENGTH) -> Tensor:
    return torch.randint(5, 90, (2, length))


def _text(length: int = LENGTH) -> dict[str, Tensor]:
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, -3:] = 0
    return {"input_ids": _ids(length), "attention_mask": mask}


def _translation() -> dict[str, Tensor]:
    return {**_text(), "decoder_input_ids": _ids(7)}


def _image(size: int = IMAGE) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, size, size)}


def _sound(samples: int = 400) -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, samples)}


def _boxes(length: int = LENGTH) -> Tensor:
    corners = torch.randint(0, 50, (2, length, 2))
    return torch.cat([corners, corners + torch.randint(1, 50, (2, length, 2))], dim=-1)


def _language_models() -> list[Case]:
    return [
        _case("gpt2", "GPT2Config", "GPT2LMHeadModel", _text),
        _case("gpt-neo", "GPTNeoConfig", "GPTNeoForCausalLM", _text, attention_types=[[["global", "local"], 3]],
              num_layers=6, window_size=4),
        _case("gptj", "GPTJConfig", "GPTJForCausalLM", _text, rotary_dim=4),
        _case("gpt-neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", _text),
        _case("bloom", "BloomConfig", "BloomForCausalLM", _text),
        _case("opt", "OPTConfig", "OPTForCausalLM", _text),
        _case("falcon", "FalconConfig", "FalconForCausalLM", _text),
        _case("mpt", "MptConfig", "MptForCausalLM", _text, max_seq_len=64),
        _case("llama", "LlamaConfig", "LlamaForCausalLM", _text),
        _case("mistral", "MistralConfig", "MistralForCausalLM", _text, sliding_window=8),
        _case("qwen2", "Qwen2Config", "Qwen2ForCausalLM", _text),
        _case("qwen3", "Qwen3Config", "Qwen3ForCausalLM", _text),
        _case("gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM", _text, num_hidden_layers=6,
              layer_types=["sliding_attention", "full_attention"] * 3, sliding_window=8,
              query_pre_attn_scalar=8),
        _case("phi", "PhiConfig", "PhiForCausalLM", _text),
        _case("mixtral", "MixtralConfig", "MixtralForCausalLM", _text, num_local_experts=4),
        _case("qwen2-moe", "Qwen2MoeConfig", "Qwen2MoeForCausalLM", _text, num_experts=4, num_experts_per_tok=2,
              moe_intermediate_size=32, shared_expert_intermediate_size=32),
        _case("mamba", "MambaConfig", "MambaForCausalLM", _text, state_size=8),
        _case("xlnet", "XLNetConfig", "XLNetLMHeadModel", _text),
        _case("musicgen-decoder", "MusicgenDecoderConfig", "MusicgenForCausalLM",
              lambda: {"input_ids": torch.randint(5, 90, (8, LENGTH))}, "4 codebooks a sample: 8 rows, 2 samples"),
    ]  # fmt: skip


def _encoders() -> list[Case]:
    return [
        _case("bert", "BertConfig", "BertForMaskedLM", _text),
        _case("roberta", "RobertaConfig", "RobertaForMaskedLM", _text),
        _case("electra", "ElectraConfig", "ElectraForPreTraining", _text),
        _case("distilbert", "DistilBertConfig", "DistilBertForMaskedLM", _text),
        _case("albert", "AlbertConfig", "AlbertForMaskedLM", _text, "one layer, called again and again"),
        _case("mobilebert", "MobileBertConfig", "MobileBertForMaskedLM", _text, intra_bottleneck_size=16,
              embedding_size=16, true_hidden_size=16),
        _case("deberta-v2", "DebertaV2Config", "DebertaV2ForMaskedLM", _text, relative_attention=True,
              pos_att_type=["p2c", "c2p"]),
        _case("data2vec-text", "Data2VecTextConfig", "Data2VecTextForMaskedLM", _text),
        _case("modernbert", "ModernBertConfig", "ModernBertForMaskedLM", _text, num_hidden_layers=9,
              local_attention=8),
        _case("bigbird", "BigBirdConfig", "BigBirdForMaskedLM", lambda: _text(64), block_size=4, num_random_blocks=1),
        _case("longformer", "LongformerConfig", "LongformerForMaskedLM", lambda: _text(16), attention_window=8),
        _case("fnet", "FNetConfig", "FNetForMaskedLM", lambda: {"input_ids": _ids()}),
        _case("funnel", "FunnelConfig", "FunnelForMaskedLM", _text, block_sizes=[4, 4], num_decoder_layers=3,
              d_head=8),
        _case("layoutlm", "LayoutLMConfig", "LayoutLMForTokenClassification", lambda: {**_text(), "bbox": _boxes()}),
    ]  # fmt: skip


def _encoder_decoders() -> list[Case]:
    return [
        _case("bart", "BartConfig", "BartForConditionalGeneration", _translation),
        _case("mbart", "MBartConfig", "MBartForConditionalGeneration", _translation),
        _case("pegasus", "PegasusConfig", "PegasusForConditionalGeneration", _translation),
        _case("marian", "MarianConfig", "MarianMTModel", _translation),
        _case("m2m100", "M2M100Config", "M2M100ForConditionalGeneration", _translation),
        _case("led", "LEDConfig", "LEDForConditionalGeneration",
              lambda: {**_text(16), "decoder_input_ids": _ids(7)}, attention_window=8,
              max_encoder_position_embeddings=64, max_decoder_position_embeddings=64),
        _case("t5", "T5Config", "T5ForConditionalGeneration", _translation),
        _case("mt5", "MT5Config", "MT5ForConditionalGeneration", _translation),
        _case("nllb-moe", "NllbMoeConfig", "NllbMoeForConditionalGeneration", _translation, num_experts=4,
              encoder_sparse_step=0, decoder_sparse_step=0),
    ]  # fmt: skip


def _stages(**settings: Any) -> dict[str, Any]:
    """Sizes of a network of four stages, four alike blocks in the first two."""
    return {"depths": [4, 4, 1, 1], "hidden_sizes": [16, 24, 32, 40], **settings}


def _detr() -> Any:
    backbone = config_of("ResNetConfig", depths=[4, 2], hidden_sizes=[16, 24], out_features=["stage2"])
    return config_of("DetrConfig", backbone_config=backbone, use_timm_backbone=False, num_queries=6)


def _deformable_detr() -> Any:
    backbone = config_of(
        "ResNetConfig", depths=[1, 4, 1, 1], hidden_sizes=[8, 16, 24, 32], out_features=["stage2", "stage3", "stage4"]
    )
    return config_of(
        "DeformableDetrConfig", backbone_config=backbone, use_timm_backbone=False, num_queries=6, num_feature_levels=3,
        disable_custom_kernels=True,
    )  # fmt: skip


def _rt_detr() -> Any:
    backbone = config_of(
        "RTDetrResNetConfig", depths=[1, 4, 1, 1], hidden_sizes=[8, 16, 24, 32],
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return config_of(
        "RTDetrConfig", backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32],
        decoder_in_channels=[32, 32, 32], num_queries=6, num_denoising=0, encoder_layers=4,
        # The queries are those of the best scores. With the default weights scores are 6e-11 apart, and PyTorch itself
        # picks others in float64 than in float32.
        anchor_image_size=[64, 64], initializer_range=0.2,
    )  # fmt: skip


def _mask2former() -> Any:
    swin = config_of(
        "SwinConfig", image_size=64, patch_size=4, embed_dim=16, depths=[2, 4, 1, 1], num_heads=[1, 2, 2, 2],
        window_size=2, out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return config_of(
        "Mask2FormerConfig", backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=64, dim_feedforward=64, num_queries=6, encoder_layers=4, decoder_layers=6,
        # Its rate for dropping layers too; the model itself fails when it drops one, for the next has another size.
        dropout=0.0,
    )  # fmt: skip


def _dpt() -> Any:
    return config_of(
        "DPTConfig", num_hidden_layers=8, backbone_out_indices=[1, 3, 5, 7], neck_hidden_sizes=[16, 16, 24, 32],
        fusion_hidden_size=16,
    )  # fmt: skip


def _vision() -> list[Case]:
    return [
        _case("vit", "ViTConfig", "ViTForImageClassification", _image),
        _case("deit", "DeiTConfig", "DeiTForImageClassification", _image),
        _case("beit", "BeitConfig", "BeitForImageClassification", _image, use_relative_position_bias=True),
        _case("dinov2", "Dinov2Config", "Dinov2ForImageClassification", _image),
        _case("vit-mae", "ViTMAEConfig", "ViTMAEForPreTraining",
              lambda: {**_image(), "noise": torch.rand(2, 16)}, decoder_hidden_size=32, decoder_num_hidden_layers=4,
              decoder_num_attention_heads=4, decoder_intermediate_size=64),
        _case("swin", "SwinConfig", "SwinForImageClassification", _image, patch_size=2, embed_dim=16,
              depths=[2, 6], num_heads=[2, 4], window_size=4),
        _case("swinv2", "Swinv2Config", "Swinv2ForImageClassification", _image, patch_size=2, embed_dim=16,
              depths=[2, 6], num_heads=[2, 4], window_size=4, pretrained_window_sizes=[0, 0]),
        _case("convnext", "ConvNextConfig", "ConvNextForImageClassification", lambda: _image(64), patch_size=4,
              **_stages()),
        _case("convnextv2", "ConvNextV2Config", "ConvNextV2ForImageClassification", lambda: _image(64), patch_size=4,
              **_stages()),
        _case("resnet", "ResNetConfig", "ResNetForImageClassification", lambda: _image(64), **_stages()),
        _case("regnet", "RegNetConfig", "RegNetForImageClassification", lambda: _image(64), groups_width=8,
              **_stages()),
        _case("poolformer", "PoolFormerConfig", "PoolFormerForImageClassification", lambda: _image(64), patch_size=7,
              **_stages()),
        _case("pvt", "PvtConfig", "PvtForImageClassification", lambda: _image(64), image_size=64,
              num_attention_heads=[1, 2, 2, 2], **_stages(hidden_sizes=[16, 32, 32, 32])),
        _case("segformer", "SegformerConfig", "SegformerForSemanticSegmentation", lambda: _image(64),
              num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=32,
              **_stages(hidden_sizes=[16, 32, 32, 32])),
        _case("glpn", "GLPNConfig", "GLPNForDepthEstimation", lambda: _image(64), num_attention_heads=[1, 2, 2, 2],
              decoder_hidden_size=32, **_stages(hidden_sizes=[16, 32, 32, 32])),
        _case("mobilevit", "MobileViTConfig", "MobileViTForImageClassification", lambda: _image(128), patch_size=2,
              image_size=128, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64],
              initializer_range=0.2),
        _case("levit", "LevitConfig", "LevitForImageClassification", lambda: _image(64), image_size=64, patch_size=16,
              hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[4, 4, 4], key_dim=[8, 8, 8],
              drop_path_rate=0),
        _case("dpt", _dpt, "DPTForDepthEstimation", _image),
        _case("detr", _detr, "DetrForObjectDetection", lambda: _image(64)),
        _case("deformable-detr", _deformable_detr, "DeformableDetrForObjectDetection", lambda: _image(64)),
        _case("rt-detr", _rt_detr, "RTDetrForObjectDetection", lambda: _image(64)),
        _case("mask2former", _mask2former, "Mask2FormerForUniversalSegmentation", lambda: _image(64)),
    ]  # fmt: skip


_CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def _audio() -> list[Case]:
    return [
        _case("wav2vec2", "Wav2Vec2Config", "Wav2Vec2ForCTC", _sound, "SpecAugment off: it masks with numpy's numbers",
              apply_spec_augment=False, **_CONVOLUTIONS),
        _case("whisper", "WhisperConfig", "WhisperForConditionalGeneration",
              lambda: {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": _ids(7)}, num_mel_bins=8,
              max_source_positions=16, max_target_positions=16),
        _case("speecht5", "SpeechT5Config", "SpeechT5ForSpeechToText",
              lambda: {**_sound(), "decoder_input_ids": _ids(7)}, apply_spec_augment=False, **_CONVOLUTIONS),
        _case("audio-spectrogram-transformer", "ASTConfig", "ASTForAudioClassification",
              lambda: {"input_values": torch.randn(2, 32, 16)}, max_length=32, num_mel_bins=16, frequency_stride=8,
              time_stride=8),
        _case("seamless-text", "SeamlessM4TConfig", "SeamlessM4TForTextToText", _translation,
              t2u_encoder_layers=1, t2u_decoder_layers=1, t2u_encoder_attention_heads=4, t2u_decoder_attention_heads=4,
              speech_encoder_layers=1, speech_encoder_attention_heads=4, upsample_initial_channel=32),
    ]  # fmt: skip


def _pair(config: str, text: str, vision: str, **settings: Any) -> Callable[[], Any]:
    """A config of a text and an image tower."""

    def make() -> Any:
        towers = {"text_config": config_of(text).to_dict(), "vision_config": config_of(vision).to_dict()}
        return config_of(config, **{**towers, **settings})

    return make


def _flava() -> Any:
    towers = {f"{part}_config": config_of(f"Flava{part.capitalize()}Config").to_dict()
              for part in ("image", "text", "multimodal")}  # fmt: skip
    return config_of("FlavaConfig", init_codebook=False, **towers)


def _sam() -> Any:
    # The library begins with weights of 1e-10, whose gradients are below what float32 holds.
    settings = {"window_size": 2, "global_attn_indexes": [5], "num_pos_feats": 16, "initializer_range": 0.02}
    vision = config_of("SamVisionConfig", output_channels=32, **settings)
    prompts = config_of("SamPromptEncoderConfig", mask_input_channels=4)
    masks = config_of("SamMaskDecoderConfig", mlp_dim=64, iou_head_hidden_dim=32, num_hidden_layers=4)
    return config_of(
        "SamConfig",
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompts.to_dict(),
        mask_decoder_config=masks.to_dict(),
    )


def _points() -> dict[str, Tensor]:
    return {**_image(), "input_points": torch.rand(2, 1, 2, 2) * IMAGE}


_IMAGE_TOKEN = 99


def _picture_in_text(name: str, patches: int) -> dict[str, Tensor]:
    ids = _ids(patches + 8)
    ids[:, 2 : 2 + patches] = _IMAGE_TOKEN
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    images = _image()["pixel_values"]
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": images[:, None] if name == "idefics" else images}


def _idefics() -> Any:
    towers = {
        "vision_config": config_of("Idefics3VisionConfig").to_dict(),
        "text_config": config_of("LlamaConfig").to_dict(),
    }
    return config_of("Idefics3Config", image_token_id=_IMAGE_TOKEN, scale_factor=2, **towers)


def _llava() -> Any:
    towers = {
        "vision_config": config_of("CLIPVisionConfig").to_dict(),
        "text_config": config_of("LlamaConfig").to_dict(),
    }
    return config_of("LlavaConfig", image_token_index=_IMAGE_TOKEN, image_seq_length=16, **towers)


def _lxmert() -> dict[str, Tensor]:
    return {**_text(), "visual_feats": torch.randn(2, 6, 16), "visual_pos": torch.rand(2, 6, 4)}


def _clip_inputs() -> dict[str, Tensor]:
    return {**_text(), **_image()}


def _multimodal() -> list[Case]:
    return [
        _case("clip", _pair("CLIPConfig", "CLIPTextConfig", "CLIPVisionConfig"), "CLIPModel", _clip_inputs),
        _case("blip", _pair("BlipConfig", "BlipTextConfig", "BlipVisionConfig"), "BlipForConditionalGeneration",
              _clip_inputs),
        _case("owlvit", _pair("OwlViTConfig", "OwlViTTextConfig", "OwlViTVisionConfig"), "OwlViTForObjectDetection",
              lambda: {**_text(), **_image()}),
        _case("flava", _flava, "FlavaModel", _clip_inputs),
        _case("vilt", "ViltConfig", "ViltModel", lambda: {**_text(), **_image()}),
        _case("git", lambda: config_of("GitConfig", vision_config=config_of("GitVisionConfig").to_dict()),
              "GitForCausalLM", _clip_inputs),
        _case("lxmert", "LxmertConfig", "LxmertModel", _lxmert, l_layers=5, x_layers=4, r_layers=4, visual_feat_dim=16),
        _case("perceiver", "PerceiverConfig", "PerceiverForMaskedLM", lambda: _text(64), num_latents=8, d_latents=32,
              num_self_attends_per_block=5, num_self_attention_heads=4, num_cross_attention_heads=4, qk_channels=32,
              v_channels=32),
        _case("sam", _sam, "SamModel", _points),
        _case("idefics3", _idefics, "Idefics3ForConditionalGeneration", lambda: _picture_in_text("idefics", 4)),
        _case("llava", _llava, "LlavaForConditionalGeneration", lambda: _picture_in_text("llava", 16)),
    ]  # fmt: skip


def cases() -> list[Case]:
    """All architectures, each under the name its model files have in transformers, or close to it."""
    groups = (_language_models, _encoders, _encoder_decoders, _vision, _audio, _multimodal)
    return [case for group in groups for case in group()]
