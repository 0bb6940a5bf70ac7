"""Models from a Python file: `model.py` or `model.py:factory`."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.arguments import in_words, require_path
from repl_fx.errors import BadInput, SourceError, close_matches
from repl_fx.sources.input_shapes import random_tensor
from repl_fx.sources.interrupts import code_of_users
from repl_fx.sources.source import Built, Request, hash_file

# Modules that an earlier model file imported from its own directory. They are forgotten before the next file is
# executed: two files in different directories may both have a `layers.py` beside them.
_siblings: set[str] = set()


def build(request: Request) -> Built:
    """Execute a model file and call its factory.

    The file is executed anew each time, under a module name of its own; while it and its functions run, its directory
    is on `sys.path`, so that it can import what lies beside it. A file of a package may import relative to itself.

    Returns:
        The model, its inputs, the file and the files of its directory that it imported.
    """
    path, factory_name = _split(request.name)
    with _importable(path.parent):
        module, digest = _execute(path)
        factory = _find_factory(module, factory_name, path)
        _check_arguments(factory, request.options, f"{path}:{factory_name}")
        with code_of_users(f"{path}:{factory_name} raised", path.parent):
            model = factory(**request.options)
        if isinstance(model, type) and issubclass(model, nn.Module):
            raise SourceError(
                f"{path}:{factory_name} returned the class {model.__name__}, not a model of it; "
                f"return {model.__name__}(…)"
            )
        if not isinstance(model, nn.Module):
            raise SourceError(
                f"{path}:{factory_name} returned {in_words(model)}, not a torch.nn.Module; return the model itself"
            )
        args, kwargs = _inputs(module, request, path)
    files = {path: digest, **_imported_siblings(path)}
    return Built(model, args, kwargs, files, f"{path}:{factory_name}")


def _split(name: str) -> tuple[Path, str]:
    """The path, resolved, and the name of the factory."""
    text, factory = name, "model"
    if not Path(name).exists() and ":" in name:
        head, _, tail = name.rpartition(":")
        if not tail:
            raise SourceError(f"{name!r} names no factory after the colon; write {head}:NAME or {head}")
        if tail.isidentifier():
            text, factory = head, tail
    path = Path(text)
    if path.is_dir():
        raise SourceError(
            f"{path} is a directory, and no model that is as it was built: what repl-fx writes is rewritten already; "
            f"give the model.py that it is made from, or hf:{path} for one that transformers saved"
        )
    if not path.exists():
        close = close_matches(path.name, [other.name for other in path.parent.glob("*")])
        raise SourceError(
            f"no file {path}{close}; give a path to a .py file, "
            "or a model of a zoo as timm:NAME, torchvision:NAME or hf:CONFIG"
        )
    if path.suffix != ".py":
        raise SourceError(f"{path} is not a .py file; give a Python file with a factory `model()`")
    require_path(path.resolve(), "the model file")
    return path.resolve(), factory


@contextmanager
def executed(path: Path) -> Iterator[ModuleType]:
    """Execute a Python file that is not a model's, anew; its directory is on `sys.path` while the context lasts.

    Args:
        path: of the file, resolved.

    Yields:
        The file as a module.

    Raises:
        SourceError: the file raises; says where.
    """
    with _importable(path.parent):
        yield _execute(path)[0]


@contextmanager
def _importable(directory: Path) -> Iterator[None]:
    for name in _siblings:
        sys.modules.pop(name, None)
    _siblings.clear()
    importlib.invalidate_caches()
    before, packages = set(sys.modules), _packages_of(directory)
    # A package is imported from the directory that it lies in.
    entries = dict.fromkeys([str(directory), *(str(one.parent) for one in packages[:1])])
    # A module that a path of the process itself already leads to is the process's own, and stays imported.
    passing = [entry for entry in entries if entry not in sys.path]
    sys.path[:0] = entries
    try:
        # Paths that the caller gave are relative to where it stands, wherever the file goes.
        with chdir("."):
            yield
    finally:
        # The file may have changed sys.path itself; only the entries made here go.
        for entry in entries:
            if entry in sys.path:
                sys.path.remove(entry)
        for name in set(sys.modules) - before:
            top = next((one for one in packages[:1] if name.split(".")[0] == one.name), None)
            if str(top.parent if top else directory) in passing and _lies_in(sys.modules[name], top or directory):
                _siblings.add(name)


def _packages_of(directory: Path) -> list[Path]:
    """The directories of the packages that a directory is in, itself last where it is one."""
    if not (directory / "__init__.py").is_file():
        return []
    return [*_packages_of(directory.parent), directory]


def _lies_in(module: ModuleType, directory: Path) -> bool:
    # Packages may lie below the directory too, in a virtual environment or as a checkout of repl-fx; they stay.
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or _PREFIX in module.__name__ or module.__name__.split(".")[0] == "repl_fx":
        return False
    path = Path(file).resolve()
    return path.is_relative_to(directory) and "site-packages" not in path.parts


_PREFIX = "repl_fx_source_"


def _execute(path: Path) -> tuple[ModuleType, str]:
    """Run the file as a module that `sys.modules` holds, as dataclasses, pickle and inspect expect; and its SHA-256."""
    packages = [one.name for one in _packages_of(path.parent)]
    name = ".".join([*packages, f"{_PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"])
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise SourceError(f"{path} cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Not through the loader: its cache takes a file that changed within a second, at the same size, for unchanged.
        with code_of_users(f"{path} could not be executed:", path.parent):
            code = path.read_bytes()
            exec(compile(code, str(path), "exec"), module.__dict__)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module, hashlib.sha256(code).hexdigest()


def _find_factory(module: ModuleType, name: str, path: Path) -> Callable[..., Any]:
    factory: Callable[..., Any] | None = getattr(module, name, None)
    if isinstance(factory, nn.Module):
        raise SourceError(f"{path}: {name!r} is a model, not a factory; make it a function that returns the model")
    if callable(factory):
        return factory
    there = [
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    listed = f"callables there are {', '.join(there)}" if there else "there are no callables in it"
    what = "has no factory" if factory is None else f"has {in_words(factory)}, not a factory, called"
    close = close_matches(name, there)
    raise SourceError(f"{path} {what} {name!r}{close}; {listed}; define {name}() or write {path.name}:FACTORY")


def _check_arguments(factory: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return  # Builtins and C extensions need not say; calling them will.
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {p.name for p in parameters if p.kind not in (*variadic, inspect.Parameter.POSITIONAL_ONLY)}
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    missing = [name for name in required if name not in options]
    if missing:
        raise SourceError(
            f"{where} needs the arguments {', '.join(missing)}; give them defaults, or pass them as options"
        )
    unknown = [name for name in options if name not in named]
    if unknown and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        raise BadInput(f"{where} takes no argument {unknown[0]!r}{close_matches(unknown[0], named)}")


def _inputs(module: ModuleType, request: Request, path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    maker = getattr(module, "example_inputs", None)
    if request.shapes is None:
        if not callable(maker):
            raise SourceError(
                f"{path} has no example_inputs(); define one that returns a tuple of tensors, "
                "or give --input-shape 2x3x224x224"
            )
        # Seeded on their own, so that the inputs do not depend on how many numbers the weights took.
        torch.default_generator.manual_seed(request.seed)
        with code_of_users(f"{path}:example_inputs raised", path.parent):
            inputs = maker()
        return _as_arguments(inputs, path)
    made = [(s.name, random_tensor(s.sizes, s.dtype or torch.float32, request.generator)) for s in request.shapes]
    return tuple(tensor for name, tensor in made if name is None), {name: tensor for name, tensor in made if name}


def _as_arguments(inputs: Any, path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(inputs, Tensor | tuple | list | Mapping):
        raise SourceError(
            f"{path}:example_inputs returned {in_words(inputs)}; return a tuple of positional inputs, "
            "a dict of keyword inputs, or one tensor"
        )
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if not inputs:
        raise SourceError(f"{path}:example_inputs returned nothing; return at least one input")
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})


def _imported_siblings(path: Path) -> dict[Path, str]:
    files = {Path(sys.modules[name].__file__ or "").resolve() for name in _siblings if name in sys.modules}
    return {file: hash_file(file) for file in sorted(files - {path})}
