"""Models of transformers: `hf:TYPE` and `hf:CONFIG` with random weights, `hf:DIR` and `hf:ORG/NAME` with their own."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repl_fx.errors import BadInput, SourceError, close_matches
from repl_fx.graph.kinds import dtype_name
from repl_fx.sources.hugging_face_code import OPTION, Code
from repl_fx.sources.hugging_face_inputs import SPECIAL_TOKENS, example_inputs
from repl_fx.sources.hugging_face_weights import (
    REWRITTEN,
    dtype_of,
    keep_precision_,
    load_weights_,
    read_weights,
    why_random,
)
from repl_fx.sources.preprocessing import of_processor
from repl_fx.sources.source import (
    Built,
    Purpose,
    Request,
    about,
    describe,
    downloading,
    fitting_note,
    hash_file,
    import_zoo,
    package_code,
)

# Sizes of a config that is made from a type alone. Only arguments that the config takes, and whose default is an
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
# The context of a text that a config made small takes.
_POSITIONS = ("max_position_embeddings", "n_positions")
# The classes that give a bare model the head for a task; of classification, for pictures and for texts.
_HEADS = {
    "language-modelling": "AutoModelForCausalLM",
    "classification": "AutoModelForImageClassification",
    "segmentation": "AutoModelForSemanticSegmentation",
    "detection": "AutoModelForObjectDetection",
}
_HEAD_OF_TEXTS = "AutoModelForSequenceClassification"
# A name on the hub, with a revision.
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_HUB_FILES = ("*.json", "*.safetensors", "*.py", "*.model", "*.txt")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
_EXAMPLE = "hf:DIR:AutoModel"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Types whose defaults do not build, or do not fit the small sizes.
_BY_TYPE: dict[str, dict[str, Any]] = {
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "reformer": {"axial_pos_embds": False},
}


def build(request: Request) -> Built:
    """Build a model of transformers from a type, a config file or a directory; options are attributes of its config.

    Returns:
        The model, with attention written out (`eager`) and without a cache of keys and values, and keyword inputs.
    """
    transformers = import_zoo("transformers", request.spec)
    with about(request.spec):
        return _built(transformers, request)


def _built(transformers: Any, request: Request) -> Built:
    source, class_name = split_class(request.name)
    file = _config_file(source)
    if file is None:
        return _of_type(transformers, source, class_name, request)

    values = _read(file)
    code = Code.named_by(values, file.parent, class_name, request.trust_remote_code)
    files = {file: hash_file(file), **code.files}
    config_class = _own_config_class(transformers, values, code, file)
    config = _construct(config_class, {**values, "use_cache": False}, request.options)
    model_class = _own_class(transformers, class_name or _named_class(transformers, values, code), config, code)
    chosen = ""
    if class_name is None and not code.permitted:
        model_class = _with_head(transformers, model_class, config, request.purpose)
        chosen = class_name = "" if _is_bare(transformers, model_class, config) else model_class.__name__
    directory = file.parent if _is_on_hub(source) or Path(source).is_dir() else None
    state = read_weights(directory, config) if directory is not None and request.weights else None
    if getattr(config, "transformers_weights", None) == REWRITTEN:
        del config.transformers_weights
    options = {**request.options, **_give_dtype_(config, dtype_of(state or {}))}
    model = _model(model_class, config, request.options)
    notes: list[str] = []
    if chosen:
        notes.append(f"the class is {chosen}; another one is named behind the path, such as {_EXAMPLE}")
    if code.unused:
        notes.append(f"the code in {file.parent} is not used, as transformers has such a model; {OPTION} takes it")
    if state is not None and directory is not None:
        notes += load_weights_(model, state, directory)
    else:
        keep_precision_(model)
        if request.weights:
            notes.append(why_random(file, directory))
    return Built(
        model,
        kwargs=example_inputs(model, config, request),
        files=files,
        absolute=f"hf:{_absolute(source, directory or file)}{f':{class_name}' if class_name else ''}",
        options=options,
        notes=tuple(notes),
        preprocessing=of_processor(file.parent) if state is not None else None,
    )


def tokenizer(name: str, trust_remote_code: bool) -> Any:
    """The tokenizer beside a config; None where there is none.

    Raises:
        SourceError: it cannot be read.
    """
    source, _ = split_class(name)
    file = _config_file(source)
    if file is None or not any((file.parent / known).is_file() for known in _TOKENIZERS):
        return None
    transformers: Any = import_zoo("transformers", f"hf:{name}")
    with package_code(f"the tokenizer in {file.parent} cannot be read"):
        return transformers.AutoTokenizer.from_pretrained(
            file.parent, local_files_only=True, trust_remote_code=trust_remote_code
        )


def own_code(name: str) -> dict[Path, str]:
    """The files of code that a model runs where that is permitted, each with its SHA-256."""
    source, class_name = split_class(name)
    file = _config_file(source)
    if file is None:
        return {}
    with about(f"hf:{name}"):
        return Code.named_by(_read(file), file.parent, class_name, permitted=True).files


def _of_type(transformers: Any, source: str, class_name: str | None, request: Request) -> Built:
    """A small model of a type; it has the head, the classes and the sizes that the data want."""
    config_class = _config_class(transformers, source)
    default = config_class()
    small = {**_shrunk(config_class, default), **_BY_TYPE.get(source, {})}
    fitted = _fitted(default, small, request)
    config = _construct(config_class, {**small, **fitted}, request.options)
    model_class = _native_class(transformers, class_name, config)
    notes = fitting_note(fitted)
    if class_name is None:
        model_class = _with_head(transformers, model_class, config, request.purpose)
    model = _model(model_class, config, request.options)
    absolute = ""
    if class_name is None and request.purpose is not None and request.purpose.task:
        absolute = f"hf:{source}:{type(model).__name__}"
        notes = (f"the class is {type(model).__name__}, for {request.purpose.task}", *notes)
    kwargs = example_inputs(model, config, request)
    return Built(model, kwargs=kwargs, absolute=absolute, options={**fitted, **request.options}, notes=notes)


def _fitted(default: Any, small: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Values of a config that fit the data, and that the user has not said."""
    purpose = request.purpose
    if purpose is None:
        return {}
    known = inspect.signature(type(default)).parameters
    channels, *size = purpose.picture or (0, 0)
    wanted: dict[str, Any] = {"image_size": size[0] if size[0] in size[1:] else size or None, "num_channels": channels}
    if purpose.task == "language-modelling":
        (context,) = purpose.shape or (0,)
        wanted = {name: context for name in _POSITIONS if small.get(name, context) < context}
        wanted["vocab_size"] = purpose.classes if small.get("vocab_size", 0) < purpose.classes else None
    fitted = {name: value for name, value in request.fitted(**wanted).items() if name in known}
    fitted = {name: value for name, value in fitted.items() if value != small.get(name, getattr(default, name, None))}
    if purpose.task in ("classification", "segmentation") and purpose.classes:
        fitted |= request.fitted(num_labels=purpose.classes)
    return fitted


