"""Flags for the fields of a settings class: their names, types and lines of help are stated there alone."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from repl_fx.cli.completion import OF_SETTINGS
from repl_fx.planning.settings import flag_of

# The sections of the help, by the settings in them; all others are the command's own.
_LATER = ("task", "augment", "mixup", "cutmix")
_SECTIONS = {
    "Blocks to replace": ("every", "blocks", "finder", "budget", "scores", "ignore", "surrogate", "set", "plan"),
    "Model": ("weights", "pretrained", "arg", "input_shape", "fixed", "checkpoint_blocks"),
    "Data": ("data", "data_dir", "download", "context", "size", "normalise", "mean", "std", *_LATER),
    "Optimizer": (
        *("epochs", "steps", "batch_size", "full_batches", "accumulate", "optimizer", "lr", "momentum"),
        *("weight_decay", "warmup", "clip", "label_smoothing", "ema", "precision", "compile", "learn"),
    ),
    "Teacher": ("teacher", "teacher_logits", "teacher_values", "target_weight", "temperature"),
    "Schedule of replacing": ("replace_at", "restore_at", "neighbours"),
    "Machine": ("device", "devices", "nodes", "strategy", "find_unused", "sync_batchnorm", "deterministic", "seed"),
    "Log and checkpoints": ("save_every", "log_every", "tensorboard"),
}
_SECTION_OF = {name: section for section, names in _SECTIONS.items() for name in names}


def with_flags(
    settings: type, without: Collection[str] = (), defaults: Mapping[str, Any] = MappingProxyType({})
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, which takes `**given`, a flag for each field of a class; None where a flag is not given.

    Args:
        settings: the class, whose annotations are `Annotated[type, Meta(description=…)]`.
        without: fields that the command has no flag for.
        defaults: values that the help shows in the place of the class's own.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        flags = (flag for flag in _flags(settings, defaults) if flag.name not in without)
        command.__signature__ = own.replace(parameters=[*named, *flags])  # type: ignore[attr-defined]
        return command

    return decorate


def _flags(settings: Any, defaults: Mapping[str, Any]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(settings, include_extras=True)
    for name, own in zip(settings.__struct_fields__, settings.__struct_defaults__, strict=True):
        kind, *notes = get_args(hints[name])
        default = defaults.get(name, own)
        text = next(note.description for note in notes if note.description)
        flag, plain = flag_of(name), _plain(kind)
        names = (f"{flag}/--no-{flag[2:]}",) if plain is bool else (flag,)
        shown = "" if default in (None, ()) else f"  [default: {str(default).lower() if plain is bool else default}]"
        option = typer.Option(
            *names,
            help=f"{text}{shown}",
            show_default=False,
            rich_help_panel=_SECTION_OF.get(name),
            autocompletion=OF_SETTINGS.get(name),
        )
        annotation = Annotated[plain | None, option]  # type: ignore[valid-type]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _plain(kind: Any) -> Any:
    """The class that a flag is read as; what is more than that, the settings check."""
    if get_origin(kind) in (Union, types.UnionType):
        return _plain(next(part for part in get_args(kind) if part is not type(None)))
    if get_origin(kind) is tuple:
        return list[str]
    return type(get_args(kind)[0]) if get_origin(kind) is Literal else kind
