"""Model specifications: from what a user types to a model and example inputs.

    path/model.py            a file with a factory `model()` and, usually, `example_inputs()`
    path/model.py:factory    the same, with a factory of another name
    timm:NAME                a model of timm, with random weights or its own (`pretrained`): timm:resnet18.a1_in1k
    torchvision:NAME         a model of torchvision; with its own weights also torchvision:resnet50.IMAGENET1K_V1
    hf:TYPE                  a small model of a transformers type (`hf:bert`), with random weights
    hf:DIR                   the model of a directory that transformers saved, with the weights that lie there
    hf:CONFIG                the model of a config.json, with random weights
    hf:ORG/NAME[@REVISION]   the same of the Hugging Face hub, through its cache
    hf:…:CLASS               another class than the config names, or of a type alone: `hf:bert:BertForMaskedLM`
    KIND:NAME                what else is registered (`repl_fx.sources.registry`)

Nothing is downloaded but what `pretrained` and `hf:ORG/NAME` ask for, by the libraries, through their caches; and
nothing is unpickled: the weights of a directory are its model.safetensors, or the shards that
model.safetensors.index.json names. Code in a directory (the `auto_map` of its config.json) runs with permission alone.
A model of any kind takes a checkpoint of its own (`weights`).
The grammar of `input_shape` is in `repl_fx.sources.input_shapes`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repl_fx.errors import BadInput, SourceError, close_matches
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import seeded
from repl_fx.sources import hugging_face, python_file, timm_zoo, torchvision_zoo
from repl_fx.sources.checkpoints.fitting import load_weights_
from repl_fx.sources.checkpoints.weight_files import Weights
from repl_fx.sources.input_shapes import parse_input_shape, written_shapes
from repl_fx.sources.registry import builder, is_source, known_sources, register_source
from repl_fx.sources.source import Built, Purpose, Request, Source, as_given
from repl_fx.tracing.model_checks import without_values

__all__ = [
    "Built",
    "Purpose",
    "Request",
    "Source",
    "known_sources",
    "load_source",
    "names_no_file",
    "register_source",
    "tokenizer_of",
    "usable_device",
]

register_source("timm")(timm_zoo.build)
register_source("torchvision")(torchvision_zoo.build)
register_source("hf", code=hugging_face.own_code)(hugging_face.build)


def load_source(
    spec: str,
    *,
    input_shape: str | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    options: Mapping[str, Any] | None = None,
    weights: bool | Weights = True,
    pretrained: bool = False,
    purpose: Purpose | None = None,
    trust_remote_code: bool = False,
) -> Source:
    """Build the model that a specification names, and example inputs for it.

    The same arguments give the same weights and inputs, on any device: both are made on the CPU and then moved. The
    global random state is left as it was. Example inputs have a batch of 2 where repl-fx makes them.

    Args:
        spec: a model specification, see the module.
        input_shape: shapes in place of the default ones, such as `2x3x64x64` or `input_ids:2x16,attention_mask:2x16`.
        seed: of the weights and the inputs.
        device: where the model and the inputs go.
        options: keyword arguments of the factory, of the zoo's constructor or of the transformers config, which have
            to be serialisable as JSON.
        weights: load the weights of `hf:DIR`; without them (False), they are random and need not be there. Or a
            checkpoint of any model: a file, a directory or a state dict (`repl_fx.sources.checkpoints.weight_files`).
        pretrained: take the weights that timm or torchvision have for the model, from their cache or downloaded; not
            where `weights` is False.
        purpose: the data that the model is for: models of a zoo and of a transformers type get their classes, channels
            and sizes where `options` and `input_shape` say nothing, and those of transformers the head for the task.
        trust_remote_code: let the code of `hf:DIR` run, where the model is made of it. It is never run otherwise.

    Returns:
        The source, with notes on its weights. `load_source(source.spec, **source.options)`
        builds the same again.

    Raises:
        SourceError: the specification leads to no model; says what is there instead.
        BadInput: `input_shape`, `device`, `options` or `weights` cannot be used.
    """
    target = usable_device(device)
    options = _serialisable(options or {})
    shapes = None if input_shape is None else parse_input_shape(input_shape)
    name, build = _builder_of(spec)
    with seeded(target, seed):
        generator = torch.Generator().manual_seed(seed)
        request = Request(
            name, shapes, options, seed, generator, weights is True, pretrained, trust_remote_code, purpose, spec
        )
        built = build(request)
    if pretrained and not built.pretrained:
        raise BadInput(f"{spec} has no weights to be had by its name; leave out --pretrained (pretrained=True)")
    valueless = without_values([*built.model.named_parameters(), *built.model.named_buffers()])
    if valueless and target.type != "meta":
        raise SourceError(f"{spec}: the model {valueless}")
    notes = built.notes
    if not isinstance(weights, bool):
        notes = (*notes, *load_weights_(built.model, weights))
    inputs = ExampleInputs(built.args, built.kwargs)
    if purpose is not None and input_shape is None:
        inputs, input_shape = _for_data(spec, built.model, inputs, purpose)
    inputs = inputs.map(lambda tensor: tensor.to(target))
    return Source(
        spec=spec,
        model=built.model.to(target),
        args=inputs.args,
        kwargs=inputs.kwargs,
        options={
            "input_shape": input_shape,
            "seed": seed,
            "options": dict(built.options or options),
            **({"pretrained": True} if pretrained else {}),
        },
        files=built.files,
        absolute=built.absolute or spec,
        notes=notes,
        weights=Path(weights).absolute() if isinstance(weights, str | os.PathLike) else None,
        preprocessing=built.preprocessing,
    )


def _for_data(spec: str, model: nn.Module, own: ExampleInputs, purpose: Purpose) -> tuple[ExampleInputs, str | None]:
    """The inputs that a model gets for data, and their shapes where those are not known when it is built again."""
    given = own if purpose.inputs is None else as_given(model, own, purpose.inputs)
    of_data = names_no_file(spec) or given is not own
    return given, written_shapes(given, given.batch) if of_data and given.batch > 1 else None


def tokenizer_of(spec: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer that lies beside a model of transformers; None for other models, and where there is none.

    Raises:
        SourceError: it cannot be read.
    """
    kind, _, name = spec.partition(":")
    return hugging_face.tokenizer(name, trust_remote_code) if kind == "hf" and name else None


