"""Example inputs of models of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from repl_fx.sources import load_source
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
