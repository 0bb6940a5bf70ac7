"""Models of timm: `timm:NAME`, with random weights."""

from __future__ import annotations

from typing import Any

from repl_fx.errors import SourceError, close_matches
from repl_fx.sources.input_shapes import InputShape, positional
from repl_fx.sources.source import Built, Request, import_zoo, package_code


def build(request: Request) -> Built:
    """Create a model of timm; options are keyword arguments of `timm.create_model`.

    An input shape that differs from the model's own is passed on where the model depends on it: the channels as
    `in_chans`, height and width as `img_size` for models of a fixed size.

    Returns:
        The model with two images of its default size.
    """
    spec = f"timm:{request.name}"
    timm = import_zoo("timm", spec)
    if not timm.is_model(request.name):
        raise SourceError(f"timm has no model {request.name!r}{close_matches(request.name, timm.list_models())}")
    options = {"pretrained": False, **_sizes(timm, request), **request.options}
    with package_code(f"{spec} could not be built"):
        model = timm.create_model(request.name, **options)
    shapes = request.shapes or (InputShape((2, *_input_size(model, options))),)
    return Built(model, positional(shapes, request.generator, spec))


def _sizes(timm: Any, request: Request) -> dict[str, Any]:
    """Constructor arguments that make the model take the images of the input shape."""
    config = timm.models.get_pretrained_cfg(request.name, allow_unregistered=True)
    if config is None or request.shapes is None or len(request.shapes[0].sizes) != 4:
        return {}
    _, channels, *size = request.shapes[0].sizes
    options: dict[str, Any] = {}
    if channels != config.input_size[0]:
        options["in_chans"] = channels
    if config.fixed_input_size and tuple(size) != tuple(config.input_size[1:]):
        options["img_size"] = tuple(size)
    return options


def _input_size(model: Any, options: dict[str, Any]) -> tuple[int, int, int]:
    channels, height, width = model.default_cfg["input_size"]
    size = options.get("img_size", (height, width))
    height, width = (size, size) if isinstance(size, int) else size
    return options.get("in_chans", channels), height, width
