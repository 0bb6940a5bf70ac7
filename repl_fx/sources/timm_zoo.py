"""Models of timm: `timm:NAME`, with random weights or those of timm (`timm:resnet18.a1_in1k`)."""

from __future__ import annotations

from functools import partial
from typing import Any

from repl_fx.errors import BadInput, SourceError, close_matches
from repl_fx.sources.input_shapes import InputShape
from repl_fx.sources.preprocessing import of_timm
from repl_fx.sources.source import Built, Request, created, fitting_note, import_zoo

_CACHES = "the cache of huggingface_hub (HF_HOME) or torch.hub"


def build(request: Request) -> Built:
    """Create a model of timm; options are keyword arguments of `timm.create_model`.

    An input shape that differs from the model's own is passed on where the model depends on it: the channels as
    `in_chans`, height and width as `img_size` for models of a fixed size. Weights of another number of classes have a
    random classifier, as `timm.create_model` makes it.

    Returns:
        The model with two images of its default size, or of that of the data.
    """
    timm = import_zoo("timm", request.spec)
    known = _has_weights(timm, request)
    pretrained = request.pretrained and request.weights
    config = timm.models.get_pretrained_cfg(request.name, allow_unregistered=True)
    fitted = _fitted(config, request)
    options = {"pretrained": pretrained, **fitted, **request.options}
    hub = getattr(config, "hf_hub_id", "")
    address = f"https://huggingface.co/{hub}" if hub else getattr(config, "url", "")
    model = created(request.spec, partial(timm.create_model, request.name, **options), address, _CACHES)
    shapes = request.shapes or (InputShape((2, *(request.picture or _input_size(model, options)))),)
    notes = []
    if pretrained:
        notes.append(f"weights are those of {config.hf_hub_id or config.url or config.file}")
        if options.get("num_classes", config.num_classes) != config.num_classes:
            notes.append(f"its classifier is random: {options['num_classes']} classes, not {config.num_classes}")
    return Built(
        model,
        request.positional(shapes),
        options={**fitted, **request.options},
        notes=(*notes, *fitting_note(fitted if request.purpose is not None else {})),
        pretrained=known,
        preprocessing=of_timm(model, request.name) if pretrained else None,
    )


def _has_weights(timm: Any, request: Request) -> bool:
    """Tell whether timm has weights of a model; a model, or weights asked for, that it does not have are refused."""
    if not timm.is_model(request.name):
        raise SourceError(f"timm has no model {request.name!r}{close_matches(request.name, timm.list_models())}")
    name, _, tag = request.name.partition(".")
    tags = timm.models.get_arch_pretrained_cfgs(name)
    if tag and request.name not in tags:
        raise BadInput(f"timm has no weights {tag!r} of {name}{close_matches(request.name, tags)}")
    known = bool(timm.models.is_model_pretrained(request.name))
    if request.pretrained and not known:
        close = close_matches(request.name, timm.list_models(pretrained=True))
        raise BadInput(f"timm has no weights of {request.name}{close}; leave out --pretrained (pretrained=True)")
    return known


def _fitted(config: Any, request: Request) -> dict[str, Any]:
    """Constructor arguments that make the model take the images of the input shape, or what the data have."""
    if config is None:
        return {}
    purpose, shapes = request.purpose, request.shapes
    given = shapes[0].sizes[1:] if shapes is not None and len(shapes[0].sizes) == 4 else ()
    channels, *size = given or (request.picture if shapes is None else ()) or config.input_size
    fixed = config.fixed_input_size and tuple(size) != tuple(config.input_size[1:])
    classes = purpose.classes if purpose is not None and purpose.task == "classification" else 0
    return request.fitted(
        in_chans=channels if channels != config.input_size[0] else None,
        img_size=tuple(size) if fixed else None,
        num_classes=classes if classes != config.num_classes else None,
    )


def _input_size(model: Any, options: dict[str, Any]) -> tuple[int, int, int]:
    channels, height, width = model.default_cfg["input_size"]
    size = options.get("img_size", (height, width))
    height, width = (size, size) if isinstance(size, int) else size
    return options.get("in_chans", channels), height, width
