"""The origin of a rewritten module: all that `save` needs besides tensors; a module from `load` brings it along."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

import msgspec
import torch
from torch import nn

from repl_fx.arguments import in_words
from repl_fx.environment.machine import installed
from repl_fx.errors import BadInput
from repl_fx.graph.captured import CapturedModule
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.holders import ORIGIN
from repl_fx.sources import Source
from repl_fx.tracing.parts.origin import Model, Origin, SourceOptions, Weights
from repl_fx.tracing.parts.part_repeats import lines_made

# Before each setting in the line of a module.
_SETTING = re.compile(r" (?=\w+=)")


def with_origin(model: TransformResult | nn.Module) -> tuple[nn.Module, Origin]:
    """A rewritten module, which is from `transform` or `load`, and what is known of it."""
    if isinstance(model, TransformResult):
        _require_one(model)
        _require_tensors_alone(model)
        module = model.module
        return module, model.origin_of(module)
    if isinstance(model, nn.Module):
        origin = vars(model).get(ORIGIN)
        if isinstance(origin, Origin):
            return model, origin
        inner = next((path for path, module in model.named_modules() if ORIGIN in vars(module)), None)
        if inner is not None:
            kind = type(model).__name__
            raise BadInput(f"save takes the rewritten model, and this {kind} holds it: give model.{inner}")
        if isinstance(model, CapturedModule):
            weights = "weights of a copy go in by result.graph_module.load_state_dict(copy.state_dict())"
            kind = type(model).__name__
            raise BadInput(f"save takes the result that a graph is from, and this is a graph of {kind}; {weights}")
    takes = "save takes what transform returned, its model, or a module from load (torch.save keeps any other)"
    raise BadInput(f"{takes}, and this is {in_words(model)}")


def _require_one(result: TransformResult) -> None:
    """Refuse a result whose model was changed otherwise than by training, or whose two forms were trained apart."""
    in_place = vars(result).get("in_place")
    if in_place is None or in_place.model is None:
        return
    require_as_made(in_place.model, vars(in_place.model)[ORIGIN])
    of_model, of_graph = map(in_place.tensors_of, (in_place.model, result.module))
    for name in sorted(in_place.shared.keys() & of_model.keys() & of_graph.keys()):
        # The result has those of the form that alone was moved or converted.
        ours, theirs, shared = of_model[name], of_graph[name], in_place.shared[name]
        if ours is not shared and theirs is not ours and not torch.equal(ours.cpu(), theirs.cpu()):
            raise BadInput(
                f"result.model and result.module hold other values of {name}: each got tensors of its own, and was "
                "trained by itself; give save result.model"
            )


def _require_tensors_alone(result: TransformResult) -> None:
    """Refuse a result whose model has state besides tensors, which its graph has not."""
    modules = result.captured_parts.source.named_modules()
    extra = next((p for p, m in modules if type(m).get_extra_state is not nn.Module.get_extra_state), None)
    if extra is not None and result.in_place.model is not None:
        raise BadInput(f"a graph has no state like that of get_extra_state in {extra}; give save result.model")


def built_like(model: nn.Module, other: nn.Module) -> nn.Module:
    """A rewritten module, of which from now on is known how the source of another, which is the same, is built."""
    (_, origin), (_, known) = with_origin(model), with_origin(other)
    vars(model)[ORIGIN] = msgspec.structs.replace(origin, model=known.model)
    return model


def require_as_made(module: nn.Module, origin: Origin) -> None:
    """Refuse a module whose code was changed: its artifact would be loaded without the change."""
    differs = first_difference(origin.made, lines_made(module))
    if differs:
        raise BadInput(
            f"an artifact holds a model as transform rewrote it, and this one was changed since: {differs}; "
            "save its state_dict instead"
        )


def first_difference(before: Sequence[str], after: Sequence[str]) -> str:
    """The first line in which two texts differ, in words; nothing where none does.

    Of two lines for one module, the settings in which they differ.
    """
    at = next((i for i, pair in enumerate(zip_longest(before, after)) if pair[0] != pair[1]), None)
    if at is None:
        return ""
    # The path of the model itself is empty.
    was, now = (lines[at].removeprefix(": ") if at < len(lines) else "nothing" for lines in (before, after))
    (module, *own), (other, *others) = (_SETTING.split(line) for line in (now, was))
    if module == other and own and others:
        now = " ".join([module, *(setting for setting in own if setting not in others)])
        was = " ".join(setting for setting in others if setting not in own) or "not set"
    return f"{now}, which was {was}"


def model_of(source: Source, weights: Weights | None) -> Model:
    """Describe how a source is built, as an artifact says it."""
    return Model(
        spec=source.absolute,
        options=SourceOptions(**source.options),
        kind=type(source.model).__name__,
        files={str(file): digest for file, digest in source.files.items()},
        weights=weights,
        preprocessing=source.preprocessing,
    )


def weights_of(source: Source) -> Weights:
    """The weights of a source, as an artifact says them."""
    return Weights(None if source.weights is None else str(source.weights), source.digest)


def versions() -> dict[str, str]:
    """The versions of the packages that have a say in the graph."""
    return {"torch": str(torch.__version__), **installed(("repl-fx", "timm", "torchvision", "transformers"))}