def _with_head(transformers: Any, model_class: Any, config: Any, purpose: Purpose | None) -> Any:
    """The class with the head for the data; the class itself where it has one, or no purpose is known.

    Raises:
        SourceError: there is no such head for the type.
    """
    name = None if purpose is None else _HEADS.get(purpose.task)
    if purpose is None or name is None or not _is_bare(transformers, model_class, config):
        return model_class
    if purpose.task == "classification" and len(purpose.shape) == 1:
        name = _HEAD_OF_TEXTS
    auto = getattr(transformers, name)
    classes = _classes_of(auto, config)
    if not classes:
        raise SourceError(f"transformers has no {config.model_type} for {purpose.task} ({name}); name its class")
    return classes[0]


def _is_bare(transformers: Any, model_class: Any, config: Any) -> bool:
    """Tell whether a class is the one without a head that AutoModel has for a config."""
    auto = transformers.AutoModel
    return model_class in (auto, *_classes_of(auto, config))


def _classes_of(auto: Any, config: Any) -> tuple[Any, ...]:
    """The classes that an auto class of transformers has for a config, the usual one first."""
    known = auto._model_mapping.get(type(config), ())
    return known if isinstance(known, tuple) else (known,)


def _named_class(transformers: Any, values: Mapping[str, Any], code: Code) -> str | None:
    """The class that a config says it was saved from, where transformers has it."""
    named = next(iter(values.get("architectures") or ()), None)
    usable = isinstance(named, str) and hasattr(transformers, named) and not code.permitted
    return named if usable else None


