"""Models of transformers of their own configs, small and with random weights, for trainers of other libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WORDS, CLASSES = 64, 3
_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
_IDS = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Shape:
    """A kind of model.

    Attributes:
        model: its class.
        config: options of its config.
        inputs: makes a batch of four, by the names of the arguments.
        adapted: layers that adapters are put on.
        judges: whether the model gives a text a score.
    """

    model: str
    config: Mapping[str, Any]
    inputs: Callable[[], dict[str, Tensor]]
    adapted: tuple[str, ...]
    judges: bool = False

    def build(self) -> nn.Module:
        """The model, the same at each call."""
        import transformers

        torch.manual_seed(0)
        kind = getattr(transformers, self.model)
        made: nn.Module = kind(kind.config_class(**self.config))
        return made


def _ids(*shape: int) -> Tensor:
    return torch.randint(3, WORDS, shape, generator=torch.Generator().manual_seed(0))


def _values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _classes() -> Tensor:
    return torch.arange(4) % CLASSES


def _texts() -> dict[str, Tensor]:
    return {"input_ids": _ids(4, 12), "attention_mask": torch.ones(4, 12, dtype=torch.long)}


SHAPES = {
    "BERT": Shape(
        "BertForSequenceClassification",
        {**_WIDTHS, **_NO_DROPOUT, "vocab_size": WORDS, "max_position_embeddings": 32, "num_labels": 1},
        lambda: {**_texts(), "labels": _values(4)},
        ("query", "value"),
        judges=True,
    ),
    "ViT": Shape(
        "ViTForImageClassification",
        {**_WIDTHS, **_NO_DROPOUT, "image_size": 32, "patch_size": 8, "num_labels": CLASSES},
        lambda: {"pixel_values": _values(4, 3, 32, 32), "labels": _classes()},
        ("q_proj", "v_proj"),
    ),
    "Llama": Shape(
        "LlamaForCausalLM",
        {**_WIDTHS, **_IDS, "num_key_value_heads": 2, "max_position_embeddings": 64},
        lambda: {**_texts(), "labels": _ids(4, 12)},
        ("q_proj", "v_proj"),
    ),
    "T5": Shape(
        "T5ForConditionalGeneration",
        {
            **{"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4},
            **{"dropout_rate": 0.0, "decoder_start_token_id": 0, "vocab_size": WORDS},
        },
        lambda: {**_texts(), "labels": _ids(4, 7)},
        ("q", "v"),
    ),
    "Whisper": Shape(
        "WhisperForConditionalGeneration",
        {
            **{"d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "num_mel_bins": 8},
            **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
            **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 16, "max_target_positions": 16},
            **{"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "decoder_start_token_id": 1},
            **{"suppress_tokens": None, "begin_suppress_tokens": None, **_IDS},
        },
        lambda: {"input_features": _values(4, 8, 32), "labels": _ids(4, 7)},
        ("q_proj", "v_proj"),
    ),
}
