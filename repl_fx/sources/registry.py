"""The kinds of specifications, by what stands before the colon: `timm:NAME` is built by what is registered as "timm".

    @register_source("shop")
    def build(request: Request) -> Built:
        return Built(shop.make(request.name, **request.options), args=(torch.randn(2, 3, 32, 32),))

A package offers kinds by entry points of the group `repl_fx.sources`: what stands before the colon, and the function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from repl_fx.config import load_offered, offered
from repl_fx.errors import BadInput
from repl_fx.sources.source import Built, Request

Builder = Callable[[Request], Built]
_GROUP = "repl_fx.sources"
# The files of code that a model runs where that is permitted, each with its SHA-256, by the name after the colon.
CodeOf = Callable[[str], Mapping[Path, str]]
_REGISTRY: dict[str, tuple[Builder, CodeOf | None]] = {}


def register_source(prefix: str, *, code: CodeOf | None = None) -> Callable[[Builder], Builder]:
    """Register a function that builds the models of a kind of specification.

    Args:
        prefix: the word before the colon; two letters or more, as one is a drive. Registering it again replaces the
            old entry.
        code: for kinds whose models may be made of code that runs with permission alone, the files of that code.

    Raises:
        BadInput: a prefix that no specification can begin with.
    """
    if not prefix.isidentifier() or len(prefix) < 2:
        raise BadInput(
            f"{prefix!r} cannot stand before the colon of a specification; take a word of two letters or more"
        )

    def register(build: Builder) -> Builder:
        _REGISTRY[prefix] = build, code
        return build

    return register


def known_sources() -> tuple[str, ...]:
    """The words that can stand before the colon: registered ones, and those that installed packages offer."""
    return tuple(dict.fromkeys((*_REGISTRY, *sorted(offered(_GROUP)))))


def is_source(prefix: str) -> bool:
    """Tell whether a word can stand before the colon; packages are looked through for what is not registered alone."""
    return prefix in _REGISTRY or prefix in offered(_GROUP)


def builder(prefix: str) -> Builder:
    """The function that builds the models of a kind for which `is_source` holds."""
    if prefix not in _REGISTRY:
        register_source(prefix)(load_offered(_GROUP, prefix))
    return _REGISTRY[prefix][0]


def code_of(prefix: str) -> CodeOf | None:
    """The function that finds the code of a model of some kind; None where no code of the kind asks for permission."""
    return _REGISTRY[prefix][1] if prefix in _REGISTRY else None
