"""Flags for the fields of a settings class: names, types, defaults and lines of help are stated there alone.

class ExportFlags(Flags):          ->   --opset INTEGER       Version of the ONNX operator set.
    '''…                                --with-cache
    Attributes:                         and those of all commands: --json, --verbose, --quiet
        opset: Version of the ONNX operator set.
    '''
    opset: int | None = None
    with_cache: Switch = False
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

import msgspec
import typer
from msgspec import Meta

from repl_fx.cli.completion import OF_SETTINGS
from repl_fx.cli.help import OUTPUT
from repl_fx.planning.settings import flag_of

# The sections of the help, by the settings in them; all others are the command's own.
_LATER = ("task", "augment", "mixup", "cutmix")
_SECTIONS = {
    "Blocks to replace": ("every", "blocks", "finder", "budget", "scores", "ignore", "surrogate", "set", "plan"),
    "Model": ("weights", "pretrained", "arg", "input_shape", "fixed", "graph", "checkpoint_blocks"),
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
# Flags with other names than those of their fields.
_NAMES = {
    "as_json": ("--json",),
    "verbose": ("-v", "--verbose"),
    "quiet": ("-q", "--quiet"),
    "output": ("-o", "--output"),
}
Sections = Mapping[str, Collection[str]]
# A flag without a `--no-`; and words for the value of a flag.
_ON = "on"
Switch = Annotated[bool, _ON]
File = Annotated[Path, "FILE"]
Directory = Annotated[Path, "DIR"]


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """Flags of every command.

    Attributes:
        as_json: Write one JSON document to stdout, and nothing else there; of an error, its line and exit code.
        verbose: Show every stage, the warnings of libraries, and tracebacks of errors.
        quiet: Show no progress.
    """

    as_json: Switch = False
    verbose: Switch = False
    quiet: Switch = False

    sections: ClassVar[Sections] = {
        OUTPUT: ("as_json", "verbose", "quiet"),
        "Model": ("model", "seed", "device", "trust_remote_code"),
    }

    def some(self, *names: str) -> dict[str, Any]:
        """Some of the flags, for a function whose arguments have their names."""
        return {name: getattr(self, name) for name in names}


class ArtifactFlags(Flags, frozen=True, kw_only=True):
    """Flags of a command that takes an artifact.

    Attributes:
        model: The model that DIR was made from, where its file is elsewhere now, or has changed.
        trust_remote_code: Run the code that lies in the directory of an hf: model, if it is made of it.
    """

    model: Annotated[str, "SPEC"] | None = None
    trust_remote_code: Switch = False


class SpecFlags(ArtifactFlags, frozen=True, kw_only=True):
    """Flags of a command that takes a model.

    Attributes:
        seed: Seed of random weights, inputs and surrogates.
        device: Where the model goes: cpu, cuda, cuda:1.
    """

    # Those of torch.manual_seed.
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0
    device: Annotated[str, "DEVICE"] = "cpu"


class RunFlags(ArtifactFlags, frozen=True, kw_only=True):
    """Flags of a command that makes a run in a directory, and goes on with it.

    Attributes:
        output: Where the artifact goes; by default DIR itself.
        resume: Go on with the run of DIR that was stopped, with its settings; beside SPEC and -o DIR, begin it
            where none is there.
        config: Settings in YAML; flags come before them.
        force: Replace an artifact or a run that is there already.
    """

    output: Directory | None = None
    resume: Switch = False
    config: File | None = None
    force: Switch = False


def flags_of(
    *settings: Any, without: Collection[str] = (), defaults: Mapping[str, Any] = MappingProxyType({})
) -> list[inspect.Parameter]:
    """A flag for each field of some classes, as parameters of a command; None where a flag is not given.

    Args:
        settings: the classes, with a line of help for each field (`lines_of_help`); of a name, the first one's counts.
        without: fields that the command has no flag for.
        defaults: values that the help shows in the place of the class's own.
    """
    found: dict[str, inspect.Parameter] = {}
    for kind in settings:
        for name in kind.__struct_fields__:
            if name not in without and name not in found:
                read_as, option = flag(kind, name, defaults)
                annotation = Annotated[read_as | None, option]  # type: ignore[valid-type]
                found[name] = inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
                )
    return list(found.values())


def flag(settings: Any, name: str, defaults: Mapping[str, Any] = MappingProxyType({})) -> tuple[Any, Any]:
    """The class that the flag of a field is read as, and the flag."""
    default = defaults.get(name, getattr(settings(), name))
    kind, notes = _plain(_annotations(settings)[name])
    names, limits = _NAMES.get(name, (flag_of(name),)), next((note for note in notes if isinstance(note, Meta)), None)
    if kind is bool and _ON not in notes:
        names = (f"{names[0]}/--no-{names[0][2:]}",)
    written = str(default).lower() if kind is bool else default
    shown = "" if default in (None, ()) or _ON in notes else f"  [default: {written}]"
    sections = getattr(settings, "sections", _SECTIONS)
    option = typer.Option(
        *names,
        help=f"{lines_of_help(settings).get(name, '')}{shown}",
        show_default=False,
        rich_help_panel=next((section for section, inside in sections.items() if name in inside), None),
        metavar=next((note for note in notes if isinstance(note, str) and note != _ON), None),
        min=limits.ge if kind is int and limits else None,
        max=limits.le if kind is int and limits else None,
        autocompletion=OF_SETTINGS.get(name),
    )
    return kind, option


@cache
def _annotations(settings: type) -> dict[str, Any]:
    """The annotations of a class by field; Python evaluates those of all fields for each question."""
    return get_type_hints(settings, include_extras=True)


@cache
def lines_of_help(kind: type) -> dict[str, str]:
    """The lines on the attributes of a class and of its bases in their docstrings, by name."""
    texts = (inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")[2] for base in reversed(kind.__mro__))
    lines = (found for text in texts for found in re.findall(r"^    (\w+): (.+(?:\n {8}.*)*)", text, re.MULTILINE))
    return {name: " ".join(line.split()) for name, line in lines}


def _plain(kind: Any, notes: tuple[Any, ...] = ()) -> tuple[Any, tuple[Any, ...]]:
    """The class that a flag is read as, and the notes on it; what is more than that, the settings check."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0], get_args(kind)[1:])
    if get_origin(kind) in (Union, types.UnionType):
        return _plain(next(part for part in get_args(kind) if part is not type(None)), notes)
    return (list[str] if get_origin(kind) is tuple else kind), notes
