"""Models as transformers saves them: sizes of small ones, changes to a config.json, and their tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {**SIZES, "vocab_size": 40, "max_position_embeddings": 32}


def same(state: dict[str, Any], other: dict[str, Any]) -> bool:
    return state.keys() == other.keys() and all(
        state[name].dtype == other[name].dtype and torch.equal(state[name], other[name]) for name in state
    )


def write(directory: Path, **values: Any) -> None:
    """Change values of a config.json; None takes one out."""
    file = directory / "config.json"
    merged = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))