def _serialisable(options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(dict(options))
    except (TypeError, ValueError) as error:
        raise BadInput(f"options have to be serialisable as JSON, to be stored with the model: {error}") from error
    return dict(options)


def _builder_of(spec: str) -> tuple[str, Callable[[Request], Built]]:
    """The name that a specification has for its model, and the function that builds it."""
    if not spec:
        raise SourceError("the model specification is empty; give a model.py, timm:NAME, torchvision:NAME or hf:CONFIG")
    if not names_no_file(spec):
        _refuse_other_kinds(spec)
        return spec, python_file.build
    kind, _, name = spec.partition(":")
    if not name:
        raise SourceError(f"{spec!r} names no model; write {kind}:NAME")
    return name, builder(kind)


def usable_device(device: str | torch.device) -> torch.device:
    """A device that tensors can be on.

    Raises:
        BadInput: there is none of that name here.
    """
    try:
        found = torch.device(device)
        # Allocating is the one question that every backend answers.
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"device {str(device)!r} cannot be used here ({reason}); 'cpu' always can") from error
    return found


def names_no_file(spec: str) -> bool:
    """Tell whether a specification is of a registered kind (`timm:NAME`), and not the path of a file."""
    kind, colon, _ = spec.partition(":")
    return bool(colon) and is_source(kind)


def _refuse_other_kinds(spec: str) -> None:
    """Say what is meant where a specification looks like `kind:name` but is neither that nor a file."""
    prefix, colon, _ = spec.partition(":")
    if colon and prefix.isidentifier() and len(prefix) > 1 and not Path(prefix).exists():
        known = known_sources()
        listed, hint = ", ".join(f"{kind}:" for kind in known), close_matches(prefix, known)
        raise SourceError(f"{spec!r}: no kind of model {prefix!r}{hint}; known are {listed} and a path to a .py file")
