"""Shared by all kinds of sources: the source itself, the request that builders get, and small helpers."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.errors import BadInput, SourceError, close_matches, foreign_code, not_importable
from repl_fx.graph.state import parameter_count
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.sources.checkpoints.digest import digest_of
from repl_fx.sources.input_shapes import InputShape, random_tensor
from repl_fx.tracing.parts.origin import Preprocessing


@dataclass(frozen=True, eq=False)
class Built:
    """The model that a builder returns.

    Attributes:
        model: the model, in the mode its factory left it in.
        args, kwargs: example inputs.
        files: files the model was made from, the one named in the specification first, each with the SHA-256 of what
            was read; empty for a model of a zoo. Weights are none of them.
        absolute: a specification that leads to the same model from any directory; empty where that which was given
            does.
        options: those of the request with what the weights told, and empty where they told nothing.
        notes: remarks on the model for a user, a line each, such as which weights are random.
        pretrained: whether the builder has weights for the name, whether or not they were asked for.
        preprocessing: of pictures, where the weights come with it.
    """

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)
    absolute: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pretrained: bool = False
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Source(Built):
    """A model that was built, inputs to run it on, and what is needed to build both again.

    Attributes:
        spec: the specification, as given.
        absolute: a specification that leads to the same model from any directory.
        options: JSON-serialisable keyword arguments of `load_source` that rebuild this source: `input_shape`, `seed`
            and `options`.
        weights: the file or directory that its weights were loaded from; None for those that `spec` alone leads to.
    """

    spec: str
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
        parameters = parameter_count(self.model)
        return f"{self.spec}: {type(self.model).__name__}, {parameters:,} parameters"


@dataclass(frozen=True)
class Purpose:
    """The data that a model is built for.

    Attributes:
        task: of the data, such as `classification`.
        classes: number of classes that the last layer is to tell apart, or of token ids; 0 leaves it as it is.
        shape: of one input: (channels, height, width) of a picture, (context,) of a text; empty leaves the model's own.
        inputs: those of a batch, two samples; None where they are not known.
    """

    task: str
    classes: int = 0
    shape: tuple[int, ...] = ()
    inputs: ExampleInputs | None = field(default=None, compare=False)

    @property
    def picture(self) -> tuple[int, ...]:
        """Channels, height and width; nothing where inputs are no pictures of one size."""
        return self.shape if len(self.shape) == 3 else ()


@dataclass(frozen=True, eq=False)
class Request:
    """The request for a model that a builder gets.

    Attributes:
        name: the specification without the prefix of its kind.
        shapes: shapes of the example inputs, or None for the default ones.
        options: keyword arguments for what builds the model.
        seed: of weights and inputs.
        generator: seeded, for example inputs.
        weights: whether to load weights, where there are some beside a config, or `pretrained` asks for them.
        pretrained: whether the model is to have the weights that are known by its name.
        trust_remote_code: whether code beside a config may run.
        purpose: the data that the model is built for, where they are known; what `options` and `shapes` say comes
            first.
        spec: the specification itself.
    """

    name: str
    shapes: tuple[InputShape, ...] | None
    options: Mapping[str, Any]
    seed: int
    generator: torch.Generator
    weights: bool = True
    pretrained: bool = False
    trust_remote_code: bool = False
    purpose: Purpose | None = None
    spec: str = ""

    @property
    def picture(self) -> tuple[int, ...]:
        """Channels, height and width of the pictures that the model is for; nothing where they are not known."""
        return () if self.purpose is None else self.purpose.picture

    def positional(self, shapes: Sequence[InputShape]) -> tuple[Tensor, ...]:
        """The inputs of a model that takes positional float tensors only, one for each shape.

        Raises:
            BadInput: a shape has a name.
        """
        named = next((shape.name for shape in shapes if shape.name is not None), None)
        if named is not None:
            raise BadInput(f"{self.spec} takes its inputs by position; leave the name {named!r} out of the input shape")
        return tuple(random_tensor(shape.sizes, shape.dtype or torch.float32, self.generator) for shape in shapes)

    def fitted(self, **wanted: Any) -> dict[str, Any]:
        """The arguments that are as the data want them and not as the user said; None stands for none."""
        return {name: value for name, value in wanted.items() if value and name not in self.options}


def as_given(model: nn.Module, example: ExampleInputs, given: ExampleInputs) -> ExampleInputs:
    """Example inputs with the arguments that batches have; what no batch has takes its default.

    Args:
        example: inputs that are known of the model.
        given: those of a batch.

    Raises:
        BadInput: the model cannot do without an argument that no batch has, or batches have one that it does not know.
    """
    signature = inspect.signature(model.forward)
    try:
        theirs = signature.bind(*given.args, **given.kwargs).arguments
    except TypeError as problem:
        takes = ", ".join(signature.parameters)
        raise BadInput(
            f"{type(model).__name__} does not take batches of these data ({problem}); its forward takes {takes}"
        ) from problem
    ours = signature.bind(*example.args, **example.kwargs).arguments
    if ours.keys() == theirs.keys():
        return example
    if theirs.keys() - ours.keys():
        return given
    places = list(zip(signature.parameters, example.args, strict=False))
    first = list(takewhile(lambda one: one[0] in theirs, places))
    named = {**dict(places[len(first) :]), **example.kwargs}
    kept = {name: value for name, value in named.items() if name in theirs}
    return ExampleInputs(tuple(value for _, value in first), kept)


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


def package_code(failed: str) -> AbstractContextManager[None]:
    """Run the code of a package that makes models; what it raises becomes a `SourceError`."""
    return foreign_code(lambda problem: SourceError(f"{failed}: {not_importable(problem) or describe(problem)}"))


_NO_ARGUMENT = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")


def created(spec: str, create: Callable[[], Any], address: str, place: str) -> Any:
    """The model that a function of a package makes.

    Args:
        address, place: of its weights, see `downloading`.

    Raises:
        BadInput: an argument that the package does not know; names the nearest one.
        SourceError: the package raises.
    """
    try:
        with downloading(f"the weights of {spec}", address, place), package_code(f"{spec} could not be built"):
            return create()
    except SourceError as error:
        found = _NO_ARGUMENT.search(str(error))
        if found is None or error.__cause__ is None:
            raise
        # The class that was called last.
        frame = list(traceback.walk_tb(error.__cause__.__traceback__))[-1][0]
        names = (*frame.f_locals.values(), *frame.f_globals.values())
        known = next((one for one in names if getattr(one, "__name__", None) == found[1] and callable(one)), None)
        close = "" if known is None else close_matches(found[2], inspect.signature(known).parameters)
        raise BadInput(f"{spec} takes no argument {found[2]!r}{close}") from error


# Modules of errors that a download ends in.
_NETWORK = ("huggingface_hub", "httpx", "requests", "urllib", "socket", "ssl")


@contextmanager
def downloading(what: str, address: str, place: str) -> Iterator[None]:
    """Fetch something from a cache or the network; where neither has it, the line says how to get it there.

    Args:
        what: is fetched, such as "the weights of timm:resnet18".
        address: where it is.
        place: the cache, where it is looked for.
    """
    try:
        yield
    except Exception as error:
        problem = error.__cause__ if isinstance(error, SourceError) and error.__cause__ is not None else error
        names = [kind.__module__ for kind in type(problem).__mro__]
        if not any(name.split(".")[0] in _NETWORK for name in names):
            raise
        raise SourceError(
            f"{what} are not in {place}, and could not be downloaded ({type(problem).__name__}); where there is a "
            f"network, fetch {address}, and bring that cache here, or give the file with --weights FILE"
        ) from problem


def fitting_note(options: Mapping[str, Any]) -> tuple[str, ...]:
    """A note on arguments of a builder that the data gave; none where they gave none."""
    said = ", ".join(f"{name}={value}" for name, value in options.items())
    return (f"built with {said}, as the data want it (--arg says otherwise)",) if said else ()


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