def _is_on_hub(source: str) -> bool:
    return bool(_HUB_NAME.fullmatch(source)) and not Path(source).exists() and not source.endswith(".json")


def from_hub(name: str) -> Path:
    """The directory in the cache of the hub that has a model; what is missing there is downloaded.

    Args:
        name: ORG/NAME, or ORG/NAME@REVISION.

    Raises:
        SourceError: neither the cache nor the network has it; says how to get it there.
    """
    hub: Any = import_zoo("huggingface_hub", f"hf:{name}")
    repository, _, revision = name.partition("@")
    place = f"the cache of huggingface_hub ({hub.constants.HF_HUB_CACHE})"
    known = {"revision": revision or None, "allow_patterns": list(_HUB_FILES)}
    if _COMMIT.fullmatch(revision):
        # A commit never changes, so that nobody need be asked.
        with suppress(Exception):
            return Path(hub.snapshot_download(repository, local_files_only=True, **known))
    with downloading(
        f"{name} is no directory here, and the files of {name}", f"https://huggingface.co/{repository}", place
    ):
        return Path(hub.snapshot_download(repository, **known))


def _absolute(source: str, place: Path) -> str:
    """The place, or the name on the hub with the commit, which the cache has as the name of the directory."""
    return f"{source.partition('@')[0]}@{place.name}" if _is_on_hub(source) else str(place)


def split_class(name: str) -> tuple[str, str | None]:
    """The part of a name in front of the class, and the class; None where it names none."""
    head, colon, tail = name.rpartition(":")
    return (head, tail) if colon and head and tail.isidentifier() and not Path(name).exists() else (name, None)


def _config_file(source: str) -> Path | None:
    """The config file that a name on the hub or a path leads to, if it is no type; also where there is none.

    A link stays one, in a directory that is resolved: what else belongs to a model lies beside the link.
    """
    if _is_on_hub(source):
        return from_hub(source) / "config.json"
    path = Path(source)
    if path.is_dir():
        return path.resolve() / "config.json"
    return path.parent.resolve() / path.name if path.suffix == ".json" or len(path.parts) > 1 else None


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise SourceError(f"no file {file}; nothing is downloaded, so save the model's config.json and give its path")
    try:
        values = json.loads(file.read_text(encoding="utf-8"), object_hook=_number_or_object)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file} is not JSON: {describe(error)}") from error
    if not isinstance(values, dict) or ("model_type" not in values and "auto_map" not in values):
        raise SourceError(f"{file} has no model_type, so it is no config of transformers")
    if "configuration_files" in values:
        raise SourceError(f"{file} names other configs (configuration_files); put the right one in its place")
    # Attention is written out, whatever kernel the file prefers; a kernel may be code that has to be fetched. Fusions
    # are made while weights are loaded, and are no part of the model without them.
    return {k: value for k, value in values.items() if k.lstrip("_") not in ("attn_implementation", "fusion_config")}


def _number_or_object(values: dict[str, Any]) -> Any:
    """The number that an object of transformers stands for, where JSON has none: infinity, NaN; any other object."""
    return float(values["__float__"]) if values.keys() == {"__float__"} else values


def _own_config_class(transformers: Any, values: Mapping[str, Any], code: Code, file: Path) -> Any:
    """The class of a config file: of its code where that may run, else of transformers."""
    model_type = values.get("model_type")
    if code.config is not None and (code.permitted or model_type not in transformers.CONFIG_MAPPING):
        return code.load(code.config)
    # As AutoConfig does.
    if model_type == "mistral" and "layer_types" in values and "ministral" in transformers.CONFIG_MAPPING:
        model_type = "ministral"
    return _config_class(transformers, model_type, f"the model_type of {file}: ")


def _config_class(transformers: Any, model_type: Any, where: str = "") -> Any:
    known = list(transformers.CONFIG_MAPPING.keys())
    if model_type not in known:
        close = close_matches(str(model_type), known)
        raise SourceError(f"{where}transformers has no model type {model_type!r}{close}")
    return transformers.CONFIG_MAPPING[model_type]


