"""Models of torchaudio: speech representations, recognition, separation and synthesis, in small configurations.

Weights are random, dropout and layer drop on, waveforms a quarter of a second long. Nothing is downloaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_models.case import Built, Case
from benchmarks.zoo_models.weights import wake

SAMPLES = 4000
WIDTH = 32
LAYERS = 5

Inputs = Callable[[], tuple[Any, ...]]

_SPEECH = {
    "extractor_conv_layer_config": [(WIDTH, 10, 5), *[(WIDTH, 3, 2)] * 4, *[(WIDTH, 2, 2)] * 2],
    "extractor_conv_bias": False,
    "encoder_embed_dim": WIDTH,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": LAYERS,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 64,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_drop": 0.1,
}
_GROUP = {**_SPEECH, "extractor_mode": "group_norm", "encoder_layer_norm_first": False}
_LAYER = {**_SPEECH, "extractor_mode": "layer_norm", "encoder_layer_norm_first": True}
_EMFORMER = {"input_dim": WIDTH, "num_heads": 4, "ffn_dim": 64, "num_layers": LAYERS, "segment_length": 4}


def cases() -> list[Case]:
    """The models, by family."""
    wavlm = {"encoder_num_buckets": 32, "encoder_max_distance": 64, "aux_num_out": None}
    return [
        _case("wav2vec2_model", "wav2vec2", _wave, {**_GROUP, "aux_num_out": 29}, note="norm after"),
        _case("wav2vec2_model", "wav2vec2", _wave, {**_LAYER, "aux_num_out": None}, name="wav2vec2_large"),
        _case("hubert_pretrain_model", "wav2vec2", _wave_and_labels, {**_LAYER, **_hubert()}),
        _case("wavlm_model", "wav2vec2", _wave, {**_GROUP, **wavlm}),
        _case("Conformer", "conformer", _frames, _conformer()),
        _case("Emformer", "emformer", _frames_ahead, {**_EMFORMER, "right_context_length": 2, "dropout": 0.1}),
        _case("emformer_rnnt_model", "rnnt", _transcribed, _rnnt()),
        _case("ConvTasNet", "separation", _mixture, _tasnet()),
        _case("HDemucs", "separation", _stereo, _demucs()),
        _case(
            "DeepSpeech", "recognition", _features, {"n_feature": WIDTH, "n_hidden": 64, "n_class": 29, "dropout": 0.1}
        ),
        _case("Wav2Letter", "recognition", _channels, {"num_classes": 29, "input_type": "mfcc", "num_features": WIDTH}),
        _case("Tacotron2", "synthesis", _spoken, _tacotron(), note="decoder of as many steps as the target has"),
        _case("WaveRNN", "synthesis", _vocoded, _wave_rnn()),
        _case("squim_objective_model", "quality", _wave, _squim()),
    ]


def _case(
    maker: str, family: str, inputs: Inputs, settings: Mapping[str, Any], *, name: str = "", note: str = ""
) -> Case:
    return Case(f"torchaudio:{name or maker}", family, functools.partial(build, maker, inputs, settings), note)


def build(maker: str, inputs: Inputs, settings: Mapping[str, Any]) -> Built:
    """A model of torchaudio and a batch of two of what it takes."""
    from torchaudio import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(models, maker)(**settings)
        wake(model)
        return model, inputs(), {}


def _hubert() -> dict[str, Any]:
    return {
        "mask_prob": 0.5,
        "mask_selection": "static",
        "mask_other": 0.0,
        "mask_length": 2,
        "no_mask_overlap": False,
        "mask_min_space": 1,
        "mask_channel_prob": 0.0,
        "mask_channel_selection": "static",
        "mask_channel_other": 0.0,
        "mask_channel_length": 2,
        "no_mask_channel_overlap": False,
        "mask_channel_min_space": 1,
        "skip_masked": False,
        "skip_nomask": False,
        "num_classes": 20,
        "final_dim": 16,
        "feature_grad_mult": None,
    }


def _conformer() -> dict[str, Any]:
    sizes = {"input_dim": WIDTH, "num_heads": 4, "ffn_dim": 64, "num_layers": LAYERS}
    return {**sizes, "depthwise_conv_kernel_size": 7, "dropout": 0.1}


def _rnnt() -> dict[str, Any]:
    return {
        "input_dim": 8,
        "encoding_dim": WIDTH,
        "num_symbols": 29,
        "segment_length": 4,
        "right_context_length": 4,
        "time_reduction_input_dim": 8,
        "time_reduction_stride": 4,
        "transformer_num_heads": 4,
        "transformer_ffn_dim": 64,
        "transformer_num_layers": LAYERS,
        "transformer_dropout": 0.1,
        "transformer_activation": "gelu",
        "transformer_left_context_length": 8,
        "transformer_max_memory_size": 0,
        "transformer_weight_init_scale_strategy": "depthwise",
        "transformer_tanh_on_mem": True,
        "symbol_embedding_dim": WIDTH,
        "num_lstm_layers": 2,
        "lstm_layer_norm": True,
        "lstm_layer_norm_epsilon": 1e-3,
        "lstm_dropout": 0.1,
    }


def _tasnet() -> dict[str, Any]:
    sizes = {"enc_num_feats": 32, "msk_num_feats": 16, "msk_num_hidden_feats": 32, "msk_num_layers": 3}
    return {**sizes, "msk_num_stacks": 3}


def _demucs() -> dict[str, Any]:
    return {"sources": ["drums", "other"], "audio_channels": 2, "channels": 8, "nfft": 1024, "depth": 5}


def _tacotron() -> dict[str, Any]:
    encoder = {"symbol_embedding_dim": WIDTH, "encoder_embedding_dim": WIDTH, "encoder_n_convolution": 4}
    decoder = {"decoder_rnn_dim": WIDTH, "prenet_dim": 16, "attention_rnn_dim": WIDTH, "attention_hidden_dim": 16}
    rest = {"n_mels": 8, "postnet_embedding_dim": WIDTH, "postnet_n_convolution": 6}
    return {**encoder, **decoder, **rest, "attention_location_n_filter": 4}


def _wave_rnn() -> dict[str, Any]:
    sizes = {"upsample_scales": [2, 2, 4], "n_classes": 16, "hop_length": 16, "n_res_block": LAYERS, "n_rnn": WIDTH}
    return {**sizes, "n_fc": WIDTH, "n_freq": 8, "n_hidden": 16, "n_output": 16}


def _squim() -> dict[str, Any]:
    return {
        "feat_dim": 32,
        "win_len": 16,
        "d_model": 16,
        "nhead": 2,
        "hidden_dim": 16,
        "num_blocks": 2,
        "rnn_type": "LSTM",
        "chunk_size": 15,
    }


def _wave() -> tuple[Any, ...]:
    return (torch.randn(2, SAMPLES),)


def _wave_and_labels() -> tuple[Any, ...]:
    return torch.randn(2, SAMPLES), torch.randint(0, 20, (2, 12))


def _frames() -> tuple[Any, ...]:
    return torch.randn(2, 20, WIDTH), _lengths(20, 15)


def _frames_ahead() -> tuple[Any, ...]:
    return torch.randn(2, 18, WIDTH), _lengths(18, 12)


def _transcribed() -> tuple[Any, ...]:
    sound = torch.randn(2, 36, 8), _lengths(32, 24).int()
    return (*sound, torch.randint(0, 29, (2, 5), dtype=torch.int32), _lengths(5, 3).int())


def _mixture() -> tuple[Any, ...]:
    return (torch.randn(2, 1, SAMPLES),)


def _stereo() -> tuple[Any, ...]:
    return (torch.randn(2, 2, 8192),)


def _features() -> tuple[Any, ...]:
    return (torch.randn(2, 1, 20, WIDTH),)


def _channels() -> tuple[Any, ...]:
    return (torch.randn(2, WIDTH, 200),)


def _spoken() -> tuple[Any, ...]:
    return torch.randint(0, 100, (2, 8)), _lengths(8, 6), torch.randn(2, 8, 6), _lengths(6, 4)


def _vocoded() -> tuple[Any, ...]:
    # Eight frames, of which the kernel of five takes two at either end.
    return torch.randn(2, 1, 64), torch.randn(2, 1, 8, 8)


def _lengths(*sizes: int) -> Tensor:
    return torch.tensor(sizes)
