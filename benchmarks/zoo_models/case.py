"""One model of the zoo: how it is built, and on what it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

PICTURES, TEXT, TOKENS = "pictures", "text", "tokens"
Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A model to run through every stage.

    Attributes:
        name: unique in the zoo, `LIBRARY:MODEL`.
        family: what its library files it under: a model file, a task, an architecture.
        build: makes the model with random weights and its positional and keyword example inputs, batch 2, on the CPU;
            the same each time, whatever the caller's random state.
        note: what is not obvious about it: a changed size, a repeat that is not there.
        data: what the commands that read data are run on it with: `pictures`, `text`, or `tokens` for an encoder that
            gets a head; empty for a model that they are not run on.
    """

    name: str
    family: str
    build: Callable[[], Built]
    note: str = ""
    data: str = ""
