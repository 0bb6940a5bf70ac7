"""Values that are set for a while, and set back behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Commands that only help are set up without torch.
    from torch import nn


@contextmanager
def attributes_set(objects: Iterable[Any], name: str, value: Any) -> Iterator[None]:
    """Give an attribute of some objects another value for a while."""
    before = [(one, getattr(one, name)) for one in objects]
    try:
        for one, _ in before:
            setattr(one, name, value)
        yield
    finally:
        for one, own in before:
            setattr(one, name, own)


@contextmanager
def set_by(make: Callable[[Any], object], value: Any, before: Any) -> Iterator[None]:
    """Call a function with another value of what it sets, and behind a while with the one before."""
    make(value)
    try:
        yield
    finally:
        make(before)


@contextmanager
def forward_replaced(model: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a model run another forward meanwhile, past a `__setattr__` of its own."""
    kept = {name: own for name, own in vars(model).items() if name == "forward"}
    vars(model)["forward"] = forward
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        vars(model).update(kept)
