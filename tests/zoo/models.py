"""Models of timm and transformers as cases: real architectures, fresh weights, dropout and drop path switched on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tests.zoo.checks import Case


def timm_case(
    name: str,
    repeats: Mapping[str, int],
    similar: tuple[int, ...] = (),
    replaced: int | None = None,
    size: int = 224,
    **sizes: int,
) -> Case:
    """A timm model with dropout and drop path, on images of `size`; `sizes` are arguments of the model."""

    def build() -> nn.Module:
        import timm

        options: dict[str, Any] = {"drop_rate": 0.1, "drop_path_rate": 0.1}
        model: nn.Module = timm.create_model(name, **options, **sizes)
        head = getattr(model, "head", None)
        if isinstance(head, nn.Linear):
            # timm starts some heads at zero, and then nothing before them would be compared.
            nn.init.normal_(head.weight, std=0.02)
        return model

    return Case(name, build, lambda: ((torch.randn(2, 3, size, size),), {}), repeats, similar, replaced)


def _hugging_face(name: str, config: str, model: str, repeats: Mapping[str, int], **settings: Any) -> Case:
    def build() -> nn.Module:
        import transformers

        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return made

    def inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "image_size" in settings:
            return (torch.randn(2, 3, 32, 32),), {}
        ids = torch.randint(5, 90, (2, 12))
        mask = torch.ones_like(ids)
        mask[1, -3:] = 0
        given = {"input_ids": ids, "attention_mask": mask}
        if config == "T5Config":
            given["decoder_input_ids"] = torch.randint(5, 90, (2, 7))
        return (), given

    return Case(name, build, inputs, repeats)


_SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
_TOKENS = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

TRANSFORMERS = [
    _hugging_face("bert", "BertConfig", "BertModel", {"encoder.layer": 3}, **_SMALL, **_TOKENS),
    _hugging_face(
        "gpt2", "GPT2Config", "GPT2LMHeadModel", {"transformer.h": 3}, n_embd=64, n_layer=3, n_head=4, use_cache=False,
        **_TOKENS,
    ),
    _hugging_face(
        "llama", "LlamaConfig", "LlamaForCausalLM", {"model.layers": 3}, num_key_value_heads=2, use_cache=False,
        attention_dropout=0.1, **_SMALL, **_TOKENS,
    ),
    _hugging_face(
        "vit", "ViTConfig", "ViTModel", {"layers": 3}, image_size=32, patch_size=8, hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1, **_SMALL,
    ),
    _hugging_face(
        "t5", "T5Config", "T5ForConditionalGeneration", {"encoder.block": 3, "decoder.block": 3}, d_model=64, d_kv=16,
        d_ff=128, num_layers=3, num_decoder_layers=3, num_heads=4, use_cache=False, decoder_start_token_id=0, **_TOKENS,
    ),
]  # fmt: skip