def _construct(config_class: Any, values: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    # Configs keep any keyword they are given, so a misspelt one would go unseen.
    with package_code(f"{config_class.__name__} has no defaults"):
        default = config_class()
    known = {*inspect.signature(config_class).parameters, *default.to_dict(), "attn_implementation"}
    for name in options:
        if name not in known and not hasattr(default, name):
            raise BadInput(f"{config_class.__name__} has no option {name!r}{close_matches(name, known)}")
    with package_code(f"{config_class.__name__} refuses its values"):
        return config_class(**{**values, **options})


def _shrunk(config_class: Any, default: Any) -> dict[str, Any]:
    """Arguments that make a config of this class small; of the configs inside it too."""
    parameters = inspect.signature(config_class).parameters
    small: dict[str, Any] = {"use_cache": False} if "use_cache" in parameters else {}
    for name in parameters:
        value = getattr(default, name, None)
        if name in SPECIAL_TOKENS and (value is None or isinstance(value, int)):
            small[name] = SPECIAL_TOKENS[name]
        elif name in _SMALL_VALUES and isinstance(value, int) and value > _SMALL_VALUES[name]:
            small[name] = _SMALL_VALUES[name]
    heads, groups = (getattr(default, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    if "num_key_value_heads" in small and groups == heads:
        small["num_key_value_heads"] = small["num_attention_heads"]
    for name in config_class.sub_configs:
        inner = getattr(default, name, None)
        if name in parameters and inner is not None and hasattr(inner, "to_dict"):
            small[name] = {"model_type": inner.model_type, **_shrunk(type(inner), inner)}
    return small


def _give_dtype_(config: Any, dtype: torch.dtype | None) -> dict[str, str]:
    """Give a config that names no dtype that of its weights, with the configs inside it; the option to do so again."""
    own = config.dtype
    for inner in (config, *(getattr(config, key, None) for key in config.sub_configs)):
        if inner is not None and inner.dtype is None:
            inner.dtype = own or dtype
    return {} if own is not None or dtype in (None, torch.float32) else {"dtype": dtype_name(dtype)}


def _own_class(transformers: Any, class_name: str | None, config: Any, code: Code) -> Any:
    """The class of a model with a config file: of its code where that may run, else of transformers."""
    native: Any = None
    try:
        native = _native_class(transformers, class_name, config)
    except SourceError as error:
        if code.model is None:
            hint = f"; its code has {', '.join(code.classes)}" if code.classes else ""
            raise SourceError(f"{error}{hint}") from error
    if code.model is None or (native is not None and not code.permitted):
        return native
    found = code.load(code.model)
    if not hasattr(found, "_from_config"):
        raise SourceError(f"{code.model} in the auto_map of config.json is no model of transformers")
    return found


def _native_class(transformers: Any, class_name: str | None, config: Any) -> Any:
    model_class: Any = getattr(transformers, class_name or "AutoModel", None)
    if not hasattr(model_class, "from_config") and not hasattr(model_class, "_from_config"):
        known = [name for name in dir(transformers) if name[:1].isupper()]
        raise SourceError(f"transformers has no model class {class_name!r}{close_matches(str(class_name), known)}")
    wanted = getattr(model_class, "config_class", None)
    if wanted is not None and not isinstance(config, wanted):
        raise SourceError(f"{class_name} takes a {wanted.__name__}, not a {type(config).__name__}")
    if type(config) not in getattr(model_class, "_model_mapping", (type(config),)):
        raise SourceError(f"{model_class.__name__} has no model for a {type(config).__name__}")
    return model_class


def _model(model_class: Any, config: Any, options: Mapping[str, Any]) -> Any:
    with package_code("the model could not be built"):
        if hasattr(model_class, "from_config"):
            model = model_class.from_config(config, trust_remote_code=False)
        else:
            model = model_class._from_config(config)
    # Fused attention picks its kernel by looking into the mask, which no trace can follow.
    if options.get("attn_implementation") is None and hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    assert isinstance(model, nn.Module)
    return model
