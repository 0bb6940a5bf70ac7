"""Models of transformers: `hf:TYPE`, `hf:PATH` and `hf:…:CLASS`, with random weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.errors import BadInput, SourceError
from repl_fx.sources.input_shapes import InputShape, random_tensor
from repl_fx.sources.source import Built, Request, close_matches, describe, hash_file, import_zoo

# What a config made from a type alone is shrunk to. Only arguments that the config takes, and whose default is an
# integer above the small value, are set: lists such as the depths of a hierarchical network stay as they are.
_SMALL = {
    4: "num_hidden_layers num_layers n_layer n_layers num_decoder_layers encoder_layers decoder_layers "
    "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads "
    "num_experts num_local_experts n_routed_experts moe_num_experts num_hidden_groups",
    2: "num_key_value_heads num_experts_per_tok n_group topk_group n_shared_experts",
    16: "head_dim d_kv v_head_dim qk_nope_head_dim qk_rope_head_dim rotary_dim query_pre_attn_scalar",
    32: "q_lora_rank kv_lora_rank",
    # The width of a first stage, whose heads (1, 2 or 3) stay as they are.
    48: "embed_dim",
    64: "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim max_source_positions projection_dim "
    "hidden_size_per_layer_input output_hidden_size",
    128: "intermediate_size n_inner d_ff ffn_dim hidden_dim encoder_ffn_dim decoder_ffn_dim moe_intermediate_size "
    "shared_expert_intermediate_size ffn_hidden_size max_position_embeddings n_positions max_target_positions",
    256: "vocab_size vocab_size_per_layer_input",
}
_SMALL_VALUES = {name: value for value, names in _SMALL.items() for name in names.split()}
_SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
# Types whose defaults do not build, or do not fit the small sizes.
_BY_TYPE: dict[str, dict[str, Any]] = {
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "reformer": {"axial_pos_embds": False},
}
_LENGTH = 16


def build(request: Request) -> Built:
    """Build a model of transformers from a type or a config file; options are attributes of its config.

    Args:
        request: its name is a model type or a path, with `:CLASS` after it for a class other than AutoModel.

    Returns:
        The model, with attention written out (`eager`) and without a cache of keys and values, and keyword inputs.

    Raises:
        SourceError: no such type, class or file, or the model cannot be built.
        BadInput: options or an input shape that the model does not take.
    """
    spec = f"hf:{request.name}"
    transformers = import_zoo("transformers", spec)
    source, class_name = _split(request.name)
    config, file = _config(transformers, source, request.options, spec)
    model = _model(transformers, class_name, config, request.options.get("attn_implementation"), spec)
    assert isinstance(model, nn.Module)
    files = {} if file is None else {file: hash_file(file)}
    absolute = "" if file is None else f"hf:{file}{f':{class_name}' if class_name else ''}"
    return Built(model, kwargs=_inputs(model, config, request, spec), files=files, absolute=absolute)


def _split(name: str) -> tuple[str, str | None]:
    head, colon, tail = name.rpartition(":")
    return (head, tail) if colon and head and tail.isidentifier() and not Path(name).exists() else (name, None)


def _config(transformers: Any, source: str, options: Mapping[str, Any], spec: str) -> tuple[Any, Path | None]:
    """The config, and the file it is from, if it is from one."""
    path = Path(source)
    if path.suffix == ".json" or path.is_dir() or len(path.parts) > 1:
        file = path / "config.json" if path.is_dir() else path
        values = _read(file, spec)
        config_class = _config_class(transformers, values.get("model_type"), f"{spec}: the model_type of {file}")
        config = _construct(config_class, {**values, "use_cache": False}, options, spec)
        return config, file.resolve()
    config_class = _config_class(transformers, source, spec)
    small = {**_shrunk(config_class, config_class()), **_BY_TYPE.get(source, {})}
    return _construct(config_class, small, options, spec), None


def _read(file: Path, spec: str) -> dict[str, Any]:
    if not file.is_file():
        raise SourceError(
            f"{spec}: no file {file}; nothing is downloaded, so save the model's config.json and give its path"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{spec}: {file} is not JSON: {describe(error)}") from error
    if not isinstance(values, dict) or "model_type" not in values:
        raise SourceError(f"{spec}: {file} has no model_type, so it is no config of transformers")
    return values


def _config_class(transformers: Any, model_type: Any, where: str) -> Any:
    known = list(transformers.CONFIG_MAPPING.keys())
    if model_type not in known:
        raise SourceError(
            f"{where}: transformers has no model type {model_type!r}{close_matches(str(model_type), known)}"
        )
    return transformers.CONFIG_MAPPING[model_type]


def _construct(config_class: Any, values: Mapping[str, Any], options: Mapping[str, Any], spec: str) -> Any:
    # Configs keep any keyword they are given, so a misspelt one would go unseen.
    default = config_class()
    known = {*inspect.signature(config_class).parameters, *default.to_dict(), "attn_implementation"}
    for name in options:
        if name not in known and not hasattr(default, name):
            raise BadInput(f"{spec}: {config_class.__name__} has no option {name!r}{close_matches(name, known)}")
    try:
        return config_class(**{**values, **options})
    except Exception as error:
        raise SourceError(f"{spec}: {config_class.__name__} refuses its values: {describe(error)}") from error


def _shrunk(config_class: Any, default: Any) -> dict[str, Any]:
    """Arguments that make a config of this class small; of the configs inside it too."""
    parameters = inspect.signature(config_class).parameters
    small: dict[str, Any] = {"use_cache": False} if "use_cache" in parameters else {}
    for name in parameters:
        value = getattr(default, name, None)
        if name in _SPECIAL_TOKENS and (value is None or isinstance(value, int)):
            small[name] = _SPECIAL_TOKENS[name]
        elif name in _SMALL_VALUES and isinstance(value, int) and value > _SMALL_VALUES[name]:
            small[name] = _SMALL_VALUES[name]
    heads, groups = (getattr(default, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    if "num_key_value_heads" in small and groups == heads:
        small["num_key_value_heads"] = small["num_attention_heads"]
    for name in getattr(config_class, "sub_configs", {}):
        inner = getattr(default, name, None)
        if name in parameters and inner is not None and hasattr(inner, "to_dict"):
            small[name] = {"model_type": inner.model_type, **_shrunk(type(inner), inner)}
    return small


def _model(transformers: Any, class_name: str | None, config: Any, chosen: Any, spec: str) -> Any:
    model_class: Any = getattr(transformers, class_name or "AutoModel", None)
    if not hasattr(model_class, "from_config") and not hasattr(model_class, "_from_config"):
        known = [name for name in dir(transformers) if name[:1].isupper()]
        raise SourceError(
            f"{spec}: transformers has no model class {class_name!r}{close_matches(str(class_name), known)}"
        )
    wanted = getattr(model_class, "config_class", None)
    if wanted is not None and not isinstance(config, wanted):
        raise SourceError(f"{spec}: {class_name} takes a {wanted.__name__}, not a {type(config).__name__}")
    try:
        model = model_class.from_config(config) if hasattr(model_class, "from_config") else model_class(config)
    except Exception as error:
        raise SourceError(f"{spec} could not be built: {describe(error)}") from error
    # Fused attention picks its kernel by looking into the mask, which no trace can follow.
    if chosen is None and hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    return model


def _inputs(model: Any, config: Any, request: Request, spec: str) -> dict[str, Tensor]:
    accepted = inspect.signature(model.forward).parameters
    default = _default_inputs(model, config, accepted)
    if not default and not request.shapes:
        raise SourceError(
            f"{spec}: no example inputs are known for {type(model).__name__}; name them with --input-shape, "
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
                raise BadInput(f"{spec} takes no input {name!r}{close_matches(name, accepted)}{usual}")
            if name in wanted:
                raise BadInput(f"{spec} has {name!r} as its main input; name the other inputs, as in ids:2x16")
            dtype = shape.dtype or (default[name].dtype if name in default else _dtype(name))
            wanted[name] = InputShape(shape.sizes, name, dtype)
    return {name: _tensor(shape, config, request.generator) for name, shape in wanted.items()}


def _default_inputs(model: Any, config: Any, accepted: Mapping[str, Any]) -> dict[str, InputShape]:
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
    sizes = {
        "input_ids": (2, _LENGTH),
        "attention_mask": (2, _LENGTH),
        "decoder_input_ids": (2, _LENGTH),
        "pixel_values": _image_sizes(config),
        "input_features": (2, getattr(config, "num_mel_bins", 80), 2 * getattr(config, "max_source_positions", 64)),
        # A spectrogram where the config says its size, else a second of sound.
        "input_values": (2, config.max_length, config.num_mel_bins) if _is_spectrogram(config) else (2, 16_000),
    }
    return {name: InputShape(sizes[name], name, _dtype(name)) for name in names if name in sizes}


def _is_spectrogram(config: Any) -> bool:
    return isinstance(getattr(config, "max_length", None), int) and hasattr(config, "num_mel_bins")


def _image_sizes(config: Any) -> tuple[int, ...]:
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    image = (getattr(vision, "num_channels", 3), height, width)
    frames = getattr(vision, "num_frames", None)
    return (2, frames, *image) if isinstance(frames, int) else (2, *image)


def _dtype(name: str) -> torch.dtype:
    return torch.int64 if name.endswith(("ids", "mask")) else torch.float32


def _tensor(shape: InputShape, config: Any, generator: torch.Generator) -> Tensor:
    name, dtype = shape.name or "", shape.dtype or torch.float32
    if name.endswith("mask"):
        return torch.ones(shape.sizes, dtype=dtype)
    if name in ("input_ids", "decoder_input_ids"):
        text = getattr(config, "text_config", None) or config
        vocabulary = getattr(text, "vocab_size", None) or 2
        # Special tokens change what some models do with a row: where positions start, which token is pooled.
        special = max((getattr(text, token, None) or 0 for token in _SPECIAL_TOKENS), default=0)
        low = special + 1 if special + 1 < vocabulary // 2 else 0
        ids = random_tensor(shape.sizes, dtype, generator, low=low, high=vocabulary)
        # Classifiers on an encoder and a decoder read the end of the text, and refuse a text without one.
        end = getattr(text, "eos_token_id", None)
        if getattr(config, "is_encoder_decoder", False) and isinstance(end, int) and end < vocabulary:
            ids[..., -1] = end
        return ids
    return random_tensor(shape.sizes, dtype, generator)
