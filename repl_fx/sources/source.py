"""Shared by all kinds of sources: the source itself, the request that builders get, and small helpers."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from repl_fx.errors import BadInput, ForeignError, SourceError, foreign_code, not_importable
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import own_randomness
from repl_fx.sources.checkpoints.digest import digest_of
from repl_fx.sources.input_shapes import InputShape


@dataclass(frozen=True, eq=False)
class Source:
    """A model, inputs to run it on, and what is needed to build both again.

    Attributes:
        spec: the specification, as given.
        model: the model, in the mode its factory left it in.
        args, kwargs: example inputs.
        options: JSON-serialisable keyword arguments of `load_source` that rebuild this source: `input_shape`, `seed`
            and `options`.
        files: files the model was made from, the one named in `spec` first, each with the SHA-256 of what was read;
            empty for a model of a zoo. Weights are none of them.
        weights: the file or directory that its weights were loaded from; None for those that `spec` alone leads to.
        absolute: a specification that leads to the same model from any directory.
        notes: remarks on the model for a user, a line each, such as which weights are random.
    """

    spec: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    files: Mapping[Path, str]
    absolute: str
    notes: tuple[str, ...] = ()
    weights: Path | None = None

    @cached_property
    def digest(self) -> str:
        """The digest of the weights as they are when it is first asked for; see `digest_of`."""
        return digest_of(self.model)

    @property
    def inputs(self) -> ExampleInputs:
        return ExampleInputs(self.args, self.kwargs)

    def __str__(self) -> str:
        """The specification, the class of the model and its size."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return f"{self.spec}: {type(self.model).__name__}, {parameters:,} parameters"


@dataclass(frozen=True, eq=False)
class Request:
    """The request for a model that a builder gets.

    Attributes:
        name: the specification without the prefix of its kind.
        shapes: shapes of the example inputs, or None for the default ones.
        options: keyword arguments for what builds the model.
        seed: of weights and inputs.
        generator: seeded, for example inputs.
        weights: whether to load weights, where there are some beside a config.
        trust_remote_code: whether code beside a config may run.
    """

    name: str
    shapes: tuple[InputShape, ...] | None
    options: Mapping[str, Any]
    seed: int
    generator: torch.Generator
    weights: bool = True
    trust_remote_code: bool = False


@dataclass(frozen=True, eq=False)
class Built:
    """The model that a builder returns; the fields are those of `Source`, and `absolute` is empty where the spec is.

    `options` are those of the request with what the weights told, and empty where they told nothing.
    """

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)
    absolute: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the random state of the CPU and of `device`, and restore both at the end.

    `torch.manual_seed` would seed every accelerator there is, and those that are not forked would stay seeded.
    """
    with own_randomness(device):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def import_zoo(package: str, spec: str) -> ModuleType:
    """Import a package of the extra `zoo`, which a specification needs."""
    with package_code(f"{spec}: importing {package} failed"):
        try:
            imported = importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            imported = None
    if imported is None:
        raise SourceError(f"{spec} needs {package}, which is not installed; pip install 'repl-fx[zoo]'")
    return imported


@contextmanager
def package_code(failed: str) -> Iterator[None]:
    """Run the code of a package that makes models; what it raises becomes a `SourceError`."""
    try:
        with foreign_code():
            yield
    except ForeignError as error:
        why = not_importable(error.problem) or describe(error.problem)
        raise SourceError(f"{failed}: {why}") from error.problem


@contextmanager
def about(spec: str) -> Iterator[None]:
    """Begin the messages of errors on a model with its specification."""
    try:
        yield
    except (SourceError, BadInput) as error:
        raise type(error)(f"{spec}: {error}") from error.__cause__


def hash_file(file: Path) -> str:
    """SHA-256 of the bytes of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe(error: BaseException) -> str:
    """Type and message of an exception on one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
