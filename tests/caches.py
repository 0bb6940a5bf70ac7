"""Caches of pretrained weights, filled by hand with small random models; nothing is asked of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from repl_fx.sources import load_source

COMMIT = "a" * 40
# Sizes of models of transformers, as small as their types allow.
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


class Caches:
    """The caches of huggingface_hub and of torch, below a directory; without a network.

    Args:
        place: the directory.
        patches: of where the libraries look; undone by the test.
    """

    def __init__(self, place: Path, patches: pytest.MonkeyPatch) -> None:
        constants: Any = pytest.importorskip("huggingface_hub.constants")
        patches.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
        patches.setattr(constants, "HF_HUB_OFFLINE", True)
        patches.setenv("TORCH_HOME", str(place))
        self.place = place / "hub"

    def add(self, name: str, write: Callable[[Path], None]) -> None:
        """Put a repository of the hub into its cache, unless it is there.

        Args:
            name: ORG/NAME.
            write: writes its files into a directory.
        """
        folder = self.place / f"models--{name.replace('/', '--')}"
        if not folder.exists():
            snapshot = folder / "snapshots" / COMMIT
            snapshot.mkdir(parents=True)
            (folder / "refs").mkdir()
            (folder / "refs" / "main").write_text(COMMIT)
            write(snapshot)

    def add_timm(self, name: str, gain: float = 1.0) -> None:
        """Put random weights for a model of timm into the cache; its last layer times `gain`."""
        model: Any = load_source(f"timm:{name.partition('.')[0]}", seed=1).model
        _scale_(model.get_classifier(), gain)
        self.add(f"timm/{name}", lambda path: save_file(model.state_dict(), path / "model.safetensors"))

    def add_torchvision(self, name: str, gain: float = 1.0) -> None:
        """Put random weights for a model of torchvision, `NAME` or `NAME.WEIGHTS`, into the cache."""
        models: Any = pytest.importorskip("torchvision.models")
        kind, _, weights = name.partition(".")
        known = models.get_model_weights(kind)
        file = self.place / "checkpoints" / Path((known[weights] if weights else known.DEFAULT).url).name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            model = load_source(f"torchvision:{kind}", seed=1).model
            _scale_([one for one in model.modules() if not [*one.children()]][-1], gain)
            torch.save(model.state_dict(), file)


def save_transformers(path: Path, name: str, gain: float = 1.0, **options: Any) -> None:
    """Save a small random model of a class of transformers in a directory; its output layer times `gain`."""
    import transformers

    model_class: Any = getattr(transformers, name)
    known = model_class.config_class()
    torch.manual_seed(1)
    model = model_class(
        model_class.config_class(**{key: size for key, size in {**SIZES, **options}.items() if hasattr(known, key)})
    )
    _scale_(model.get_output_embeddings() or model.classifier, gain)
    model.save_pretrained(path)


def save_tokenizer(path: Path, texts: Sequence[str], size: int = SIZES["vocab_size"]) -> Any:
    """Save a tokenizer in a directory that was learned from texts, with tokens for padding and for an end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw: Any = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    known: Any = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "special_tokens": ["<pad>", "<end>"]}
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False, **known))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
    tokenizer.save_pretrained(path)
    return tokenizer


def _scale_(layer: Any, gain: float) -> None:
    if gain != 1.0:
        with torch.no_grad():
            layer.weight.mul_(gain)
