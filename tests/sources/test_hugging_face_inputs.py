"""Example inputs of models of transformers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from repl_fx.errors import SourceError
from repl_fx.sources import load_source
from repl_fx.sources.hugging_face_inputs import example_inputs
from repl_fx.sources.source import Request
from tests.sources.packages import needs

pytestmark = [*needs("transformers"), pytest.mark.usefixtures("_another_seed")]


def test_floating_inputs_have_the_dtype_of_the_model(transformers: Any, tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic")
    transformers.ResNetModel(config).to(torch.bfloat16).save_pretrained(tmp_path)
    source = load_source(f"hf:{tmp_path}")
    assert source.kwargs["pixel_values"].dtype == torch.bfloat16
    assert source.model.eval()(**source.kwargs)[0].dtype == torch.bfloat16


def test_transformers_shape_without_a_name_is_for_the_main_input() -> None:
    source = load_source("hf:vit", input_shape="3x3x224x224")
    assert {name: tuple(t.shape) for name, t in source.kwargs.items()} == {"pixel_values": (3, 3, 224, 224)}


class _Reads:
    """The signature of a model of an encoder and a decoder of text."""

    main_input_name = "input_ids"

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> None:
        """Never called."""


class _Looks:
    """The signature of a model of pictures."""

    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor) -> None:
        """Never called."""


class _Waits:
    """The signature of a model about whose input nothing is known."""

    main_input_name = "states"

    def forward(self, states: Tensor) -> None:
        """Never called."""


def _inputs(model: object, **config: Any) -> dict[str, Tensor]:
    request = Request("net", None, {}, 0, torch.Generator().manual_seed(0))
    return example_inputs(model, SimpleNamespace(**config), request)


def test_words_begin_behind_special_tokens_and_a_text_ends() -> None:
    inputs = _inputs(_Reads(), is_encoder_decoder=True, vocab_size=22, pad_token_id=0, eos_token_id=9)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "decoder_input_ids"), (2, 16)
    )
    assert {tensor.dtype for tensor in inputs.values()} == {torch.int64}
    ids = inputs["decoder_input_ids"]
    assert int(ids[:, :-1].min()) >= 10 and int(ids.max()) < 22 and ids[:, -1].tolist() == [9, 9]
    assert inputs["attention_mask"].all()


def test_pictures_have_the_size_and_the_frames_of_the_config() -> None:
    vision = SimpleNamespace(image_size=[8, 6], num_channels=1, num_frames=4)
    assert _inputs(_Looks(), vision_config=vision)["pixel_values"].shape == (2, 4, 1, 8, 6)
    assert _inputs(_Looks(), image_size=8)["pixel_values"].shape == (2, 3, 8, 8)


def test_inputs_of_which_nothing_is_known_have_to_be_named() -> None:
    with pytest.raises(SourceError, match=r"no example inputs are known for _Waits; .* such as states:2x16:int64"):
        _inputs(_Waits())
