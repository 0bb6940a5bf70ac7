"""Example inputs of models of transformers, by the signature of their forward and by their config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from repl_fx.errors import BadInput, SourceError, close_matches
from repl_fx.sources.input_shapes import InputShape, random_tensor
from repl_fx.sources.source import Request

# The special tokens of a small config; in any config, words begin behind the last of them.
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_LENGTH = 16


def example_inputs(model: Any, config: Any, request: Request) -> dict[str, Tensor]:
    """Keyword inputs for a model: those it cannot do without, or those of the shapes that are asked for."""
    accepted = inspect.signature(model.forward).parameters
    floating = getattr(model, "dtype", torch.float32)
    default = _default_inputs(model, config, accepted, floating)
    if not default and not request.shapes:
        raise SourceError(
            f"no example inputs are known for {type(model).__name__}; name them with --input-shape, "
            f"such as {next(iter(accepted))}:2x16:int64"
        )
    wanted = default
    if request.shapes is not None:
        wanted = {}
        for shape in request.shapes:
            # A shape without a name is for the main input, or for the only one there is.
            name = str(shape.name or getattr(model, "main_input_name", next(iter(accepted))))
            if name not in accepted:
                usual = f"; by default it gets {', '.join(default)}" if default else ""
                raise BadInput(f"{type(model).__name__} takes no input {name!r}{close_matches(name, accepted)}{usual}")
            if name in wanted:
                raise BadInput(
                    f"{type(model).__name__} has {name!r} as its main input; name the other inputs, as in ids:2x16"
                )
            dtype = shape.dtype or (default[name].dtype if name in default else _dtype(name, floating))
            wanted[name] = InputShape(shape.sizes, name, dtype)
    return {name: _tensor(shape, config, request.generator) for name, shape in wanted.items()}


def _default_inputs(
    model: Any, config: Any, accepted: Mapping[str, Any], floating: torch.dtype
) -> dict[str, InputShape]:
    """Shapes of the inputs that a model of this signature cannot do without."""
    main = getattr(model, "main_input_name", "input_ids")
    # Text with images inside needs placeholders at the right places; its text part runs alone.
    interleaved = any(hasattr(config, name) for name in ("image_token_id", "image_token_index", "image_token"))
    names = [main] if main in accepted else []
    if not interleaved and getattr(config, "text_config", None) is not None:
        names += [name for name in ("input_ids", "pixel_values") if name in accepted and name != main]
    if "input_ids" in names and "attention_mask" in accepted:
        names.append("attention_mask")
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        names.append("decoder_input_ids")
    is_spectrogram = isinstance(getattr(config, "max_length", None), int) and hasattr(config, "num_mel_bins")
    sizes = {
        "input_ids": (2, _LENGTH),
        "attention_mask": (2, _LENGTH),
        "decoder_input_ids": (2, _LENGTH),
        "pixel_values": _image_sizes(config),
        "input_features": (2, getattr(config, "num_mel_bins", 80), 2 * getattr(config, "max_source_positions", 64)),
        # A spectrogram where the config says its size, else a second of sound.
        "input_values": (2, config.max_length, config.num_mel_bins) if is_spectrogram else (2, 16_000),
    }
    return {name: InputShape(sizes[name], name, _dtype(name, floating)) for name in names if name in sizes}


def _image_sizes(config: Any) -> tuple[int, ...]:
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    image = (getattr(vision, "num_channels", 3), height, width)
    frames = getattr(vision, "num_frames", None)
    return (2, frames, *image) if isinstance(frames, int) else (2, *image)


def _dtype(name: str, floating: torch.dtype) -> torch.dtype:
    return torch.int64 if name.endswith(("ids", "mask")) else floating


def _tensor(shape: InputShape, config: Any, generator: torch.Generator) -> Tensor:
    name, dtype = shape.name or "", shape.dtype or torch.float32
    if name.endswith("mask"):
        return torch.ones(shape.sizes, dtype=dtype)
    if name in ("input_ids", "decoder_input_ids"):
        text = getattr(config, "text_config", None) or config
        vocabulary = getattr(text, "vocab_size", None) or 2
        # Special tokens change what some models do with a row: where positions start, which token is pooled.
        special = max((getattr(text, token, None) or 0 for token in SPECIAL_TOKENS), default=0)
        low = special + 1 if special + 1 < vocabulary // 2 else 0
        ids = random_tensor(shape.sizes, dtype, generator, low=low, high=vocabulary)
        # Classifiers on an encoder and a decoder read the end of the text, and refuse a text without one.
        end = getattr(text, "eos_token_id", None)
        if getattr(config, "is_encoder_decoder", False) and isinstance(end, int) and end < vocabulary:
            ids[..., -1] = end
        return ids
    return random_tensor(shape.sizes, dtype, generator)
