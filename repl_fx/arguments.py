"""Arguments that the public functions refuse, by `BadInput`, in one line with the given one and the one to give.

fold(result)             fold takes a module, and this is a TransformResult; give result.module
capture(model, x)        args is a tensor; give a tuple: (x,)
find_repeats(model)      find_repeats takes a graph, and Net is a model; capture it first: repl_fx.capture(model, args)
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from types import UnionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx.errors import BadInput

# Objects that hold a module, with the names of a variable and of the attribute that is the module.
_HOLDERS = {
    "TransformResult": ("result", "module"),
    "CapturedParts": ("parts", "module"),
    "Part": ("part", "graph_module"),
    "Artifact": ("artifact", "module"),
    "Source": ("source", "model"),
}


def require_module(function: str, given: Any, *, graph: bool = False, name: str = "") -> None:
    """Refuse what is no module.

    Args:
        graph: whether the module has to be a graph.
        name: of the argument, where it is not the first.
    """
    if isinstance(given, fx.GraphModule) or (isinstance(given, nn.Module) and not graph):
        return
    takes = f"{function} takes {'a graph' if graph else 'a module'}{f' for {name}' if name else ''}"
    if isinstance(given, nn.Module):
        kind = type(given).__name__
        raise BadInput(f"{takes}, and {kind} is a model; capture it first: repl_fx.capture(model, args)")
    if isinstance(given, type):
        raise BadInput(f"{takes}, and {given.__name__} is a class, not a model; call it and give what it returns")
    raise BadInput(f"{takes}, and this is {in_words(given)}; {_instead(given, graph)}")


def require_args(args: Any, kwargs: Any = None) -> None:
    """Refuse example inputs that are no sequence of arguments, or no mapping of them."""
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        how = "a tuple: (x,)" if isinstance(args, Tensor) else "a tuple with one item for each argument, () for none"
        how = "it as kwargs, or a tuple: (inputs,)" if isinstance(args, Mapping) else how
        raise BadInput(f"args is {in_words(args)}; give {how}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise BadInput(f"kwargs is {in_words(kwargs)}; give a dict of arguments by their names")
    wrong = next((name for name in kwargs or {} if not isinstance(name, str)), None)
    if wrong is not None:
        raise BadInput(f"kwargs has the key {wrong!r}; its keys are the names of arguments")


def require_path(given: Any, what: str) -> None:
    """Refuse what can be no path here, or is not UTF-8; `what` is the noun for what lies there: "the file to write"."""
    if not isinstance(given, (str, os.PathLike)):
        raise BadInput(f"{what} is a path, and this is {in_words(given)}; give a str or a pathlib.Path")
    try:
        path = os.fsdecode(os.path.abspath(given))
    except FileNotFoundError:
        gone = "and the working directory is gone; give an absolute path"
        raise BadInput(f"{what} is {os.fspath(given)!r}, {gone}") from None
    if "\0" in path:
        raise BadInput(f"{what} is {path!r}, and no name holds a null character; leave it out")
    try:
        path.encode()
    except UnicodeEncodeError:
        # safetensors opens none, and no text can name one.
        raise BadInput(f"{what} is {path!r}, and names that are not UTF-8 are not taken; rename it") from None
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as problem:
        raise BadInput(f"{what} is {path!r}, which cannot be reached: {problem.strerror}; choose another") from None


def require_kind(given: Any, kind: type | UnionType, words: str) -> None:
    """Refuse what is of another class.

    Args:
        words: the class that is taken and its origin, as in "save takes the result of repl_fx.transform".
    """
    if not isinstance(given, kind):
        raise BadInput(f"{words}, and this is {in_words(given)}")


def require_items(name: str, given: Any, kinds: type | tuple[type, ...], like: str) -> None:
    """Refuse what is no list of items of some classes, such as a text, whose letters would be taken for names.

    Args:
        like: what is right, in words.
    """
    listed = isinstance(given, Collection) and not isinstance(given, str | bytes)
    if not (listed and all(isinstance(item, kinds) for item in given)):
        raise BadInput(f"{name} is {given!r}; give {like}")


def require_number(name: str, given: Any, kind: type = Integral, least: float = -math.inf) -> None:
    """Refuse what is no number of a kind, whole by default, or a lesser one, or one of more than 63 bits."""
    number: Any = given
    if isinstance(given, bool) or not isinstance(given, kind) or not (number >= least and abs(number) < 1 << 63):
        words = "whole number" if kind is Integral else "number"
        raise BadInput(f"{name} is {given!r}; it must be a {words}{'' if least == -math.inf else f', {least} or more'}")


def require_function(name: str, given: Any) -> None:
    """Refuse what cannot be called, and a class in the place of an object of it, such as a loss."""
    if isinstance(given, type) or not (given is None or callable(given)):
        example = f", such as {given.__name__}()" if isinstance(given, type) else ""
        raise BadInput(f"{name} is {in_words(given)}; give a function{example}")


def require_ordinary_tensors(*, values: bool = True) -> None:
    """Refuse surroundings of the caller in which new tensors have no gradients, or no values where these are needed."""
    if torch.is_inference_mode_enabled():
        raise BadInput("inside torch.inference_mode no gradient can be followed; call repl-fx outside of it")
    if values and torch.get_default_device().type == "meta":
        raise BadInput("torch.device('meta') is the default, where no tensor has values; call repl-fx outside of it")


def in_words(given: Any) -> str:
    """The kind of a value in words, as in "a tensor" or "the class Net"."""
    if given is None:
        return "None"
    if isinstance(given, Tensor):
        return "a tensor"
    if isinstance(given, type):
        return f"the class {given.__name__}"
    kind = type(given).__name__
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"


def _instead(given: Any, graph: bool) -> str:
    kind = type(given)
    if kind.__name__ in _HOLDERS and kind.__module__.startswith("repl_fx."):
        variable, attribute = _HOLDERS[kind.__name__]
        inside = getattr(given, "captured_parts", given)
        if graph and hasattr(inside, "parts"):
            path = variable if inside is given else f"{variable}.captured_parts"
            return f"give a graph of its parts: {path}.parts[0].graph_module"
        return f"give {variable}.{attribute}"
    if isinstance(given, (str, os.PathLike)):
        return (
            "give the model itself: repl_fx.sources.load_source(spec).model, or repl_fx.load(directory) of an artifact"
        )
    if isinstance(given, Mapping):
        return "give the model that has this state"
    return "give a graph from repl_fx.capture" if graph else "give a torch.nn.Module"
